"""The doctor: what it says of servers that are healthy, misconfigured, foreign, slow or gone."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from gateways import gateway_to
from pars.cli.main import commands
from pars.doctor.doctor import DoctorOptions, diagnose
from pars.doctor.engine import POLICY
from pars.doctor.findings import OK, PROBLEM, UNKNOWN, Finding, Report
from pars.doctor.metrics_page import MetricsPage
from pars.doctor.outcomes import longest_overtake_s, ranker_finding, waits_finding
from pars.doctor.traffic import REMEDIES
from pars.doctor.watch import Look, looks
from pars.errors import ParsError
from pars.outcomes.metrics import FAILED_OPEN
from pars.outcomes.records import Outcome
from pars.prove.engine.step_time import EnginePreset
from pars.prove.fake_engine.server import FakeEngine as SteppingEngine

from fake_engine import FakeEngine
from serving import DEADLINE_S, eventually, serve_in_thread

Page = str | tuple[int, str] | list[str] | Callable[[], str]
VERSION = '{"version": "0.32.0"}'
HTML = "<!doctype html><title>Welcome</title>"


class Pages:
    """A server of fixed pages: text, (status, text), texts in turn, or what a call returns."""

    def __init__(self, pages: dict[str, Page], everything_else: Page = (404, "{}")) -> None:
        self._pages = pages
        self._everything_else = everything_else
        self.asked: list[tuple[str, dict[bytes, bytes]]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
            return
        self.asked.append((scope["path"], dict(scope["headers"])))
        page = self._pages.get(scope["path"], self._everything_else)
        if isinstance(page, list):
            page = page.pop(0) if len(page) > 1 else page[0]
        if callable(page):
            page = await asyncio.to_thread(page)
        status, text = page if isinstance(page, tuple) else (200, page)
        headers = [(b"content-length", b"%d" % len(text.encode()))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})


def vllm_page(
    *,
    running: int = 8,
    waiting: int = 3,
    preempted: int = 0,
    waited: tuple[float, int] = (0.0, 0),
    policy: int | None = None,
    decisions: dict[str, int] | None = None,
) -> str:
    """vLLM's metrics, with pars' among them where there are `decisions`."""
    at = '{engine="0",model_name="m"}'
    seconds, count = waited
    lines = [
        "# HELP vllm:num_requests_running Number of requests in model execution batches.",
        f"vllm:num_requests_running{at} {running}.0",
        f"vllm:num_requests_waiting{at} {waiting}.0",
        f"vllm:num_preemptions_total{at} {preempted}.0",
        f"vllm:request_queue_time_seconds_sum{at} {seconds}",
        f"vllm:request_queue_time_seconds_count{at} {count}.0",
    ]
    if policy is not None:
        lines.append(f"pars_engine_schedules_by_priority {policy}.0")
    for outcome, number in (decisions or {}).items():
        lines.append(f'pars_decisions_total{{outcome="{outcome}"}} {number}.0')
    return "\n".join(lines) + "\n"


@contextmanager
def served(pages: dict[str, Page], everything_else: Page = (404, "{}")) -> Iterator[str]:
    with serve_in_thread(Pages(pages, everything_else)) as url:
        yield url


def vllm(*metrics: str) -> dict[str, Page]:
    return {"/version": VERSION, "/health": "", "/metrics": list(metrics)}


def seen_at(url: str, **options: Any) -> dict[str, Finding]:
    """Findings by name, of one or two looks."""
    report = diagnose(DoctorOptions(endpoint=url, **{"watch_s": 0.01, **options}))
    return {finding.name: finding for finding in report.findings}


def verdicts(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.verdict for name, finding in findings.items()}


def outcomes_of(count: int, score_of: Callable[[int], float], **fields: Any) -> list[Outcome]:
    """Streamed answers of different lengths, one a second, none of which waited."""
    lengths = random.Random(0).sample(range(1, 10 * count), count)
    return [
        Outcome(
            **{
                "arrival_s": float(number),
                "path": "/v1/completions",
                "decision": "scored",
                "ranker": "r",
                "model": "m",
                "score": score_of(length),
                "expected_tokens": float(length),
                "answer_tokens": length,
                "finish_reason": "stop",
                "status": 200,
                "wait_s": 0.0,
                "total_s": length * 0.02,
                **fields,
            }
        )
        for number, length in enumerate(lengths)
    ]


def written(folder: Path, outcomes: list[Outcome]) -> Path:
    folder.mkdir()
    lines = b"".join(outcome.to_line() for outcome in outcomes)
    (folder / "outcomes-20261124T150405Z-1-000001.jsonl").write_bytes(lines)
    return folder


def test_a_healthy_server_is_all_ok(tmp_path):
    """Priority scheduling, pars in it, a queue, and a ranker that orders: exit code 0."""
    page = vllm_page(policy=1, decisions={"scored": 990, "over_budget": 2})
    folder = written(tmp_path / "outcomes", outcomes_of(200, float))
    with served(vllm(page)) as url:
        options = DoctorOptions(endpoint=url, watch_s=0.01, outcomes=folder)
        report = diagnose(options)

    assert {it.verdict for it in report.findings} == {OK}, report.render()
    assert report.exit_code == 0
    assert report.summary.startswith("pars helps: requests wait")


def test_a_vllm_that_ignores_priorities_is_told_what_to_do():
    """First come first served is a problem, names the option, and is what the summary says."""
    with served(vllm(vllm_page(policy=0, decisions={"scored": 5}))) as url:
        report = diagnose(DoctorOptions(endpoint=url, watch_s=0))

    found = {it.name: it for it in report.findings}["scheduling"]
    assert found.verdict == PROBLEM
    assert "--scheduling-policy priority" in found.change
    assert report.exit_code == 1
    assert "first come, first served" in report.summary


def test_what_is_not_known_is_no_problem_and_says_how_to_find_out():
    """An unknown policy, and a ranker without outcomes, leave the exit code at 0."""
    with served(vllm(vllm_page(policy=-1, decisions={"scored": 5}))) as url:
        report = diagnose(DoctorOptions(endpoint=url + "/v1/", watch_s=0))

    found = {it.name: it for it in report.findings}
    assert found["scheduling"].verdict == found["ranker"].verdict == UNKNOWN
    assert "--probe" in found["scheduling"].change
    assert "--outcomes" in found["ranker"].change
    assert report.exit_code == 0


def test_a_server_without_pars_is_told_how_to_get_it():
    """Its queue is seen all the same."""
    with served(vllm(vllm_page())) as url:
        found = seen_at(url)

    assert found["decisions"].verdict == PROBLEM
    assert "pars.middleware.PriorityMiddleware" in found["decisions"].change
    assert found["queue"].numbers["has_queue"] is True


def test_no_queue_means_nothing_to_gain():
    """That is no fault, and the summary says it."""
    with served(vllm(vllm_page(waiting=0, policy=1, decisions={"scored": 5}))) as url:
        report = diagnose(DoctorOptions(endpoint=url, watch_s=0))

    assert report.summary.startswith("Nothing to gain")
    assert report.exit_code == 0


def test_requests_without_a_score_are_a_problem_with_a_remedy():
    """Of the hundred requests that came while it looked, ten were over budget."""
    before = vllm_page(policy=1, decisions={"scored": 1000, "over_budget": 0})
    after = vllm_page(policy=1, decisions={"scored": 1090, "over_budget": 10})
    with served(vllm(before, after)) as url:
        found = seen_at(url)["decisions"]

    assert found.verdict == PROBLEM
    assert found.told.startswith("90 of 100 requests scored just now, 10 over_budget")
    assert "PARS_BUDGET_MS" in found.change


def test_every_way_to_go_without_a_score_has_a_remedy():
    """So that no line of decisions ends without what to change."""
    assert set(FAILED_OPEN) <= set(REMEDIES)


@pytest.mark.parametrize(("low", "verdict"), [("0.35", OK), ("-0.05", PROBLEM), ("NaN", UNKNOWN)])
def test_a_server_that_judges_its_ranker_is_believed(low, verdict):
    """Without outcomes at hand its own tau-b counts, by the interval's lower end."""
    value = "NaN" if low == "NaN" else "0.4"
    judged = (
        f"pars_ranker_tau_b {value}\npars_ranker_tau_b_low {low}\npars_ranker_tau_b_high 0.45\n"
    )
    with served(vllm(vllm_page() + judged)) as url:
        found = seen_at(url)["ranker"]

    assert found.verdict == verdict


