"""Workloads: records joined with arrivals, the same from the same seed, and errors with a place."""

import gzip
import json
from itertools import pairwise
from statistics import mean, stdev

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pars.cli.main import commands
from pars.errors import DataError, ParsError
from pars.prove.workload.arrivals import gamma, mean_rate, poisson, scaled
from pars.prove.workload.make_workload import WorkloadPlan, make_workload
from pars.prove.workload.traces import read_trace
from pars.prove.workload.workload import WorkloadRequest, read_workload, write_workload


@pytest.fixture
def records(tmp_path):
    rows = [
        {"prompt": "a", "prompt_tokens": 7, "response_tokens": 5, "category": "chat"},
        {"prompt": "a", "prompt_tokens": 7, "response_tokens": 90},
        {"prompt": "bbbbbbbb", "response_tokens": 300, "max_tokens": 400},
        {"prompt": "empty", "response_tokens": 0},
    ]
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n5.0,10,20\n6.0,11,0\n8.0,12,22\n")
    return path


def made(**asked):
    facts, requests = make_workload(WorkloadPlan(**asked))
    return facts, requests


def test_each_answer_to_a_prompt_is_a_request_of_its_own(records):
    """Two answers to "a", of 5 and 90 tokens; the row without an answer is left out and counted."""
    facts, requests = made(records=records, rate=1.0)

    lengths = sorted((it.prompt, it.output_tokens) for it in requests)
    assert lengths == [("a", 5), ("a", 90), ("bbbbbbbb", 300)]
    assert (facts["num_prompts"], facts["num_skipped_empty"]) == (2, 1)


def test_prompts_that_a_server_would_refuse_are_left_out(records, trace):
    """Longer than 6 tokens: both of 7; longer than 10: one of the trace's two."""
    facts, requests = made(records=records, rate=1.0, max_prompt_tokens=6)
    traced, kept = made(trace=trace, arrivals="trace", max_prompt_tokens=10)

    assert ([it.output_tokens for it in requests], facts["num_skipped_long"]) == ([300], 2)
    assert ([it.prompt_tokens for it in kept], traced["num_skipped_long"]) == ([10], 1)


def test_tokens_limits_and_categories_come_from_the_record(records):
    """Prompt tokens where counted, else one for four characters."""
    _, requests = made(records=records, rate=1.0, max_tokens=50)
    by_length = {it.output_tokens: it for it in requests}

    assert (by_length[5].prompt_tokens, by_length[300].prompt_tokens) == (7, 2)
    assert (by_length[5].max_tokens, by_length[300].max_tokens) == (50, 400)
    assert by_length[5].category == "chat"


def test_answers_in_words_and_texts_become_tokens(tmp_path):
    """Three words are four tokens; eight characters are two."""
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"prompt": "p", "response_words": 3, "output": "12345678"}))

    _, by_words = made(records=path, rate=1.0, length_field="response_words")
    _, by_text = made(records=path, rate=1.0, answer_field="output")

    assert [it.output_tokens for it in by_words + by_text] == [4, 2]


def test_records_come_around_again_only_after_all_have_come(records):
    """Seven of three: each twice or three times."""
    _, requests = made(records=records, rate=1.0, num_requests=7, max_output_tokens=100)
    counts = [[it.output_tokens for it in requests].count(tokens) for tokens in (5, 90, 100)]

    assert sorted(counts) == [2, 2, 3]


def test_the_same_seed_gives_the_same_bytes(records, tmp_path):
    """And another seed others."""
    written = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        output = tmp_path / name
        asked = ["--records", records, "--rate", "2", "--num-requests", "9", "--seed", seed]
        done = CliRunner().invoke(commands, ["workload", *map(str, asked), "--output", str(output)])
        assert done.exit_code == 0, done.output
        written.append(output.read_bytes())

    assert written[0] == written[1] != written[2]


def test_a_workload_is_read_as_it_was_written(tmp_path):
    """Absent fields too."""
    path = tmp_path / "load.jsonl"
    requests = (
        WorkloadRequest("0", 0.0, "what", 1, 2, 30, "chat"),
        WorkloadRequest("1", 0.5, None, 3, 4),
    )
    header = write_workload(path, {"source": "x"}, requests)

    workload = read_workload(path)
    assert (workload.header, workload.requests) == (header, requests)


