"""Figures from times, with answers worked out by hand."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pars.errors import DataError, ParsError
from pars.prove.report.gain import compared
from pars.prove.report.goodput import parse_limits
from pars.prove.report.latency import figures
from pars.prove.report.times import (
    QueueSample,
    RequestTimes,
    Result,
    ResultWriter,
    Run,
    bucket_s,
    itl_bucket,
    itl_counts,
    read_result,
)
from pars.prove.report.verdict import seconds, share_text, verdict


def times(name, policy="fcfs", *, due=0.0, first=1.0, end=2.0, tokens=2, **more):
    return RequestTimes(
        request_id=str(name),
        policy=policy,
        arrival_s=due,
        first_token_s=first,
        finished_s=end,
        prompt_tokens=5,
        output_tokens=tokens,
        **more,
    )


def run(policy="fcfs", *, duration=10.0, waiting=(), **more):
    queue = tuple(QueueSample(float(i), 1, n) for i, n in enumerate(waiting))
    return Run(policy=policy, duration_s=duration, queue=queue, **more)


def result(requests, runs=(), *, interrupted=False, kind="bench"):
    return Result({"kind": kind}, list(requests), list(runs), interrupted)


def only(requests, runs=(), limits=None):
    [row] = figures(result(requests, runs), limits)
    return row


def test_delays_of_one_request():
    """Due at 1, first token at 3, last of five at 7: TTFT 2, end-to-end 6, TPOT 4/4, NTPOT 6/5."""
    row = only([times(1, due=1.0, first=3.0, end=7.0, tokens=5)])

    means = {name: spread.mean for name, spread in row.measures.items()}
    assert means == {"ttft_s": 2.0, "e2e_s": 6.0, "tpot_s": 1.0, "ntpot_s": 1.2}
    assert row.longest_wait_s == 2.0


def test_an_answer_of_one_token_has_no_tpot():
    """It enters the other means; TPOT is the other request's alone: (9 - 1) / (5 - 1)."""
    row = only([times(1, first=3.0, end=3.0, tokens=1), times(2, first=1.0, end=9.0, tokens=5)])

    assert row.measures["tpot_s"].mean == 2.0
    assert row.measures["ntpot_s"].mean == pytest.approx((3.0 + 1.8) / 2)


def test_delays_count_from_when_a_request_was_due():
    """Sent 4 s late and answered 1 s later, it waited 5 s; the lateness is told."""
    row = only([times(1, due=1.0, sent_s=5.0, first=6.0, end=7.0)])

    assert row.measures["ttft_s"].mean == 5.0
    assert (row.mean_late_s, row.most_late_s) == (4.0, 4.0)


def test_percentiles_and_the_mean_of_each_repeat():
    """Waits 0 to 100: median 50, p90 90, p99 99, worst 100; repeats of 0..50 and 51..100."""
    row = only([times(n, first=float(n), end=101.0, repeat=int(n > 50)) for n in range(101)])

    wait = row.measures["ttft_s"]
    assert (wait.mean, wait.p50, wait.p90, wait.p99, wait.worst) == (50, 50, 90, 99, 100)
    assert wait.of_each_repeat == (25.0, 75.5)


def test_intervals_between_tokens_come_from_counts():
    """98 of 0.1 s and two of 1 s: median 0.1, p99 1, each within 1%; the worst is exact."""
    counted = run(itl_counts=itl_counts([0.1] * 98 + [1.0] * 2))
    row = only([times(1, longest_itl_s=1.004)], [counted])

    itl = row.measures["itl_s"]
    assert itl.p50 == pytest.approx(0.1, rel=0.011)
    assert itl.p99 == pytest.approx(1.0, rel=0.011)
    assert itl.mean == pytest.approx(0.118, rel=0.011)
    assert itl.worst == 1.004


@given(st.floats(1e-6, 1e4))
def test_a_bucket_is_right_within_one_percent(interval_s: float):
    """The middle of an interval's bucket is at most 1% from it."""
    assert bucket_s(itl_bucket(interval_s)) == pytest.approx(interval_s, rel=0.0101)