def test_waits_and_preemptions_are_those_of_the_time_watched():
    """Three more requests waited six more seconds: two each; five were preempted."""
    before = vllm_page(waited=(100.0, 10), preempted=7)
    after = vllm_page(waited=(106.0, 13), preempted=12, waiting=20)
    with served(vllm(before, after)) as url:
        found = seen_at(url)

    assert "2.00 s in the queue in the mean just now" in found["queue"].told
    assert found["queue"].told.startswith("up to 20 wait, in 2 of 2 looks")
    assert found["preemptions"].verdict == PROBLEM
    assert found["preemptions"].numbers == {"watched": 5, "since_start": 12}


@pytest.mark.parametrize(
    ("told", "blocks", "verdict", "says"),
    [
        ("0.31 0.25 0.37", 12, OK, "31% shorter in order than in held-out windows [25%, 37%]"),
        ("-0.2 -0.3 -0.1", 12, PROBLEM, "20% LONGER in order"),
        ("0.1 -0.1 0.3", 12, UNKNOWN, "10% shorter in order"),
        ("0.3 NaN NaN", 1, UNKNOWN, "1 blocks of windows are over; 4 are needed"),
    ],
)
def test_held_out_windows_are_judged_by_their_interval(told, blocks, verdict, says):
    """As a gateway with a holdout tells it; without one nothing is said."""
    names = ("", "_low", "_high")
    page = vllm_page() + f"pars_holdout_blocks {blocks}.0\n"
    for end, value in zip(names, told.split(), strict=True):
        page += f"pars_holdout_gain_ratio{end} {value}\n"
    with served(vllm(page)) as url, served(vllm(vllm_page())) as plain:
        found = seen_at(url)["holdout"]
        assert "holdout" not in seen_at(plain)

    assert found.verdict == verdict
    assert says in found.told


