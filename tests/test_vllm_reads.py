"""What vLLM's own models make of a body, pars makes of it too."""

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pars.request.prompts import MAX_COUNT, UNTIL_FULL_TOKENS, read_request

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]

PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
}
COUNTS = [
    *(None, 0, 1, 3, 30, 2**31, -1, True, False, 3.0, 3.5, 1e3, 0.0, "3", " 3 ", "3.0", "+3"),
    *("1_000", "3e2", "0x10", "", "three", "-4", "٣", [3], {"a": 3}, [], "3\n"),
]
SWITCHES = [
    *(None, True, False, 0, 1, 2, -1, 0.0, 1.0, 0.5, "true", "True", "TRUE", "1", "0", "yes", "no"),
    *("on", "off", "t", "f", "y", "n", " true", "", "2", [], {}, [True]),
]
FIELDS = {
    **dict.fromkeys(["max_tokens", "max_completion_tokens", "max_output_tokens"], COUNTS),
    **dict.fromkeys(["min_tokens", "n"], COUNTS),
    "ignore_eos": SWITCHES,
}


def bodies() -> list[tuple[str, dict[str, Any]]]:
    """Every spelling of every field alone on every path, and 600 of several fields together."""
    alone = [
        (path, {**body, name: value})
        for path, body in PATHS.items()
        for name, values in FIELDS.items()
        for value in values
    ]
    chance = random.Random(3)
    mixed = []
    for _ in range(600):
        path, body = chance.choice(list(PATHS.items()))
        names = chance.sample(list(FIELDS), 3)
        mixed.append((path, {**body, **{name: chance.choice(FIELDS[name]) for name in names}}))
    return alone + mixed


def test_limits_are_read_as_vllm_reads_them() -> None:
    """Whatever vLLM takes, in whatever spelling, counts as vLLM counts it."""
    asked = bodies()
    done = subprocess.run(
        [str(ROOT / ".engine/bin/python"), str(ROOT / "tests/vllm_reads.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [line] = [it for it in done.stdout.splitlines() if it.startswith("READ ")]
    num_taken, wrong = 0, []
    for (path, body), read in zip(asked, json.loads(line.removeprefix("READ ")), strict=True):
        if read is None or (read[0] or 0) < 0 or read[1] < 0:
            continue  # vLLM refuses it, now or when it makes sampling parameters of it
        num_taken += 1
        limit, least, n, ignores_end = read
        if ignores_end:
            least = UNTIL_FULL_TOKENS if limit is None else limit
        ours = read_request(path, body)
        assert ours is not None
        found = (ours.max_tokens, ours.min_tokens, ours.num_answers)
        wanted = (limit if limit is None else min(limit, MAX_COUNT), least, max(n or 1, 1))
        if found != wanted:
            wrong.append(f"{path} {body}: {found}, vLLM {wanted}")

    assert num_taken > 300
    assert wrong == [], "\n".join(wrong)