def test_errors_are_counted_by_kind_and_enter_no_mean():
    """Of four requests two failed, one without an answer; the mean is of the two others."""
    row = only(
        [
            times(1, first=1.0),
            times(2, first=3.0, end=4.0),
            times(3, first=999.0, end=999.0, error="HTTP 429"),
            times(4, first=None, end=None, tokens=0),
        ]
    )

    assert row.errors == {"HTTP 429": 1, "no answer": 1}
    assert (row.num_requests, row.num_ended_well) == (4, 2)
    assert row.measures["ttft_s"].mean == 2.0


def test_throughput_is_over_the_runs_durations():
    """Two runs of 10 s, three requests with two tokens each: 0.15 requests/s, 0.3 tokens/s."""
    requests = [times(1), times(2), times(1, repeat=1), times(2, repeat=1, error="HTTP 500")]
    row = only(requests, [run(), run(repeat=1)])

    assert row.throughput_rps == pytest.approx(0.15)
    assert row.throughput_tokens_s == pytest.approx(0.3)


def test_goodput_counts_requests_that_keep_every_limit():
    """Of four, one waits too long and one failed: two in 10 s, half of all."""
    requests = [times(1), times(2), times(3, first=3.0, end=4.0), times(4, error="HTTP 500")]
    limits = parse_limits("ttft_s:2, ntpot_s:1")
    row = only(requests, [run()], limits)

    assert (row.goodput_rps, row.share_good) == (0.2, 0.5)


@pytest.mark.parametrize("text", ["ttft:1", "ttft_s", "ttft_s:0", "ttft_s:-1", "ntpot_s:nan"])
def test_a_wrong_limit_is_named(text: str):
    """The message names the part that is wrong and what could stand there."""
    with pytest.raises(ParsError, match=r"--goodput: .*want MEASURE:SECONDS with one of ttft_s"):
        parse_limits(text)


def test_thirds_share_their_bounds_over_policies():
    """Lengths 1..9 make thirds of three; a policy without long answers has no long third."""
    some = [times(n, first=float(n), end=10.0, tokens=n) for n in range(1, 10)]
    rows = figures(result([*some, times(1, "oracle", first=0.5, tokens=1)]))

    thirds = rows[0].thirds
    assert [thirds[name]["num_requests"] for name in ("short", "middle", "long")] == [3, 3, 3]
    assert [thirds[name]["ttft_s"] for name in ("short", "middle", "long")] == [2.0, 5.0, 8.0]
    assert set(rows[1].thirds) == {"short"}


def test_the_queue_is_told_from_looks_at_a_busy_engine():
    """Looks with nothing in the engine say nothing; preemptions of repeats add up."""
    idle = QueueSample(9.0, 0, 0)
    first = Run(
        policy="fcfs", duration_s=1.0, num_preemptions=2, queue=(QueueSample(0, 4, 6), idle)
    )
    second = Run(
        policy="fcfs", duration_s=1.0, repeat=1, num_preemptions=3, queue=(QueueSample(0, 2, 0),)
    )
    row = only([times(1), times(1, repeat=1)], [first, second])

    assert row.num_preemptions == 5
    assert row.queue is not None
    assert (row.queue.mean_waiting, row.queue.most_waiting, row.queue.share_queued) == (3.0, 6, 0.5)


def three(fcfs=10.0, ranker=4.0, oracle=2.0, *, num=4, repeats=1):
    """Requests of one token that end at these times under each policy."""
    ends = {"fcfs": fcfs, "ranker": ranker, "oracle": oracle}
    return [
        times(n, policy, first=end, end=end, tokens=1, repeat=repeat)
        for policy, end in ends.items()
        for n in range(num)
        for repeat in range(repeats)
    ]


def test_share_of_the_gain():
    """From 10 to 4 where 2 was possible: 6 of 8, and 2.5 times; all requests alike: no width."""
    found = compared(result(three(repeats=2)), "ranker")

    assert found is not None
    assert found.share is not None
    assert (found.share.value, found.share.low, found.share.high) == (0.75, 0.75, 0.75)
    assert (found.speedup, found.num_requests) == (2.5, 8)