def test_each_data_parallel_rank_has_a_queue_of_its_own():
    """Two ranks are said."""
    page = vllm_page() + 'vllm:num_requests_waiting{engine="1",model_name="m"} 0.0\n'
    with served(vllm(page)) as url:
        found = seen_at(url)

    assert found["ranks"].numbers == {"ranks": 2}


def test_what_is_to_be_changed_in_sglang_is_a_problem():
    """Preemption, and a name for the engine that would turn the order round."""
    info = {
        "enable_priority_scheduling": True,
        "schedule_low_priority_values_first": True,
        "disable_priority_preemption": False,
    }
    with served({"/server_info": json.dumps(info)}) as url:
        alone = diagnose(DoctorOptions(endpoint=url, watch_s=0)).findings
        reversed_too = diagnose(DoctorOptions(endpoint=url, watch_s=0, engine="sglang")).findings

    assert ["--disable-priority-preemption" in it.told for it in alone if it.name == "engine"] == [
        True
    ]
    warned = [it for it in reversed_too if it.name == "engine"]
    assert [it.verdict for it in warned] == [PROBLEM, PROBLEM]
    assert "REVERSED" in warned[0].told


@pytest.mark.parametrize(("has_priority", "verdict"), [(True, OK), (False, PROBLEM)])
def test_sglang_is_known_by_its_own_pages(has_priority, verdict):
    """Whether it takes priorities, which way round, and its queue by its own names."""
    info = {
        "enable_priority_scheduling": has_priority,
        "schedule_low_priority_values_first": True,
    }
    metrics = "sglang:num_running_reqs 4.0\nsglang:num_queue_reqs 2.0\n"
    pages: dict[str, Page] = {"/server_info": json.dumps(info), "/metrics": metrics}
    with served(pages) as url:
        found = seen_at(url)

    assert found["priority"].verdict == verdict
    assert "SGLang" in found["priority"].told
    assert found["queue"].numbers["most_waiting"] == 2


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_that_only_answers_errors_is_down(status):
    """A worker that died, a proxy without its server, a model that loads: nothing else is said."""
    with served({}, everything_else=(status, "{}")) as url:
        report = diagnose(DoctorOptions(endpoint=url))

    [found] = report.findings
    assert (found.name, found.verdict) == ("endpoint", PROBLEM)
    assert f"HTTP {status}" in found.told
    assert report.exit_code == 3


@pytest.mark.parametrize("engine", ["auto", "vllm"])
@pytest.mark.parametrize("version", ["503", "refused", "silent"])
def test_a_gateway_whose_server_is_down_is_told_from_a_gateway_that_is(tmp_path, engine, version):
    """The gateway answers; the line of the upstream is the problem, and the only one."""
    is_over = threading.Event()

    def hangs() -> str:
        is_over.wait(DEADLINE_S)
        return ""

    page: Page = hangs if version == "silent" else (503, "loading")
    with served({}, everything_else=page) as url:
        url = "http://127.0.0.1:1" if version == "refused" else url
        with gateway_to(url, tmp_path) as (gateway, _):
            report = diagnose(DoctorOptions(endpoint=gateway, engine=engine, watch_s=0))
            is_over.set()

    found = {it.name: it for it in report.findings}
    assert verdicts(found) == {"endpoint": OK, "upstream": PROBLEM}
    assert url in found["upstream"].told
    why = {"refused": "cannot connect", "503": "HTTP 503", "silent": "did not answer within 3"}
    assert why[version] in found["upstream"].told
    assert report.exit_code == 1
    assert "is down" in report.summary


def test_sglang_s_counts_for_each_priority_are_not_added_to_that_of_all():
    """Three wait, of three priorities."""
    lines = ['sglang:num_queue_reqs{priority=""} 3.0', "sglang:num_running_reqs 1.0"]
    lines += [f'sglang:num_queue_reqs{{priority="{number}"}} 1.0' for number in range(3)]
    page = MetricsPage.parse("\n".join(lines))

    assert page.total("vllm:num_requests_waiting", "sglang:num_queue_reqs") == 3
    assert page.total("sglang:num_running_reqs") == 1


