"""A ranker that orders worse than chance is disabled, and comes back when it orders again."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from gateways import counted, exchange, gateway_to, post
from pars.errors import ParsError
from pars.outcomes.drift import DriftSettings
from pars.outcomes.metrics import DriftMetrics
from pars.outcomes.ranker_judge import RankerJudge
from pars.outcomes.records import Outcome
from pars.ranking.live_ranker import LiveRanker, fingerprint_of
from pars.serving.gateway import Gateway
from pars.serving.settings import Settings

from fake_engine import FakeEngine
from serving import DEADLINE_S, eventually

WINDOW = 40
LENGTHS = range(10, 10 + WINDOW)


@contextmanager
def judged_gateway(tmp_path: Path, **settings: Any) -> Iterator[tuple[str, Gateway, FakeEngine]]:
    """A gateway whose ranker expects a token a character, and the engine behind it."""
    engine = FakeEngine(num_slots=8)
    with (
        engine.served() as upstream,
        gateway_to(
            upstream, tmp_path, settings={"drift_window": WINDOW, "learn": "off", **settings}
        ) as (url, app),
    ):
        yield url, app, engine


def chat(url: str, num_chars: int, num_tokens: int) -> None:
    """A chat with a prompt of so many characters and an answer of so many tokens."""
    message = {"role": "user", "content": "x" * num_chars}
    body = {"messages": [message], "max_tokens": num_tokens}
    answer = exchange(url, post("/v1/chat/completions", json.dumps(body).encode()))
    assert answer.startswith(b"HTTP/1.1 200")


def is_in_use(app: Gateway) -> bool:
    return counted(app, "pars_ranker_in_use") == 1


def decided(app: Gateway, outcome: str) -> float:
    return counted(app, "pars_decisions_total", outcome=outcome)


def test_a_ranker_that_turns_the_order_round_is_put_out_of_use_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """
    Long prompts with short answers put it out; meanwhile all cost the same; the reverse brings it
    back, since scoring went on.
    """
    with judged_gateway(tmp_path) as (url, app, engine):
        for length in LENGTHS:
            chat(url, length, 100 - length)
        eventually(lambda: not is_in_use(app))
        assert counted(app, "pars_ranker_tau_b") == -1
        assert counted(app, "pars_ranker_tau_b_low") <= -1
        assert counted(app, "pars_ranker_tau_b_high") < 0

        num_scored = decided(app, "scored")
        chat(url, 900, 900)  # the longest first: in order of arrival it has the smallest key
        chat(url, 10, 10)
        first, second = engine.asked[-2:]
        assert first.priority < second.priority
        assert decided(app, "drifted") == 2
        assert decided(app, "scored") == num_scored

        for length in LENGTHS:
            chat(url, length, length)
        eventually(lambda: is_in_use(app))
        assert counted(app, "pars_ranker_tau_b") > 0.9
        chat(url, 10, 10)
        assert decided(app, "scored") == num_scored + 1

    said = [record.getMessage() for record in caplog.records if "tau-b" in record.getMessage()]
    assert len(said) == 2
    assert "worse than useless" in said[0]
    assert "useful again" in said[1]


def test_a_limit_of_minus_one_only_measures(tmp_path: Path):
    """Then the gauge shows the harm and the ranker goes on."""
    with judged_gateway(tmp_path, drift_limit=-1.0) as (url, app, _):
        for length in LENGTHS:
            chat(url, length, 100 - length)
        eventually(lambda: counted(app, "pars_ranker_tau_b") == -1)

        assert is_in_use(app)


def test_without_drift_nothing_is_measured(tmp_path: Path):
    """PARS_DRIFT=0 leaves the ranker's metrics out."""
    with judged_gateway(tmp_path, drift=False) as (url, app, _):
        chat(url, 10, 10)

        assert app.registry.get_sample_value("pars_ranker_in_use") is None
        assert app.registry.get_sample_value("pars_ranker_tau_b") is None


# What counts