def test_only_requests_that_ended_well_under_all_are_compared():
    """A request that failed under the oracle counts nowhere, however slow it was under fcfs."""
    broken = [
        times("x", "fcfs", first=1000.0, end=1000.0, tokens=1),
        times("x", "ranker", first=1000.0, end=1000.0, tokens=1),
        times("x", "oracle", error="HTTP 500"),
    ]
    found = compared(result([*three(), *broken]), "ranker")

    assert found is not None
    assert (found.base_mean, found.policy_mean, found.best_mean) == (10.0, 4.0, 2.0)


def test_the_interval_holds_the_spread_of_repeats():
    """Repeats with shares 1/2 and 1: the interval reaches from one to the other."""
    noisy = [
        times(n, policy, first=end, end=end, tokens=1, repeat=repeat)
        for repeat, ends in enumerate(({"fcfs": 6, "ranker": 4, "oracle": 2}, (6, 2, 2)))
        for policy, end in zip(("fcfs", "ranker", "oracle"), dict_or(ends), strict=True)
        for n in range(50)
    ]
    found = compared(result(noisy), "ranker")

    assert found is not None
    assert found.share is not None
    assert (found.share.low, found.share.value, found.share.high) == (0.5, 0.75, 1.0)


def test_many_requests_are_resampled_in_groups():
    """Of 5,000 requests in 2,000 groups, none is lost: the share stays what it is."""
    found = compared(result(three(num=5000)), "ranker", num_resamples=50)

    assert found is not None
    assert found.share is not None
    assert found.share.low == pytest.approx(0.75)
    assert found.share.high == pytest.approx(0.75)


def dict_or(ends):
    return tuple(ends.values()) if isinstance(ends, dict) else ends


def test_without_a_gain_of_the_oracles_there_is_no_share():
    """Where fcfs was as good as the oracle, the share is undefined and shown as a dash."""
    found = compared(result(three(fcfs=2.0, ranker=2.0)), "ranker")

    assert found is not None
    assert found.share is not None
    assert math.isnan(found.share.value)
    assert share_text(found.share) == "-"


def verdict_of(requests, runs=(), **more):
    whole = result(requests, runs, **more)
    return verdict(whole, figures(whole))


def test_the_verdict_in_one_sentence():
    """It names both means, the factor, the share and what became of the longest wait."""
    requests = three()
    requests += [times("l", p, first=w, end=w, tokens=1) for p, w in
                 (("fcfs", 28.0), ("ranker", 30.0), ("oracle", 30.0))]  # fmt: skip
    told = verdict_of(requests, [run(p, waiting=[5, 5]) for p in ("fcfs", "ranker", "oracle")])

    assert told.startswith("ranker cut mean NTPOT from 13.6 s to 9.20 s (1.48x), 73% [")
    assert told.endswith("] of what perfect knowledge would give; the longest wait rose from"
                         " 28.0 s to 30.0 s.")  # fmt: skip


def test_the_verdict_says_when_there_was_no_queue():
    """Nothing waited, so whatever the means did is no gain of order."""
    told = verdict_of(three(), [run(waiting=[0] * 40), run("ranker", waiting=[0] * 40)])

    assert told.startswith("there was no queue: under fcfs, requests waited at only 0%")
    assert "nothing could be gained" in told


def test_the_verdict_asks_about_the_engine_when_a_queue_came_to_nothing():
    """Many waited and the oracle changed nothing: the engine does not obey priorities."""
    told = verdict_of(three(2.0, 2.0, 2.0), [run(waiting=[50] * 4)])

    assert told.endswith("does the engine run with --scheduling-policy priority?")


def test_the_verdict_says_when_a_policy_did_harm():
    """A larger mean is called so."""
    told = verdict_of(three(ranker=20.0), [run(waiting=[5])])

    assert told.startswith("ranker RAISED mean NTPOT from 10.0 s to 20.0 s (2.0x), -125% ")


def test_the_verdict_begins_with_what_makes_it_doubtful():
    """An interrupted run and failed requests come before every figure."""
    told = verdict_of([*three(), times("x", error="HTTP 500")], interrupted=True)

    assert told.startswith("INTERRUPTED, so these are the figures of a part; 1 of 13 requests"
                           " FAILED and are in no figure: ranker cut")  # fmt: skip