@pytest.mark.parametrize("page", [HTML, (404, HTML), (200, "")])
def test_a_foreign_server_gets_one_clear_line_a_question(page):
    """HTML and 404 everywhere: no priorities, no metrics, no pars, and nothing raised."""
    with served({}, everything_else=page) as url:
        found = seen_at(url)

    assert verdicts(found) == {
        "endpoint": OK,
        "priority": PROBLEM,
        "scheduling": UNKNOWN,
        "decisions": PROBLEM,
        "queue": UNKNOWN,
        "ranker": UNKNOWN,
        "waits": UNKNOWN,
    }
    assert "neither vLLM nor SGLang" in found["priority"].told
    assert "/metrics" in found["queue"].told


def test_metrics_that_do_not_come_are_said():
    """The page hangs: that line is unknown, after the patience for one page and not for ever."""
    is_over = threading.Event()

    def hangs() -> str:
        is_over.wait(DEADLINE_S)
        return ""

    with served({"/version": VERSION, "/metrics": hangs}) as url:
        found = seen_at(url, patience_s=2.0)
        is_over.set()

    assert found["queue"].verdict == UNKNOWN
    assert "did not answer within 2 seconds" in found["queue"].told


def test_metrics_behind_a_key_are_said_and_had_with_it(monkeypatch):
    """401 names the variable; with a key in it every page is asked for with the key."""
    pages = Pages({"/version": VERSION, "/metrics": (401, "{}")})
    monkeypatch.setenv("PARS_API_KEYS", "k1,k2")
    with serve_in_thread(pages) as url:
        found = seen_at(url)

    assert "PARS_API_KEYS" in found["queue"].told
    assert dict(pages.asked)["/metrics"][b"authorization"] == b"Bearer k1"


def test_a_server_that_is_not_there_is_the_only_finding():
    """Which has an exit code of its own."""
    report = diagnose(DoctorOptions(endpoint="http://127.0.0.1:1"))

    assert [(it.name, it.verdict) for it in report.findings] == [("endpoint", PROBLEM)]
    assert report.exit_code == 3


@pytest.mark.parametrize("obeys", [True, False])
def test_the_probe_settles_what_no_page_tells(obeys):
    """It is asked for by name, and finds out by filling the server."""
    engine = FakeEngine(num_slots=1, token_s=0.01, obeys_priority=obeys)
    with engine.served() as url:
        found = seen_at(url, probe=True, patience_s=1.0)["scheduling"]

    assert found.verdict == (OK if obeys else PROBLEM)
    assert found.numbers["probed"] is obeys


def test_a_refused_probe_is_a_problem():
    """An engine that answers 400 to each priority does not schedule by it."""
    refusal = (400, "Got priority 7 but Priority scheduling is not enabled.")
    pages = {"/version": '{"version": "0.6.6"}', "/v1/completions": refusal}
    models = '{"data": [{"id": "m"}]}'
    with served({**pages, "/v1/models": models}) as url:
        report = diagnose(DoctorOptions(endpoint=url, watch_s=0, probe=True))

    found = {it.name: it for it in report.findings}["priority"]
    assert (found.verdict, report.exit_code) == (PROBLEM, 1)
    assert "refuses priorities" in found.told
    assert "--scheduling-policy priority" in found.change


@pytest.mark.parametrize("inside", [True, False])
def test_an_engine_that_refuses_priorities_is_named(tmp_path, inside):
    """As pars in vLLM counts it, and as a gateway's own page tells."""
    refused = vllm_page(policy=0, decisions={"scored": 5}) + "pars_priority_refusals_total 3.0\n"
    health = {"server": "pars gateway", "engine": "refuses priorities"}
    pages = {"/version": VERSION, "/metrics": refused if inside else vllm_page()}
    with served(pages | ({} if inside else {"/pars/health": json.dumps(health)})) as url:
        report = diagnose(DoctorOptions(endpoint=url, watch_s=0))

    found = {it.name: it for it in report.findings}
    assert found["priority"].verdict == PROBLEM
    assert found["scheduling"].verdict == UNKNOWN
    assert "the engine refuses priorities" in report.summary
    assert report.exit_code == 1


@pytest.mark.parametrize(
    ("gain", "exceeded", "verdict", "told"),
    [
        (0.41, 0, OK, "41% shorter"),
        (0.0, 0, UNKNOWN, "as first come, first served"),
        (-0.2, 0, PROBLEM, "20% LONGER"),
        (0.41, 50, PROBLEM, "50 of 100 requests waited beyond the bound"),
    ],
)
def test_what_the_order_is_worth_is_said(
    gain: float, exceeded: int, verdict: str, told: str
) -> None:
    """With the number, and with what to do where it does harm."""
    page = vllm_page() + (
        f"pars_gain_ratio {gain}\npars_wait_gain_ratio 0.3\n"
        f"pars_bound_exceeded_total {exceeded}\n"
        'pars_requests_by_class_total{class="ordinary"} 100\n'
    )
    with served({"/version": VERSION, "/metrics": page}) as url:
        report = diagnose(DoctorOptions(endpoint=url, watch_s=0))

    [found] = [it for it in report.findings if it.name == "worth"]
    assert (found.verdict, told in found.told) == (verdict, True)