@given(prompt=st.text(st.characters(codec=None)), category=st.text(st.characters(codec=None)))
def test_any_text_comes_back_out_of_a_workload(tmp_path_factory, prompt, category):
    """Halves of surrogate pairs and control characters too, as clients cut them into prompts."""
    path = tmp_path_factory.mktemp("any") / "load.jsonl"
    write_workload(path, {}, [WorkloadRequest("0", 0.0, prompt, 1, 2, None, category)])
    (request,) = read_workload(path).requests

    # Two halves that meet are the one character that they make, in JSON as everywhere.
    whole = [json.loads(json.dumps(text)) for text in (prompt, category)]
    assert [request.prompt, request.category] == whole


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"request_id": "1"}', "row 3: field 'arrival_s' must be seconds from 0 on, not null"),
        ("[1]", "row 3: is not one JSON object"),
        ("{", "row 3: is not one JSON object"),
        (
            '{"request_id": "1", "arrival_s": 0.5, "prompt_tokens": 1, "output_tokens": 0}',
            "row 3: field 'output_tokens' must be a whole number from 1 on, not 0",
        ),
        (
            '{"request_id": "1", "arrival_s": 0.5, "prompt_tokens": 1, "output_tokens": 1}',
            "row 3: arrives at 0.5 s, before the line above",
        ),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path, line, problem):
    """By its number and field."""
    path = tmp_path / "load.jsonl"
    write_workload(path, {}, [WorkloadRequest("0", 1.0, None, 1, 1)])
    path.write_text(path.read_text() + line)

    with pytest.raises(DataError) as error:
        read_workload(path)
    assert problem in str(error.value)


