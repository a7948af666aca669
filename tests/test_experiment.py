"""A switchback experiment tells what a policy is worth, and when it is not known yet."""

import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from gateways import gateway_to
from pars.errors import DataError, ParsError
from pars.outcomes.switchback import Window, effect_of, report_of
from pars.prove.live.experiment import Experiment, read_windows, render

from fake_engine import FakeEngine

KEY = "of the operator"
MEASURE = "time per output token"


def experiment(**options: object) -> Experiment:
    chosen = {"arms": ("fcfs", "default"), "window_s": 1.0, "num_blocks": 3} | options
    return Experiment("http://127.0.0.1:1", admin_key=KEY, **chosen)  # type: ignore[arg-type]


def test_each_block_has_each_arm_once_and_the_same_seed_the_same_order() -> None:
    """Another seed draws another one."""
    turns = experiment(num_blocks=20).schedule()

    assert [block for block, _ in turns] == [block for block in range(20) for _ in range(2)]
    assert all({turns[at][1], turns[at + 1][1]} == {"fcfs", "default"} for at in range(0, 40, 2))
    assert turns == experiment(num_blocks=20).schedule()
    assert turns != experiment(num_blocks=20, seed=1).schedule()


def test_the_effect_is_worked_out_by_blocks() -> None:
    """
    Means of 2 and 1, then of 4 and 3 seconds: one second less of three in the mean, a third, in
    both blocks alike, so the interval has no width.
    """
    windows = [
        Window(0, "fcfs", 0.0, {MEASURE: (20.0, 10)}),
        Window(0, "default", 0.0, {MEASURE: (10.0, 10)}),
        Window(1, "default", 0.0, {MEASURE: (6.0, 2)}),
        Window(1, "fcfs", 0.0, {MEASURE: (8.0, 2)}),
    ]

    [effect] = report_of(windows)

    assert (effect.ratio, effect.low, effect.high) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert (effect.num_blocks, effect.num_requests) == (2, 24)
    assert "not enough yet" in render([effect])


def simulated(rng: np.random.Generator, gain: float, num_blocks: int) -> list[Window]:
    """Windows whose load wanders from block to block, as a day's does."""
    windows, level = [], 0.0
    for block in range(num_blocks):
        level = 0.9 * level + rng.normal(0, 0.3)
        for arm, factor in (("fcfs", 1.0), ("default", 1.0 - gain)):
            mean_s = factor * math.exp(level + rng.normal(0, 0.2))
            windows.append(Window(block, arm, 0.0, {MEASURE: (200 * mean_s, 200)}))
    return windows


def test_equal_arms_show_a_gain_as_seldom_as_promised() -> None:
    """Of 400 experiments with 12 blocks about 5% may err: fewer than 10% do."""
    rng = np.random.default_rng(0)
    effects = [effect_of(simulated(rng, 0.0, 12), MEASURE, "fcfs", "default") for _ in range(400)]

    assert sum(it is not None and it.is_clear for it in effects) < 40


def test_the_interval_holds_the_truth_as_often_as_promised() -> None:
    """A gain of 30% lies in at least 88% of 400 intervals, and is seen for one in most."""
    rng = np.random.default_rng(1)
    effects = [effect_of(simulated(rng, 0.3, 12), MEASURE, "fcfs", "default") for _ in range(400)]

    assert sum(it is not None and it.low <= 0.3 <= it.high for it in effects) > 352
    assert sum(it is not None and it.is_clear for it in effects) > 300


@pytest.mark.parametrize("arms", [("fcfs",), ("fcfs", "fcfs")])
def test_one_arm_is_no_experiment(arms: tuple[str, ...]) -> None:
    """It is said what would be one."""
    with pytest.raises(ParsError, match="two different policies"):
        experiment(arms=arms)


def test_a_file_of_something_else_is_refused_with_its_line(tmp_path: Path) -> None:
    """A last line that was cut by Ctrl-C is left out."""
    path = tmp_path / "windows.jsonl"
    path.write_text('{"block": 0, "arm": "fcfs", "began_s": 1.0, "sums": {}}\n{"block": 0, "a')
    assert len(read_windows(path)) == 1
    path.write_text('{"block": 0}\n')
    with pytest.raises(DataError, match="line 1 is no window"):
        read_windows(path)


def test_it_runs_on_a_gateway_resumes_and_sets_the_policy_back(tmp_path: Path) -> None:
    """Interrupted in its third window, it goes on there; two blocks are told in the end."""
    settings = {"admin_key": KEY, "state": "none", "max_slowdown": 2.0}
    settings |= {"max_overtake_s": float("-inf")}
    with (
        FakeEngine(num_slots=1, token_s=0.0002).served() as engine,
        gateway_to(engine, tmp_path, settings=settings) as (url, app),
    ):
        stop, rng = threading.Event(), random.Random(0)
        lengths = [rng.choice((1, 2, 60)) for _ in range(1000)]

        def keep_asking(caller: int) -> None:
            number = caller
            while not stop.is_set():
                number += 7
                tokens = lengths[number % 1000]
                body = {"prompt": "x" * tokens, "max_tokens": tokens, "stream": True}
                httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)

        with ThreadPoolExecutor(12) as pool:
            for caller in range(12):
                pool.submit(keep_asking, caller)
            try:
                path = tmp_path / "windows.jsonl"
                plan = Experiment(url, ("fcfs", "inf"), 2.0, 2, KEY)
                with pytest.raises(KeyboardInterrupt):
                    plan.run(path, interrupt_at(3))
                assert len(read_windows(path)) == 2
                assert app.control.state["policy"] == "default"
                plan.run(path)
                another = Experiment(url, ("fcfs", "1.5x"), 2.0, 2, KEY)
                with pytest.raises(ParsError, match="of another experiment"):
                    another.run(path)
            finally:
                stop.set()
        effects = report_of(read_windows(path))
    assert app.control.state["policy"] == "default"
    assert (effects[0].arm, effects[0].num_blocks) == ("inf", 2)
    assert effects[0].num_requests > 0


def interrupt_at(number: int):  # type: ignore[no-untyped-def]
    def told(at: int, _num: int, _arm: str) -> None:
        if at == number:
            raise KeyboardInterrupt

    return told
