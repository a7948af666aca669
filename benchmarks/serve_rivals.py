"""
What `benchmarks/serve.py` compares the score service with, each in a process of its own.

    python benchmarks/serve_rivals.py plain MODEL CHECKPOINT   PyTorch fp32, one forward a request
    python benchmarks/serve_rivals.py constant                 FastAPI, and no ranker at all
    python benchmarks/serve_rivals.py echo                     uvicorn, and nothing else
    python benchmarks/serve_rivals.py raw RANKER SECONDS       the ranker in a loop, without HTTP

The servers run under the same uvicorn settings as `pars serve`, and print their URL.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from pars.cli.serve import run_app
from pars.ranking.ranker import Ranker


class Question(BaseModel):
    prompt: str


def plain(model_name: str, checkpoint: str) -> FastAPI:
    """The usual way: a sync endpoint, in FastAPI's thread pool, with one forward a request."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_name)
    weights = torch.load(checkpoint, weights_only=True)
    encoder = AutoModel.from_pretrained(model_name).eval()
    encoder.load_state_dict(
        {n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")}
    )
    app = FastAPI()

    @app.post("/score")
    def score(question: Question) -> dict[str, Any]:
        inputs = tokenizer(
            [question.prompt], padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        with torch.no_grad():
            pooled = encoder(**inputs).pooler_output
            value = torch.nn.functional.linear(pooled, weights["fc.weight"], weights["fc.bias"])
        return {"prompt": question.prompt, "score": value.item()}

    return app


def constant() -> FastAPI:
    """The least that a FastAPI endpoint of this form can cost."""
    app = FastAPI()

    @app.post("/score")
    async def score(question: Question) -> dict[str, Any]:
        return {"prompt": question.prompt, "score": 0.0}

    return app


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """The least that uvicorn can cost."""
    if scope["type"] != "http":
        return
    body = b""
    more_body = True
    while more_body:
        message = await receive()
        body += message["body"]
        more_body = message["more_body"]
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def raw(folder: str, seconds: str) -> None:
    """Print prompts per second and milliseconds a call, at batch 1 and at batch 16 by length."""
    ranker = Ranker.load(Path(folder))
    prompts: list[str] = json.load(sys.stdin)
    by_length = sorted(prompts, key=len)
    batches = [by_length[start : start + 16] for start in range(0, len(by_length), 16)]
    result = {
        "batch_1": timed(ranker.score, [[prompt] for prompt in prompts], float(seconds)),
        "batch_16": timed(ranker.score, batches, float(seconds)),
    }
    print(json.dumps(result))


def timed(
    score: Callable[[list[str]], Any], batches: list[list[str]], seconds: float
) -> dict[str, float]:
    """Whole rounds over `batches` until `seconds` are over, so that the mix of lengths is fair."""
    call_s: list[float] = []
    while sum(call_s) < seconds:
        for batch in batches:
            began_s = time.perf_counter()
            score(batch)
            call_s.append(time.perf_counter() - began_s)
    num_prompts = sum(map(len, batches)) * len(call_s) // len(batches)
    return {
        "prompts_per_s": num_prompts / sum(call_s),
        "p50_ms": 1000 * sorted(call_s)[len(call_s) // 2],
    }


def main() -> None:
    name, *arguments = sys.argv[1:]
    if name == "raw":
        raw(*arguments)
        return
    app = {"plain": plain, "constant": constant, "echo": lambda: echo}[name](*arguments)
    run_app(app, "127.0.0.1", 0, f"{name} listens on {{url}}")


if __name__ == "__main__":
    main()
