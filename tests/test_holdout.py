"""A permanent holdout: what the order is worth beside windows of first come, first served."""

import math
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from gateways import counted, gateway_to
from pars.doctor.live_page import lines_of, now_of
from pars.errors import ParsError
from pars.outcomes.decision import Decision
from pars.outcomes.holdout import FCFS, ORDERED, HoldoutMetrics, HoldoutWatch, Schedule
from pars.outcomes.metrics import ServeMetrics
from pars.outcomes.records import Outcome
from pars.outcomes.switchback import NTPOT, WAIT
from pars.scheduling.demand import Calibration, Demand
from pars.scheduling.engines import ENGINES
from pars.scheduling.trust import Wish
from pars.serving.placing import Placing
from pars.serving.prediction import Prediction
from pars.serving.settings import Settings

from fake_engine import FakeEngine

EACH_S = 300.0


@pytest.mark.parametrize(("share", "num_windows"), [(0.05, 20), (0.5, 2), (0.3, 3), (0.01, 100)])
def test_each_block_has_one_window_held_out(share: float, num_windows: int) -> None:
    """So the share of the windows is exact, whatever is drawn; the draw is not always the same."""
    schedule = Schedule(share)
    middles_s = [EACH_S * (at + 0.5) for at in range(12 * num_windows)]
    arms = [schedule.arm(it) for it in middles_s]
    blocks = [arms[at : at + num_windows] for at in range(0, len(arms), num_windows)]

    assert schedule.num_windows == num_windows
    assert [it.count(FCFS) for it in blocks] == [1] * 12
    assert len({it.index(FCFS) for it in blocks}) > 1
    assert [schedule.block(it) for it in middles_s] == [
        at // num_windows for at in range(len(arms))
    ]


def test_the_draw_is_the_same_in_every_process_and_for_every_request() -> None:
    """It goes by the time alone: nothing that a client sends has a part in it."""
    one, other = Schedule(0.05), Schedule(0.05)
    times_s = [1.7e9 + 97.0 * number for number in range(500)]

    assert [one.arm(it) for it in times_s] == [other.arm(it) for it in times_s]


def test_the_first_quarter_of_a_window_counts_for_neither() -> None:
    """What waits then was placed by the window before: 75 s of 300."""
    schedule = Schedule(0.5)

    assert [schedule.is_settled(at_s) for at_s in (0.0, 74.0, 75.0, 299.0, 300.0, 375.0)] == [
        *(False, False, True, True, False, True)
    ]


class Bench:
    """A watch whose clock is set by hand."""

    def __init__(self) -> None:
        self.now_s, self.registry, self.schedule = 0.0, CollectorRegistry(), Schedule(0.5)
        metrics = HoldoutMetrics(self.registry)
        self.watch = HoldoutWatch(self.schedule, metrics, lambda: self.now_s)

    def answer(self, at_s: float, arm: str | None, *, wait_s: float, total_s: float = 2.0) -> None:
        """Of ten tokens, streamed."""
        told = {"path": "/v1/completions", "decision": "scored", "expected_tokens": 10.0}
        asked = Outcome(arrival_s=at_s, **told)
        came = Outcome(
            arrival_s=at_s, status=200, answer_tokens=10, wait_s=wait_s, total_s=total_s, **told
        )
        self.watch.ended(Decision(outcome=asked, began_s=0.0, arm=arm), came)

    def block(self, number: int, fcfs_s: float, ordered_s: float) -> None:
        """Two windows, each with one answer, that took so long."""
        for at in (2 * number, 2 * number + 1):
            at_s = EACH_S * (at + 0.5)
            arm = self.schedule.arm(at_s)
            total_s = fcfs_s if arm == FCFS else ordered_s
            self.answer(at_s, arm, wait_s=total_s / 2, total_s=total_s)

    def effects(self) -> dict[str, Any]:
        self.watch.look()
        return {it.measure: it for it in self.watch.effects}

    def metric(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, labels)
        assert value is not None
        return value


def test_the_gain_is_told_by_blocks_with_its_interval() -> None:
    """
    Four blocks in which held-out answers took 4 s of ten tokens, and ordered ones 3, 3, 2 and 2.

    Differences over the mean of 4: 1/4, 1/4, 1/2, 1/2: mean 0.375, standard deviation
    0.125 * sqrt(4 / 3); Student's t of 3 degrees 3.18: half an interval is 0.2295.
    """
    bench = Bench()
    for number, ordered_s in enumerate((3.0, 3.0, 2.0, 2.0)):
        bench.block(number, 4.0, ordered_s)
    bench.now_s = 8 * EACH_S
    found = bench.effects()

    half = 3.18 * 0.125 * math.sqrt(4 / 3) / 2
    assert found[NTPOT].ratio == pytest.approx(0.375)
    assert (found[NTPOT].low, found[NTPOT].high) == pytest.approx((0.375 - half, 0.375 + half))
    assert (found[WAIT].base_s, found[WAIT].mean_s) == pytest.approx((2.0, 1.25))
    assert found[f"{NTPOT}, expected to_64"].num_requests == 8
    assert bench.metric("pars_holdout_gain_ratio") == pytest.approx(0.375)
    assert bench.metric("pars_holdout_gain_ratio_low") == pytest.approx(0.375 - half)
    assert bench.metric("pars_holdout_blocks") == 4
    assert bench.metric("pars_holdout_wait_seconds_sum", arm=FCFS) == pytest.approx(8.0)
    told = bench.watch.as_json()
    assert told["share"] == 0.5
    assert [it["is_enough"] for it in told["effects"]] == [True] * len(told["effects"])


