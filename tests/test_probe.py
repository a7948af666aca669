"""The probe tells an upstream that schedules by priority from one that ignores it."""

import asyncio

import pytest

from pars.doctor.probe import Probe, ProbeError, run_probe
from pars.scheduling.engines import ENGINES
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream

from fake_engine import FakeEngine


def obeys(url: str, engine: str = "vllm") -> bool:
    async def ask() -> bool:
        async with Upstream(url) as upstream:
            return await Probe(upstream, ENGINES[engine], patience_s=1.0).obeys_priority()

    return asyncio.run(ask())


@pytest.mark.parametrize("num_slots", [1, 5])
@pytest.mark.parametrize("obeys_priority", [True, False])
def test_probe_tells_the_two_apart(num_slots: int, obeys_priority: bool) -> None:
    """Whatever the number of slots, the order of admission gives the answer."""
    engine = FakeEngine(num_slots=num_slots, token_s=0.01, obeys_priority=obeys_priority)
    with engine.served() as url:
        assert obeys(url) is obeys_priority


def test_probe_turns_the_sign_for_engines_that_take_larger_first() -> None:
    """An engine that takes smaller first looks inverted when it is probed the other way round."""
    with FakeEngine(num_slots=1, token_s=0.01).served() as url:
        assert obeys(url, "sglang-low-first") is True
        assert obeys(url, "sglang") is False


def test_probe_leaves_nothing_running() -> None:
    """After the probe every slot is free again."""
    engine = FakeEngine(num_slots=3, token_s=0.01)
    with engine.served() as url:
        obeys(url)
    assert (engine.num_running, engine.num_waiting) == (0, 0)


def test_a_dead_upstream_is_named() -> None:
    """Without an answer the probe says which upstream gave none."""
    with pytest.raises(ProbeError, match=r"127\.0\.0\.1:1: cannot connect"):
        run_probe(Upstream("http://127.0.0.1:1"), Settings(engine="vllm"))
