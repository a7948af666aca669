"""The slowdown's bound holds on vLLM's real scheduler, in virtual time."""

import json
import subprocess
from pathlib import Path

import pytest

from pars.scheduling.policies.max_slowdown import BUCKET_REQUESTS, BUCKET_S

TESTS = Path(__file__).parent
ENGINE_PYTHON = TESTS.parent / ".engine/bin/python"


@pytest.mark.engine
def test_no_ordinary_request_waits_more_than_the_bound_on_vllms_scheduler():
    """
    Six predictors from perfect to adversarial, at 1.33 and 2, by one gateway and by three whose
    clocks differ; the constant is each gateway's bucket and what four slots may have begun.
    """
    ended = subprocess.run(
        [ENGINE_PYTHON, TESTS / "exact_bound.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]

    cases = json.loads(ended.stdout)

    for case in cases:
        bucket_s = BUCKET_S + BUCKET_REQUESTS * case["largest_s"] / 4
        constant_s = case["num_gateways"] * (bucket_s + 2 * case["largest_s"])
        for wait_s, fcfs_s in case["waits"]:
            assert wait_s <= case["ratio"] * (fcfs_s + constant_s), case["predictor"]
    assert {case["predictor"] for case in cases if case["num_express"] > 20} >= {"perfect", "noisy"}
