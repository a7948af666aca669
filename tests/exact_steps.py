"""
Steps of vLLM's own scheduler on random workloads, as JSON; run by test_fast_engine.py in .engine.

    .engine/bin/python tests/exact_steps.py < cases.json > steps.json
"""

import json
import sys

from pars.prove.engine.stepping import EngineLimits


def steps_of(engine, requests, *, skip=False):
    """
    Every step of a run in which step number k sees the requests [k, ...] that came up to it.

    With `skip`, quiet steps are skipped and not in the list; then steps come with their numbers.
    """
    steps, number, upcoming = [], 0, list(reversed(requests))
    while upcoming or engine.has_work:
        if not engine.has_work:
            number = max(number, upcoming[-1]["at_step"])
        while upcoming and upcoming[-1]["at_step"] <= number:
            it = upcoming.pop()
            engine.add(it["id"], it["prompt"], it["output"], it["priority"], float(it["at_step"]))
        if skip and (quiet := engine.num_quiet_steps()):
            count = min(quiet, upcoming[-1]["at_step"] - number) if upcoming else quiet
            engine.skip(count)
            number += count
            continue
        step = engine.step()._asdict()
        step["preempted"].sort()  # vLLM tells which, and not in which order
        steps.append([number, step])
        number += 1
    return steps


if __name__ == "__main__":
    from pars.prove.engine.vllm_engine import VllmEngine

    json.dump(
        [
            steps_of(VllmEngine(EngineLimits(**case["limits"])), case["requests"])
            for case in json.load(sys.stdin)
        ],
        sys.stdout,
    )