def test_the_verdict_is_about_the_highest_load():
    """At the low load nothing was gained, at the high one 2.5 times."""
    low = [times(1, p, first=2.0, rate=1.0) for p in ("fcfs", "ranker", "oracle")]
    high = [times(1, p, first=w, end=w, tokens=1, rate=9.0) for p, w in
            (("fcfs", 10.0), ("ranker", 4.0), ("oracle", 2.0))]  # fmt: skip

    assert "(2.5x) at 9 requests/s" in verdict_of([*high, *low])


def test_nothing_ended_well():
    """With no answer at all the verdict is a sentence, not a traceback."""
    told = verdict_of([times(1, error="HTTP 500"), times(1, "ranker", error="HTTP 500")])

    assert told.endswith("no request ended well under fcfs, so there is nothing to compare with.")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0582, "58.2 ms"),
        (0.27, "0.27 s"),
        (9.94, "9.94 s"),
        (38.2, "38.2 s"),
        (382.4, "382 s"),
        (None, "-"),
    ],
)
def test_seconds_for_people(value: float | None, told: str):
    """Milliseconds where they are shorter, three digits at most."""
    assert seconds(value) == told


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 10**6)), max_size=20))
def test_a_result_is_read_as_it_was_written(tmp_path_factory, values):
    """Requests and runs come back to the microsecond, in their order."""
    folder = tmp_path_factory.mktemp("result")
    requests = [
        times(n, due=at, first=at, end=at, tokens=tokens, error="HTTP 500" if n % 2 else None)
        for n, (at, tokens) in enumerate(values)
    ]
    with ResultWriter(folder, {"kind": "bench"}) as writer:
        writer.add(*requests)
        writer.add_run(run(waiting=[3, 4], itl_counts={-3: 7}))
        writer.end(interrupted=False)

    found = read_result(folder)

    assert [r.output_tokens for r in found.requests] == [r.output_tokens for r in requests]
    assert [r.error for r in found.requests] == [r.error for r in requests]
    assert [r.arrival_s for r in found.requests] == pytest.approx(
        [r.arrival_s for r in requests], abs=1e-6
    )
    assert found.runs == [run(waiting=[3, 4], itl_counts={-3: 7})]
    assert not found.interrupted


def test_a_result_without_its_end_was_interrupted(tmp_path):
    """Killed in the middle of a line, what was whole is there and said to be a part."""
    with ResultWriter(tmp_path, {"kind": "bench"}) as writer:
        writer.add(times(1), times(2))
    with writer.path.open("ab") as file:
        file.write(b'{"request_id": "3", "pol')

    found = read_result(tmp_path)

    assert [r.request_id for r in found.requests] == ["1", "2"]
    assert found.interrupted


def test_an_interrupted_result_is_continued_run_by_run(tmp_path):
    """Finished runs are kept; requests of an unfinished one are dropped, to be made again."""
    with ResultWriter(tmp_path, {"kind": "simulate"}) as writer:
        writer.add(times(1))
        writer.add_run(run())
        writer.add(times(1, "oracle"))

    with ResultWriter(tmp_path, {"kind": "simulate"}, kept=read_result(tmp_path)) as writer:
        writer.add(times(2, "oracle"))
        writer.end(interrupted=False)

    found = read_result(tmp_path)
    assert [(r.policy, r.request_id) for r in found.requests] == [("fcfs", "1"), ("oracle", "2")]


def test_a_result_is_not_overwritten(tmp_path):
    """A folder that holds one is refused, and says what to do."""
    ResultWriter(tmp_path, {}).__exit__()

    with pytest.raises(ParsError, match="choose another --output-dir"):
        ResultWriter(tmp_path, {})


@pytest.mark.parametrize("line", ['{"request_id": 1, "colour": 2}', "no json", "[]", '{"run": 3}'])
def test_a_damaged_line_is_named(tmp_path, line: str):
    """Row 2 of the file is not what a result holds."""
    (tmp_path / "requests.jsonl").write_text(json.dumps({"pars_result": 1}) + f"\n{line}\n")

    with pytest.raises(DataError, match=r"requests.jsonl, row 2: no line of a result"):
        read_result(tmp_path)
