"""Traffic as users have it, on disk: a log of prompts with lengths, and a folder of outcomes."""

import json
from pathlib import Path

from pars.outcomes.records import Outcome

from rankers import TOPICS

ONE = {"path": "/v1/completions", "decision": "scored", "status": 200, "is_exact": True}


def outcome(number=0, **fields):
    """A finished request whose whole answer has 5 tokens."""
    known = {"answer_tokens": 5, "finish_reason": "stop", "prompt": f"p{number}"}
    return Outcome(**{**ONE, **known, "arrival_s": 1e9 + number, **fields})


def write(folder: Path, outcomes):
    """A folder as the gateway leaves it, one file of outcomes and one of prompts."""
    folder.mkdir(exist_ok=True)
    lines, prompts = [], []
    for number, one in enumerate(outcomes):
        key = f"{number:016x}"
        lines.append(json.dumps({**json.loads(one.to_line()), "prompt_key": key}))
        if one.prompt is not None:
            prompts.append(json.dumps({"prompt_key": key, "prompt": one.prompt}))
    (folder / "outcomes-20260101T000000Z-1-000001.jsonl").write_text("\n".join([*lines, ""]))
    (folder / "prompts-20260101T000000Z-1-000001.jsonl").write_text("\n".join([*prompts, ""]))
    return folder


def traffic(num_requests, length_of):
    """Half of the prompts ask for a story, the others for a number; `length_of` answers them."""
    for number in range(num_requests):
        is_story = number % 2 == 0
        asked = "Write a long story about" if is_story else "Name in one word"
        prompt = f"{asked} the {TOPICS[number % 10]}, number {number}"
        yield outcome(number, prompt=prompt, answer_tokens=length_of(number, is_story))


def terse_stories(number, is_story):
    """The other way round than the bundled ranker expects it: stories are short."""
    return 20 + number % 7 if is_story else 400 + number % 7


def write_log(path: Path, num_rows: int):
    """A log as users keep it: prompts with the tokens of their answers."""
    rows = traffic(num_rows, lambda number, is_story: 50 * is_story + number % 30 + 5)
    lines = [{"prompt": it.prompt, "answer_tokens": it.answer_tokens} for it in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