@pytest.mark.parametrize(("slots", "verdict"), [(4, OK), (None, UNKNOWN)])
def test_a_queue_held_in_the_gateway_is_an_order(slots: int | None, verdict: str) -> None:
    """An engine without priorities is no problem there."""
    held = {"num_waiting": 7, "num_at_engine": 6, "slots": slots, "slots_by": "the engine"}
    health = {"server": "pars gateway", "status": "ok", "engine": "none", "held": held}
    pages = {"/pars/health": json.dumps(health), "/pars/metrics": vllm_page()}
    with served(pages) as url:
        report = diagnose(DoctorOptions(endpoint=url, watch_s=0))

    found = {it.name: it for it in report.findings}
    assert (found["priority"].verdict, "7 wait" in found["priority"].told) == (verdict, True)
    assert "scheduling" not in found, "the engine need not go by priority"
    assert found["queue"].verdict == OK
    assert "the engine goes by priority" not in report.summary


def test_a_held_queue_that_requests_pass_by_is_a_problem() -> None:
    """More are sent on than the engine answers at once, so they wait there in order of arrival."""
    held = {"num_waiting": 0, "num_at_engine": 60, "slots": 64, "slots_by": "--slots"}
    health = {"server": "pars gateway", "status": "ok", "engine": "none", "held": held}
    metrics = f"{POLICY} 0\n"
    with served({"/pars/health": json.dumps(health), "/pars/metrics": metrics}) as url:
        found = seen_at(url)

    assert (found["scheduling"].verdict, "--slots" in found["scheduling"].change) == (PROBLEM, True)


def test_an_empty_folder_of_outcomes_is_no_problem_before_the_first_request(tmp_path) -> None:
    """After it, it is."""
    (tmp_path / "outcomes").mkdir()
    for num, verdict in ((0, UNKNOWN), (3, PROBLEM)):
        with served(vllm(vllm_page(decisions={"scored": num}))) as url:
            found = seen_at(url, outcomes=tmp_path / "outcomes")
        assert found["outcomes"].verdict == verdict


def test_a_bound_that_nobody_set_is_not_reported(tmp_path) -> None:
    """The default is a bound on the slowdown, not in seconds."""
    folder = written(tmp_path / "outcomes", contested(obeys=True))
    with served(vllm(vllm_page(decisions={"scored": 200}))) as url:
        found = seen_at(url, outcomes=folder)

    assert (found["waits"].verdict, "bound" in found["waits"].told) == (OK, False)


@pytest.mark.parametrize(
    ("engine", "told"), [("not known yet", "none is set"), ("none", "none is set")]
)
def test_a_gateway_that_sets_none_is_named(engine, told):
    """It does not know its engine yet, or was told that it takes none; vLLM or not."""
    health = {"server": "pars gateway", "engine": engine}
    pages = vllm(vllm_page(decisions={"unordered": 5})) | {"/pars/health": json.dumps(health)}
    with served(pages) as url:
        found = seen_at(url)

    assert found["priority"].verdict == PROBLEM
    assert told in found["priority"].told
    assert found["decisions"].verdict == PROBLEM


def contested(*, obeys: bool, count: int = 200) -> list[Outcome]:
    """Long and short requests by turns, a tenth of a second apart, that one slot serves."""
    waiting = [
        (number * 0.1, number * 0.1 + (30.0 if number % 2 else 0.0), number)
        for number in range(count)
    ]  # arrival, key, number
    outcomes, now_s = [], 0.0
    while waiting:
        here = [it for it in waiting if it[0] <= now_s] or [min(waiting)]
        taken = min(here, key=lambda it: it[1]) if obeys else min(here)
        waiting.remove(taken)
        arrival_s, key_s, number = taken
        now_s = max(now_s, arrival_s)
        outcomes.append(
            Outcome(
                arrival_s=arrival_s,
                path="/v1/completions",
                decision="scored",
                answer_tokens=10,
                expected_tokens=900.0 if number % 2 else 10.0,
                wait_s=now_s - arrival_s,
                engine_wait_s=now_s - arrival_s,
                total_s=now_s - arrival_s + 0.2,
                key=round(key_s * 1e6),
                prompt_tokens=10,
                status=200,
            )
        )
        now_s += 0.2
    return sorted(outcomes, key=lambda it: it.arrival_s)


@pytest.mark.parametrize("obeys", [True, False])
def test_recorded_requests_show_whether_the_engine_goes_by_priority(tmp_path, obeys):
    """Short requests that came later began first, or never did."""
    folder = written(tmp_path / "outcomes", contested(obeys=obeys))
    with served(vllm(vllm_page(decisions={"scored": 200}))) as url:
        report = diagnose(DoctorOptions(endpoint=url, watch_s=0, outcomes=folder))

    found = {it.name: it for it in report.findings}["scheduling"]
    assert found.verdict == (OK if obeys else PROBLEM)
    assert found.numbers["contests"] > 1000
    assert ("--scheduling-policy priority" in found.change) is not obeys
    assert ("ignores priorities" in report.summary) is not obeys