def test_a_block_that_is_not_over_does_not_count() -> None:
    """It may have had its held-out window, and few of the others."""
    bench = Bench()
    bench.block(0, 4.0, 2.0)
    bench.now_s = 2 * EACH_S - 1

    assert bench.effects() == {}
    assert math.isnan(bench.metric("pars_holdout_gain_ratio"))
    bench.now_s += 1
    assert bench.effects()[NTPOT].num_blocks == 1
    assert bench.watch.as_json()["effects"][0]["low"] is None


def test_requests_of_no_arm_and_of_unsettled_windows_say_nothing() -> None:
    """A trusted caller's own priority, shadow mode, and the first quarter of a window."""
    bench = Bench()
    bench.answer(EACH_S * 0.5, None, wait_s=1.0)
    bench.answer(EACH_S * 0.2, ORDERED, wait_s=1.0)
    bench.answer(EACH_S * 1.2, FCFS, wait_s=1.0)
    bench.now_s = 2 * EACH_S

    assert bench.effects() == {}


def test_what_is_remembered_is_bounded() -> None:
    """400 blocks, the newest."""
    bench = Bench()
    for number in range(450):
        bench.block(number, 4.0, 3.0)
    bench.now_s = 900 * EACH_S

    assert bench.effects()[NTPOT].num_blocks == 400


PREDICTION = Prediction("scored", (10.0,), True, Calibration())


def placed(placing: Placing, cost: float, at_s: float, wish: Wish = Wish()) -> Any:  # noqa: B008
    return placing.place(ENGINES["vllm"], Demand(cost, cost), PREDICTION, wish, at_s)


@pytest.mark.parametrize("policy", [{"max_slowdown": 2.0}, {"max_overtake_s": 30.0}])
def test_in_a_held_out_window_keys_are_those_of_arrival(policy: dict[str, float]) -> None:
    """Whatever is expected of an answer; in the other windows the short one goes first."""
    placing = Placing(Settings(holdout="50%", **policy), ServeMetrics(CollectorRegistry()))
    schedule = Schedule(0.5)
    by_arm: dict[str, float] = {}
    for at in range(2):
        at_s = 1.7e9 // EACH_S * EACH_S + EACH_S * (at + 0.5)
        by_arm[schedule.arm(at_s)] = at_s

    for number in range(200):  # the bound's policy learns what is short
        for cost in (10.0, 1000.0):
            it = placed(placing, cost, by_arm[ORDERED])
            it.policy.began(it.place)
            it.policy.ended(it.place, by_arm[ORDERED] + number)
            it.policy.correct(it.place, cost, cost)
    held = [placed(placing, cost, by_arm[FCFS] + at) for at, cost in ((0, 1000.0), (1, 10.0))]
    free = [placed(placing, cost, by_arm[ORDERED] + at) for at, cost in ((0, 1000.0), (1, 10.0))]

    assert [it.arm for it in held + free] == [FCFS, FCFS, ORDERED, ORDERED]
    assert held[1].priority - held[0].priority == 1_000_000  # a second, in microseconds
    assert free[1].priority < free[0].priority


def test_who_is_trusted_and_what_is_only_thought_of_have_no_arm() -> None:
    """Nor has what an operator switched to first come, first served."""
    placing = Placing(Settings(holdout="50%"), ServeMetrics(CollectorRegistry()))

    assert placed(placing, 1.0, 0.0).arm is not None
    assert placed(placing, 1.0, 0.0, Wish(priority=7)).arm is None
    placing.go_by(Settings().policy(), is_shadow=True)
    assert placed(placing, 1.0, 0.0).arm is None
    assert placed(Placing(Settings(), ServeMetrics(CollectorRegistry())), 1.0, 0.0).arm is None


@pytest.mark.parametrize("share", ["0", "60%", "five", "nan", "-5%", "5%%"])
def test_a_holdout_that_is_no_share_is_refused(share: str) -> None:
    """The variable is named, and what would be right."""
    with pytest.raises(ParsError, match=r"PARS_HOLDOUT: want a share from 0\.1% to 50%"):
        Settings.from_env({"PARS_HOLDOUT": share})


def test_page_metrics_and_terminal_tell_of_it(tmp_path: Path) -> None:
    """A gateway that just began has no block yet; without a holdout nothing is said of one."""
    settings = {"holdout": "20%", "state": "none"}
    with (
        FakeEngine().served() as engine,
        gateway_to(engine, tmp_path, settings=settings) as (url, app),
        gateway_to(engine, tmp_path) as (plain, plain_app),
    ):
        body = {"prompt": "x", "max_tokens": 2, "stream": True}
        httpx.post(f"{url}/v1/completions", json=body, trust_env=False).raise_for_status()
        now = now_of(url)
        assert now["worth"]["holdout"] == {"share": 0.2, "effects": []}
        assert "held out, 20.0% of the time: not enough windows yet" in "\n".join(lines_of(now))
        assert math.isnan(counted(app, "pars_holdout_gain_ratio"))
        assert counted(app, "pars_holdout_blocks") == 0
        assert "held out" not in "\n".join(lines_of(now_of(plain)))
        assert plain_app.registry.get_sample_value("pars_holdout_blocks") is None
