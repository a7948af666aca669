"""A switchback experiment on a gateway before a real vLLM finds what its order is worth."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from doors import gateway, word_ranker
from pars.outcomes.switchback import report_of
from pars.prove.live.experiment import Experiment, read_windows

from engine import MODEL, Engines

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
KEY = "of the operator"
SHORT, LONG = 10, 300  # tokens: 70 ms and 2 s in vLLM's one slot


def test_shortest_first_is_found_to_be_better_than_first_come(vllm: Engines, tmp_path: Path):
    """Eight callers ask for ten tokens, four for 300, each as soon as it has its answer."""
    engine = vllm("--scheduling-policy", "priority")
    ranker = word_ranker(tmp_path / "ranker")
    stop = threading.Event()
    with gateway(engine, ranker, "--learn", "off", PARS_ADMIN_KEY=KEY) as door:

        def keep_asking(num_tokens: int) -> None:
            body = {"model": MODEL, "prompt": f"words{num_tokens}", "max_tokens": num_tokens}
            with httpx.Client(timeout=120, trust_env=False) as client:
                while not stop.is_set():
                    answer = client.post(f"{door.url}/v1/completions", json=body | {"stream": True})
                    answer.raise_for_status()

        with ThreadPoolExecutor(12) as pool:
            callers = [pool.submit(keep_asking, it) for it in 8 * [SHORT] + 4 * [LONG]]
            try:
                path = tmp_path / "windows.jsonl"
                Experiment(door.url, ("fcfs", "inf"), 5.0, 3, KEY).run(path)
            finally:
                stop.set()
            for caller in callers:
                caller.result()

    windows = read_windows(path)
    effect = report_of(windows)[0]
    assert sorted(it.arm for it in windows) == 3 * ["fcfs"] + 3 * ["inf"]
    assert (effect.measure, effect.arm) == ("time per output token", "inf")
    assert effect.ratio > 0