class Bench:
    """A judge of a ranker whose folder can be replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = CollectorRegistry()
        self.put("first")
        info = SimpleNamespace(score_quantiles=[0.0, 1.0], expected_tokens=[0.0, 1.0])
        loaded = SimpleNamespace(info=info, score=lambda prompts: np.zeros(len(prompts)))
        self.ranker = LiveRanker(folder, load=lambda _: loaded)
        self.ranker.refresh()
        settings = DriftSettings(window=10, min_answers=3, judge_every=1)
        self.judge = RankerJudge(self.ranker, settings, DriftMetrics(self.registry))

    def put(self, content: str) -> None:
        (self.folder / "ranker.json").write_text(content)

    def observe(self, expected: float | None, tokens: int | None, **fields: Any) -> None:
        values = {"ranker": self.ranker.fingerprint, "status": 200, **fields}
        self.judge.observe(
            Outcome(
                arrival_s=0.0,
                path="/v1/completions",
                decision="scored",
                expected_tokens=expected,
                answer_tokens=tokens,
                **values,
            )
        )

    def tau_b(self) -> float | None:
        self.judge.drift.judge()
        estimate = self.judge.drift.tau_b
        return None if estimate is None else round(estimate.value, 3)


def test_only_single_answers_that_this_ranker_predicted_count(tmp_path: Path):
    """Three answers in order are tau-b 1, whatever comes beside them."""
    bench = Bench(tmp_path)
    for expected in (1.0, 2.0, 3.0):
        bench.observe(expected, int(expected))
    bench.observe(9.0, 0, ranker="another")
    bench.observe(9.0, 0, num_answers=2)
    bench.observe(9.0, 0, num_prompts=2)
    bench.observe(9.0, 0, status=500)
    bench.observe(None, 0)
    bench.observe(9.0, None)

    assert bench.tau_b() == 1.0
    assert bench.judge.drift.num_answers == 3


def test_an_answer_cut_short_counts_as_longer(tmp_path: Path):
    """At 1 token cut short it proves nothing against 2 and 3 tokens: of four three make pairs."""
    bench = Bench(tmp_path)
    for expected in (1.0, 2.0, 3.0):
        bench.observe(expected, int(expected))
    bench.observe(9.0, 1, finish_reason="length")

    tau_b = bench.tau_b()

    assert tau_b is not None
    assert tau_b > 0.9
    assert bench.judge.drift.num_censored == 1


def test_a_newly_loaded_ranker_starts_afresh(tmp_path: Path):
    """What the one before it did is forgotten, and its late answers do not count."""
    bench = Bench(tmp_path)
    old = bench.ranker.fingerprint
    for expected in (3.0, 2.0, 1.0):
        bench.observe(expected, int(4 - expected))
    assert bench.tau_b() == -1.0

    bench.put("second, longer")
    assert bench.ranker.refresh() is True
    bench.judge.start_afresh()

    assert bench.ranker.fingerprint != old
    assert bench.judge.is_useful
    bench.observe(9.0, 1, ranker=old)
    assert bench.tau_b() is None
    assert bench.registry.get_sample_value("pars_ranker_in_use") == 1


def test_a_fingerprint_changes_with_any_byte_and_any_name(tmp_path: Path):
    """Equal folders have equal fingerprints, wherever they lie."""
    folders = [tmp_path / name for name in "abcd"]
    contents = [
        {"m": "1", "r": "2"},
        {"m": "1", "r": "2"},
        {"m": "1", "r": "3"},
        {"m": "1", "s": "2"},
    ]
    for folder, files in zip(folders, contents, strict=True):
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)

    first, equal, *others = map(fingerprint_of, folders)

    assert first == equal
    assert len({first, *others}) == 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("drift_limit", 2.0, "drift_limit: must be from -1 to less than 1, not 2.0"),
        ("drift_window", 2, "drift_window: must be 3 or more, not 2"),
        ("outcome_max_bytes", 5, "outcome_max_bytes: must be at least 32768: 5"),
        ("outcome_redact", "re", "outcome_redact: 're' is not package.module:function"),
    ],
)
def test_settings_that_make_no_sense_are_named(name: str, value: Any, message: str):
    """The error names the setting and what would be right."""
    with pytest.raises(ParsError, match=message):
        Settings(**{name: value})


def test_a_folder_that_loads_slowly_does_not_outlive_the_one_asked_for_after_it(tmp_path: Path):
    """Such as on SIGHUP, just before an operator asks for another."""
    entered, gate = threading.Event(), threading.Event()
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "ranker.json").write_text(folder.name)

    def load(folder: Path) -> Any:
        if folder == old:
            entered.set()
            assert gate.wait(DEADLINE_S)
        return SimpleNamespace(info=SimpleNamespace(model_name=folder.name))

    live = LiveRanker(old, load=load)
    reading_again = threading.Thread(target=live.refresh)
    reading_again.start()
    assert entered.wait(DEADLINE_S)
    changing = threading.Thread(target=live.load_from, args=(new,))
    changing.start()
    changing.join(0.1)  # as long as it would take by itself
    gate.set()
    reading_again.join()
    changing.join()

    assert live.model_name == "new"