def test_a_file_that_is_no_workload_is_named(tmp_path):
    """A log of requests is not one."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"prompt": "a"}\n')

    with pytest.raises(DataError, match="is not a workload"):
        read_workload(path)


def test_a_trace_alone_gives_lengths_without_prompts(trace):
    """From its first request on; one without an answer is left out."""
    facts, requests = made(trace=trace, arrivals="trace")

    told = [(it.arrival_s, it.prompt, it.prompt_tokens, it.output_tokens) for it in requests]
    assert told == [(0.0, None, 10, 20), (3.0, None, 12, 22)]
    assert (facts["num_skipped_empty"], facts["mean_rate"]) == (1, 0.333333)


def test_a_trace_with_records_gives_arrivals_only(trace, records):
    """All three of its times, scaled to one a second: 0, 2/3 and 2 seconds."""
    _, requests = made(trace=trace, arrivals="trace", records=records, rate=1.0)

    assert [it.arrival_s for it in requests] == [0.0, 0.666667, 2.0]
    assert {it.prompt for it in requests} == {"a", "bbbbbbbb"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("arrival_s,input_tokens\n0,1\n", "has no column output_tokens .* its columns: arrival_s"),
        (
            "arrival_s,input_tokens,output_tokens\n0,1,2\nx,1,2\n",
            "row 2: column 'arrival_s' must be a number or a date, not 'x'",
        ),
        (
            "arrival_s,input_tokens,output_tokens\n0,1.5,2\n",
            "row 1: column 'input_tokens' must be a whole number of tokens, not '1.5'",
        ),
        ("arrival_s,input_tokens,output_tokens\n", "has no requests"),
    ],
)
def test_a_trace_with_a_fault_is_named(tmp_path, text, problem):
    """By its row."""
    path = tmp_path / "trace.csv"
    path.write_text(text)

    with pytest.raises(DataError, match=problem):
        read_trace(path)


REQUESTS = [(0.0, 374, 44), (0.25, 12, 109), (1.5, 4001, 1), (61.0, 88, 300)]
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


def lines_of(row_of, head=""):
    return head + "\n" * bool(head) + "".join(f"{row_of(*it)}\n" for it in REQUESTS)


TRACES = {
    "own": lines_of(lambda t, i, o: f"{t + 5},{i},{o}", "arrival_s,input_tokens,output_tokens"),
    "floats": lines_of(lambda t, i, o: f"{t},{i}.0,{o}.0", "arrival_s,input_tokens,output_tokens"),
    "azure 2023": lines_of(
        lambda t, i, o: (
            f"2023-11-16 {17 + (t > 60)}:{59 - 59 * (t > 60):02d}:{t % 60:010.7f},{i},{o}\r"
        ),
        AZURE + "\r",
    ),
    "azure 2024": lines_of(
        lambda t, i, o: f"2024-05-12 00:{t // 60:02.0f}:{t % 60:09.6f}+00:00,{i},{o}", AZURE
    ),
    "burst": lines_of(lambda t, i, o: f"{t},GPT-4,{i},{o},{i + o},API log", BURST),
    "mooncake": lines_of(
        lambda t, i, o: json.dumps(
            {"timestamp": int(t * 1000), "input_length": i, "output_length": o, "hash_ids": [1]}
        )
    ),
    "qwen": lines_of(
        lambda t, i, o: json.dumps(
            {"chat_id": 1, "timestamp": t, "input_length": i, "output_length": o, "hash_ids": [1]}
        )
    ),
    "epoch ms": lines_of(
        lambda t, i, o: f"{1.7e12 + t * 1000:.0f};{i};{o}",
        "created_at;prompt_tokens;completion_tokens",
    ),
    "epoch ns": lines_of(
        lambda t, i, o: f"{1700000000 * 10**9 + int(t * 10**9)}\t{i}\t{o}",
        "start_time\tprompt_tokens\tcompletion_tokens",
    ),
}


@pytest.mark.parametrize("wrap", [bytes, gzip.compress, lambda text: b"\xef\xbb\xbf" + text])
@pytest.mark.parametrize("name", TRACES)
def test_published_traces_are_read_in_their_own_columns(tmp_path, name, wrap):
    """Four requests, seconds from the first, whatever the columns, the dates and the packing."""
    path = tmp_path / "trace"
    path.write_bytes(wrap(TRACES[name].encode()))

    trace = read_trace(path)

    assert [round(at, 3) for at in trace.arrivals_s] == [at for at, _, _ in REQUESTS]
    assert trace.input_tokens == [tokens for _, tokens, _ in REQUESTS]
    assert trace.output_tokens == [tokens for _, _, tokens in REQUESTS]


def test_a_trace_of_the_newest_first_is_put_in_order(tmp_path):
    """As log viewers export; how many moved is said. An empty cell is a request without tokens."""
    path = tmp_path / "trace.csv"
    path.write_text("startTime,prompt_tokens,completion_tokens\n9,1,2\n7,3,\n4,5,6\n")

    facts, requests = made(trace=path, arrivals="trace")

    assert [(it.arrival_s, it.output_tokens) for it in requests] == [(0.0, 6), (5.0, 2)]
    assert (facts["num_out_of_order"], facts["num_skipped_empty"]) == (2, 1)


def test_poisson_and_gamma_intervals_have_the_mean_and_spread_asked_for():
    """A coefficient of variation of 1 and of 3, at 20 a second."""
    for arrivals, cv in ((poisson(20_000, 20.0, 0), 1.0), (gamma(20_000, 20.0, 3.0, 0), 3.0)):
        intervals = [b - a for a, b in pairwise(arrivals)]

        assert mean(intervals) == pytest.approx(0.05, rel=0.1)
        assert stdev(intervals) / mean(intervals) == pytest.approx(cv, rel=0.1)


def test_another_rate_only_stretches_the_arrivals():
    """Twice the rate is half the time, drawn or scaled."""
    slow, fast = gamma(50, 1.0, 2.0, 7), gamma(50, 2.0, 2.0, 7)

    assert fast == pytest.approx([at / 2 for at in slow])
    assert mean_rate(scaled(slow, 4.0)) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({}, "give --records"),
        ({"records": "r"}, "needs --rate"),
        ({"records": "r", "arrivals": "burst", "rate": 1.0}, "burst takes no --rate"),
        ({"records": "r", "rate": 1.0, "cv": 2.0}, "--cv and --arrivals gamma go together"),
        ({"records": "r", "rate": 0.0}, "must be more than 0"),
        ({"trace": "t", "rate": 1.0}, "--trace FILE and --arrivals trace go together"),
    ],
)
def test_what_does_not_go_together_is_said(asked, problem, records, trace):
    """Before anything is written."""
    files = {"r": records, "t": trace}
    with pytest.raises(ParsError, match=problem):
        made(**{name: files.get(value, value) for name, value in asked.items()})


def test_a_trace_that_is_too_short_says_how_long_it_is(trace):
    """Two of its rows can be replayed."""
    with pytest.raises(DataError, match="has 2 usable arrivals, not 4"):
        made(trace=trace, arrivals="trace", num_requests=4)