def test_few_requests_show_nothing(tmp_path):
    """Ten of them have a handful of contests: whether pars helps is not known, and said so."""
    folder = written(tmp_path / "outcomes", contested(obeys=False, count=10))
    with served(vllm(vllm_page(decisions={"scored": 10}))) as url:
        report = diagnose(DoctorOptions(endpoint=url, watch_s=0, outcomes=folder))

    assert {it.name: it for it in report.findings}["scheduling"].verdict == UNKNOWN
    assert report.summary.startswith("Whether pars helps is not known")


def test_it_says_which_ranker_serves():
    """What it is, its fingerprint and, behind a gateway, its folder; not one that served before."""
    info = (
        'pars_ranker_info{model="MiniLM",ranker="aaa"} 0.0\n'
        'pars_ranker_info{model="lite",ranker="bbb"} 1.0\n'
    )
    inside = vllm(vllm_page(decisions={"scored": 5}) + info)
    health = {"server": "pars gateway", "engine": "vllm", "ranker": {"folder": "/new"}}
    with served(inside) as url, served(inside | {"/pars/health": json.dumps(health)}) as gateway:
        found, behind = seen_at(url)["ranker"], seen_at(gateway)["ranker"]

    assert found.told.startswith("lite (bbb) serves; ")
    assert behind.told.startswith("lite (bbb) in /new serves; ")


def test_without_the_probe_nothing_is_generated():
    """Only pages are read."""
    engine = FakeEngine()
    with engine.served() as url:
        seen_at(url)

    assert {asked.method for asked in engine.asked} == {"GET"}
    assert engine.admitted == []


def test_a_gateway_and_the_queue_behind_it_are_seen_together(tmp_path):
    """Of four answers of minutes three wait in the engine, and the gateway scored all four."""
    engine = SteppingEngine.of_preset(EnginePreset.named("h100-8b"), max_num_seqs=1)
    body = {"prompt": "word", "max_tokens": 50_000, "stream": True}
    with (
        serve_in_thread(engine) as engine_url,
        gateway_to(engine_url, tmp_path) as (url, _),
        httpx.Client(timeout=DEADLINE_S) as client,
    ):
        threads = [
            threading.Thread(target=_ask_until_closed, args=(f"{url}/v1/completions", body, client))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        page = f"{engine_url}/metrics"
        eventually(lambda: MetricsPage.parse(httpx.get(page).text).total(WAITING) == 3)
        found = seen_at(url)
        STOP.set()
        for thread in threads:
            thread.join(DEADLINE_S)

    assert found["decisions"].told.startswith("4 of 4 requests scored")
    assert found["queue"].numbers["most_waiting"] == 3
    assert found["queue"].numbers["mean_running"] == 1


WAITING = "vllm:num_requests_waiting"
STOP = threading.Event()


def _ask_until_closed(url: str, body: dict[str, Any], client: httpx.Client) -> None:
    with client.stream("POST", url, json=body) as answer:
        for _ in answer.iter_lines():
            if STOP.is_set():
                return


def test_a_ranker_is_judged_by_its_latest_answers():
    """One that orders is ok; one that guesses or turns the order round is a problem."""
    guess = random.Random(1)

    good = ranker_finding(outcomes_of(200, float))
    chance = ranker_finding(outcomes_of(200, lambda _: guess.random()))
    bad = ranker_finding(outcomes_of(200, lambda length: -length))

    assert good.verdict == OK
    assert good.numbers["tau_b"]["value"] == 1
    assert chance.verdict == bad.verdict == PROBLEM
    assert "pars learn" in chance.change


def test_a_ranker_is_judged_for_each_of_the_busiest_models():
    """One that orders the answers of one model and not those of another is told by name."""
    well = outcomes_of(200, float, model="well")
    badly = outcomes_of(150, lambda length: -length, model="bad\nly")
    few = outcomes_of(99, float, model="few")

    found = ranker_finding([*few, *badly, *well])

    assert "(bad\\nly -1.00, well 1.00)" in found.told
    assert [it["value"] for it in found.numbers["tau_b_by_model"].values()] == [-1, 1]
    assert "tau_b_by_model" not in ranker_finding(well).numbers


def test_only_the_ranker_that_serves_now_is_judged():
    """Scores of two rankers cannot be compared: the old one's answers do not count."""
    old = outcomes_of(300, lambda length: -length, ranker="old")

    found = ranker_finding([*old, *outcomes_of(150, float, ranker="new")])

    assert (found.verdict, found.numbers["answers"]) == (OK, 150)


def test_too_few_answers_or_equal_ones_are_no_verdict():
    """99 are too few; one score for all, or limits that cut all, leave no order to judge."""
    assert ranker_finding(outcomes_of(99, float)).verdict == UNKNOWN
    assert ranker_finding([]).verdict == UNKNOWN
    assert ranker_finding(outcomes_of(200, lambda _: 1.0)).verdict == UNKNOWN
    cut_short = ranker_finding(outcomes_of(200, float, finish_reason="length"))
    assert cut_short.verdict == UNKNOWN
    assert cut_short.told.startswith("0 of its last 200 answers were not cut short")
    assert waits_finding([], 30.0).verdict == UNKNOWN


def queued(arrival_s: float, wait_s: float, *, tokens: int = 10, model: str = "m") -> Outcome:
    """A streamed answer that began so long after it came, and took a second more."""
    return Outcome(
        arrival_s=arrival_s,
        path="/v1/completions",
        decision="scored",
        model=model,
        expected_tokens=float(tokens),
        answer_tokens=tokens,
        wait_s=wait_s,
        total_s=wait_s + 1,
    )


def test_the_longest_overtake_is_of_the_latest_that_began_before():
    """The first begins at 50; those of 10 and 40 began before it, that of 60 did not."""
    one_queue = [queued(0, 50), queued(10, 5), queued(40, 1), queued(60, 0)]

    assert longest_overtake_s(one_queue) == 40
    assert longest_overtake_s([queued(0, 50), queued(40, 1, model="other")]) == 0
    assert longest_overtake_s([]) == 0


def test_starving_is_being_overtaken_beyond_the_bound():
    """A long answer that let pass what came 90 s later starves at T = 30, and not at T = 100."""
    steady = [queued(float(second), 0.5) for second in range(200)]
    starved = sorted([*steady, queued(50, 90, tokens=900)], key=lambda it: it.arrival_s)

    assert waits_finding(steady, 30.0).verdict == OK
    found = waits_finding(starved, 30.0)
    assert found.verdict == PROBLEM
    assert found.numbers["overtaken_s"] == 89
    assert found.numbers["longest_s"]["long"] == 90
    assert waits_finding(starved, 100.0).verdict == OK


def test_an_overloaded_server_starves_nobody_in_particular():
    """When waits grow for everybody alike, nobody is overtaken: that is no fault of the order."""
    overloaded = [queued(float(second), float(second)) for second in range(200)]

    found = waits_finding(overloaded, 30.0)

    assert (found.verdict, found.numbers["overtaken_s"]) == (OK, 0)


def test_an_answer_that_came_whole_tells_no_wait():
    """Without a stream its first byte is its last, and that is not when it began."""
    whole = [
        Outcome(
            arrival_s=float(number),
            path="/v1/completions",
            decision="scored",
            expected_tokens=900.0,
            answer_tokens=900,
            wait_s=20.0,
            total_s=20.001,
        )
        for number in range(200)
    ]

    assert waits_finding(whole, 30.0).numbers["answers"] == 0


def test_a_histogram_tells_the_longest_wait_without_outcomes():
    """Nobody waited more than 30 s, the bound: nobody can starve."""
    buckets = [("1.0", 5), ("5.0", 8), ("30.0", 9), ("+Inf", 9)]
    name = "vllm:request_queue_time_seconds_bucket"
    page = "".join(f'{name}{{le="{bound}"}} {count}\n' for bound, count in buckets)
    with served(vllm(vllm_page() + page)) as url:
        found = seen_at(url, max_overtake_s=30.0)["waits"]
        stricter = seen_at(url, max_overtake_s=10.0)["waits"]

    assert (found.verdict, found.numbers) == (OK, {"low_s": 5, "high_s": 30})
    assert stricter.verdict == UNKNOWN


def test_outcomes_are_read_and_their_state_is_said(tmp_path):
    """Damaged lines are counted; an empty folder is a problem, none at all is bad input."""
    folder = written(tmp_path / "outcomes", outcomes_of(5, float))
    with next(folder.iterdir()).open("a") as file:
        file.write('{"arrival_s": 1')
    (tmp_path / "empty").mkdir()
    with served(vllm(vllm_page())) as url:
        some = seen_at(url, outcomes=folder)
        none = seen_at(url, outcomes=tmp_path / "empty")
        with pytest.raises(ParsError, match="no such folder"):
            seen_at(url, outcomes=tmp_path / "missing")

    assert some["outcomes"].numbers["requests"] == 5
    assert some["outcomes"].numbers["damaged"] == 1
    assert none["outcomes"].verdict == PROBLEM


def test_the_command_prints_a_screen_or_json(tmp_path):
    """Both say the same, and the exit code is the report's."""
    with served(vllm(vllm_page())) as url:
        asked = ["doctor", "--endpoint", url, "--watch-s", "0"]
        screen = CliRunner().invoke(commands, asked)
        as_json = CliRunner().invoke(commands, [*asked, "--json"])

    report = json.loads(as_json.stdout)
    assert screen.exit_code == as_json.exit_code == report["exit_code"] == 1
    assert report["summary"].split()[:3] == ["pars", "cannot", "help"]
    assert all(finding["name"] in screen.stdout for finding in report["findings"])
    assert max(map(len, screen.stdout.splitlines())) <= 100


def test_watching_says_what_changed_and_nothing_else():
    """More requests wait: nothing is said. Priorities are ignored: it is said once."""
    well = vllm_page(policy=1, decisions={"scored": 5})
    busier = vllm_page(policy=1, decisions={"scored": 9}, waiting=8)
    ignored = vllm_page(policy=0, decisions={"scored": 9})
    with served(vllm(well, busier, ignored)) as url:
        first, second, third, fourth = islice(
            looks(DoctorOptions(endpoint=url, watch_s=0), every_s=0), 4
        )

    assert first.render() == first.report.render()
    assert (second.render(), second.changed) == ("", [])
    assert [it.name for it in third.changed] == ["scheduling"]
    assert "(before: ok)" in third.render()
    assert "--scheduling-policy priority" in third.render()
    assert third.report.summary in " ".join(third.render().split())
    assert fourth.render() == ""
    assert [it.report.exit_code for it in (first, second, third, fourth)] == [0, 0, 1, 1]


def test_a_server_that_goes_away_while_watched_is_one_line():
    """And what is no longer told is named."""
    up = Report("url", 0, [Finding("endpoint", OK, "answers"), Finding("queue", OK, "2 wait")])
    down = Report("url", 0, [Finding("endpoint", PROBLEM, "no answer", "start the server")])
    look = Look(0.0, down, up)

    assert [it.name for it in look.changed] == ["endpoint"]
    assert look.gone == ["queue"]
    assert "no longer told: queue" in look.render()
    assert look.as_json()["changed"] == ["endpoint"]
    assert look.as_json()["gone"] == ["queue"]


def test_watching_goes_on_until_ctrl_c_and_ends_with_the_last_look_s_code():
    """As JSON it is a line a look."""
    pages = vllm(vllm_page(policy=0, decisions={"scored": 5}))
    command = [sys.executable, "-m", "pars", "doctor", "--watch", "--watch-s", "0", "--json"]
    with (
        served(pages) as url,
        subprocess.Popen(
            [*command, "--endpoint", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)

    assert "scheduling" in seen[0]["changed"]
    assert seen[1]["changed"] == []
    assert seen[0]["at_s"] < seen[1]["at_s"]
    assert (process.returncode, errors) == (1, "")


def test_a_server_is_not_filled_again_and_again():
    """The probe is for one look."""
    with pytest.raises(ParsError, match="--probe"):
        next(looks(DoctorOptions(endpoint="http://h", probe=True)))


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint": "localhost:8000"},
        {"endpoint": "http://[::1"},
        {"endpoint": "http://ä..de"},
        {"endpoint": "http://h:99999"},
        {"endpoint": "http://h", "watch_s": -1.0},
        {"endpoint": "http://h", "watch_s": float("nan")},
        {"endpoint": "http://h", "max_overtake_s": -1.0},
        {"endpoint": "http://h", "engine": "tgi"},
    ],
)
def test_bad_input_is_one_line(options):
    """A ParsError, which the command line ends with 2."""
    with pytest.raises(ParsError):
        diagnose(DoctorOptions(**options))


def test_a_page_of_metrics_is_read_by_name_and_label():
    """Sums over labels, means and bounds of histograms, and what was counted in between."""
    text = (
        'a_total{x="1",y="say \\"hi\\", {}"} 2\na_total{x="2"} 3 1700000000\nb NaN\nb_sum 6\n'
        'b_count 3\nb_bucket{le="1"} 0\nb_bucket{le="2"} 3\nb_bucket{le="+Inf"} 3\nnonsense\n'
    )
    page = MetricsPage.parse(text)
    later = MetricsPage.parse('a_total{x="2"} 10\na_total{x="3"} 1\nb_sum 2\n')

    assert page.total("none", "a_total") == 5
    assert page.total("none") is None
    assert page.by("a_total", "x") == {"1": 2, "2": 3}
    assert page.mean("b") == 2
    assert page.most("b") == (1, 2)
    assert later.since(page).by("a_total", "x") == {"2": 7, "3": 1}
    assert later.since(page).total("b_sum") == 2, "a counter that began anew"


def test_the_summary_names_what_is_not_known():
    """When nothing is wrong and not all is known, that is what is said."""
    queue = Finding("queue", OK, "up to 3 wait", "", {"has_queue": True})
    report = Report("http://h", 1.0, [queue, Finding("ranker", UNKNOWN, "no outcomes")])

    assert report.summary.endswith("not known: ranker.")
