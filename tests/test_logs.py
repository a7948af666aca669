"""Logs and data sets as people have them are read alike: the prompt asked, the answer's length."""

import csv
import gzip
import io
import json
import logging
from datetime import datetime

import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import DataError, ParsError
from pars.learn.collect.prompts import read_prompts
from pars.learn.data.chats import asked_in
from pars.learn.data.records import read_data
from pars.prove.workload.make_workload import WorkloadPlan, make_workload

ASKED = [("Write a story", 200), ("Name a dog", 5), ('Add\nthese, "two"', 12)]
TEXT = "word "


def one(role, content, **more):
    return {"role": role, "content": content, **more}


def chat(prompt, *answer):
    return [one("system", "Be brief."), one("user", prompt), *answer]


def body(num_tokens, **more):
    message = {"index": 0, "message": one("assistant", TEXT * 3), "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": num_tokens}
    return {"object": "chat.completion", "choices": [message], "usage": usage, **more}


def said(role, text):
    return {"role": role, "parts": [{"text": text}]}


def gemini(num_tokens):
    usage = {"promptTokenCount": 9, "candidatesTokenCount": num_tokens - 2, "thoughtsTokenCount": 2}
    candidate = {"content": said("model", TEXT), "finishReason": "STOP"}
    return {"candidates": [candidate], "usageMetadata": usage}


def spent(prompt, n, **more):
    return {"request_id": "r", "spend": 0.1, "prompt_tokens": 9, "completion_tokens": n, **more}


# Of each kind, the row of one prompt and an answer of so many tokens (or words, as counted).
ROWS = {
    "fine-tuning": lambda p, n: {"messages": chat(p, one("assistant", TEXT * n))},
    "fine-tuning, legacy": lambda p, n: {"prompt": p, "completion": TEXT * n},
    "wildchat": lambda p, n: {
        "conversation_hash": "x", "model": "m", "turn": 1,
        "conversation": [one("user", p, toxic=False), one("assistant", TEXT * n, toxic=False)],
    },
    "sharegpt": lambda p, n: {
        "id": "i", "conversations": [
            {"from": "human", "value": p}, {"from": "gpt", "value": TEXT * n},
        ],
    },
    "columns": lambda p, n: {
        "conversations": {"from": ["human", "gpt"], "value": [p, TEXT * n]},
    },
    "turns": lambda p, n: {"conversation": [p, TEXT * n]},
    "gemini": lambda p, n: {"contents": [said("user", p), said("model", TEXT * n)]},
    "langchain": lambda p, n: {
        "messages": [
            {"type": "human", "data": {"content": p}},
            {"type": "ai", "data": {"content": TEXT * n}},
        ],
    },
    "preference": lambda p, n: {
        "input": {"messages": chat(p)}, "preferred_output": [one("assistant", TEXT * n)],
        "non_preferred_output": [one("assistant", "no")],
    },
    "alpaca": lambda p, n: {"instruction": p, "input": "", "output": TEXT * n},
    "batch": lambda p, n: {
        "custom_id": "c", "error": None, "request": {"method": "POST", "body": {
            "model": "m", "messages": chat(p)}},
        "response": {"status_code": 200, "body": body(n)},
    },
    "batch of completions": lambda p, n: {
        "body": {"prompt": p},
        "response": {"body": {"choices": [{"text": "x"}], "usage": {"completion_tokens": n}}},
    },
    "batch of responses": lambda p, n: {
        "body": {"input": p},
        "response": {"body": {"object": "response", "output": [], "usage": {"output_tokens": n}}},
    },
    "batch of two choices": lambda p, n: {
        "request": {"body": {"messages": chat(p)}},
        "response": {"body": {**body(2 * n), "choices": body(n)["choices"] * 2}},
    },
    "anthropic batch": lambda p, n: {
        "params": {"messages": [one("user", [{"type": "text", "text": p}])]},
        "result": {"type": "succeeded", "message": {
            "role": "assistant", "content": [{"type": "text", "text": "x"}],
            "usage": {"output_tokens": n}}},
    },
    "gemini batch": lambda p, n: {
        "request": {"contents": [said("user", p)]}, "response": gemini(n),
    },
    "langfuse": lambda p, n: {
        "id": "t", "input": {"messages": chat(p)}, "output": one("assistant", "x"),
        "usage": {"input": 9, "output": n, "unit": "TOKENS"},
    },
    "langfuse, text": lambda p, n: {
        "input": json.dumps(chat(p)), "output": json.dumps(one("assistant", "x")),
        "usageDetails": json.dumps({"input": 9, "output": n}),
    },
    "helicone": lambda p, n: {
        "request_id": "r", "response_status": 200, "request_body": {"messages": chat(p)},
        "response_body": body(n),
    },
    "litellm": lambda p, n: spent(p, n, messages=json.dumps(chat(p)), response=json.dumps(body(n))),
    "litellm, in the request": lambda p, n: spent(
        p, n, messages="{}", response="{}", proxy_server_request=json.dumps({"messages": chat(p)})
    ),
    "vllm": lambda p, n: {
        "request_id": "cmpl-1", "prompt": p, "prompt_token_ids": [1, 2],
        "outputs": [{"text": TEXT * n, "token_ids": [7] * n, "finish_reason": "stop"}],
    },
    "ollama": lambda p, n: {
        "request": {"model": "m", "prompt": p}, "response": {"response": "x", "eval_count": n},
    },
    "a table of nested rows": lambda p, n: {
        "request.body.messages": chat(p), "response.body.usage.completion_tokens": float(n),
    },
    "python's spelling": lambda p, n: {"messages": repr(chat(p)), "answer_tokens": f"{n}.0"},
    "json in json": lambda p, n: {"prompt": json.dumps(json.dumps(chat(p))), "answer_tokens": n},
}  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(path, **asked):
    return [(row.prompt, row.answer_length) for row in read_data(path, names=named(**asked))]


def named(prompt_field=None, answer_field=None, length_field=None):
    return prompt_field, answer_field, length_field


@pytest.mark.parametrize("kind", ROWS)
def test_logs_and_data_sets_are_recognised(tmp_path, kind):
    """Without an option, each kind gives the users' own words and the answers' lengths."""
    path = write(tmp_path / "log.jsonl", [ROWS[kind](*it) for it in ASKED])
    nested = {}
    if kind == "a table of nested rows":
        nested = {
            "prompt_field": "request.body.messages",
            "length_field": "response.body.usage.completion_tokens",
        }

    assert told(path, **nested) == ASKED
    names = {**nested, **({"length_unit": "tokens"} if kind == "vllm" else {})}
    facts, requests = make_workload(WorkloadPlan(records=path, arrivals="burst", **names))
    assert sorted(it.prompt for it in requests) == sorted(prompt for prompt, _ in ASKED)
    assert "left_out" not in facts


@pytest.mark.parametrize("kind", ["batch", "langfuse", "helicone", "gemini batch"])
def test_prompts_are_asked_again_as_they_were(tmp_path, kind):
    """`pars collect` reads the same logs; roles are OpenAI's and what logs add is left out."""
    path = write(tmp_path / "log.jsonl", [ROWS[kind](*it) for it in ASKED])

    for prompt, (text, _) in zip(read_prompts(path, "chat"), ASKED, strict=True):
        assert prompt.text == text
        assert prompt.asked[-1]["role"] == "user"


@pytest.mark.parametrize("kind", ["litellm", "langfuse, text", "python's spelling", "batch"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("wrap", [bytes, gzip.compress, lambda text: b"\xef\xbb\xbf" + text])
def test_csv_is_read_like_json_lines(tmp_path, kind, delimiter, wrap):
    """Quoted line breaks, nested JSON in cells, any delimiter, BOM, gzip, and pandas' own index."""
    rows = [ROWS[kind](*it) for it in ASKED]
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter=delimiter)
    table.writerow(["", *rows[0]])
    for number, row in enumerate(rows):
        cells = (json.dumps(it) if isinstance(it, dict) else it for it in row.values())
        table.writerow([number, *cells])
    path = tmp_path / "log"
    path.write_bytes(wrap(text.getvalue().encode()))

    assert told(path) == ASKED


@pytest.mark.parametrize("kind", ["wildchat", "columns", "batch", "gemini"])
def test_parquet_and_arrow_structs_are_read(tmp_path, kind):
    """Structs, lists of them and structs of lists, with dates among them."""
    pyarrow = pytest.importorskip("pyarrow", reason="reading Parquet needs the train extra")
    from pyarrow import ipc, parquet

    rows = [{**ROWS[kind](*it), "timestamp": datetime(2024, 5, 1)} for it in ASKED]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "log.parquet")
    with ipc.new_stream(tmp_path / "log.arrow", table.schema) as stream:
        stream.write_table(table)
    with ipc.new_file(tmp_path / "log.feather", table.schema) as file:
        file.write_table(table)

    for name in ("log.parquet", "log.arrow", "log.feather"):
        assert told(tmp_path / name) == ASKED


def test_utf16_as_windows_writes_it_is_read(tmp_path):
    """PowerShell redirects text so."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"prompt": "Grüße", "answer_tokens": 3}\n', encoding="utf-16")

    assert told(path) == [("Grüße", 3)]


@pytest.mark.parametrize(
    "prompt",
    [
        '[1, {"a": 1}] sort this list', '{"a": 1}', "[1, 2, 3]", '["a", "b"]', "[]", "{",
        '"quoted"', '[{"role": "user", "content": "x"}] what is wrong with this?',
        '{"messages": "none"}', '[{"role": "engineer", "content": "x"}]', "[{'a': 1}]",
        '{"content": "x", "title": "y"}', "a \ud83d \x00 b",
    ],
)  # fmt: skip
def test_a_text_that_only_looks_like_json_stays_text(tmp_path, prompt):
    """As a prompt and as an answer."""
    path = write(tmp_path / "log.jsonl", [{"prompt": prompt, "answer": prompt}])

    assert told(path) == [(prompt, len(prompt.split()))]


@pytest.mark.parametrize("role", ["model", "gpt", "bot", "ChatGPT", "AI", "chatbot"])
def test_answers_before_are_seen_whatever_the_assistant_is_called(tmp_path, role):
    """In messages of {role, content} and of {from, value}."""
    answered = [one("user", "hello"), one(role, "x" * 1100), one("user", "and?")]
    shared = [{"from": it["role"], "value": it["content"]} for it in answered]
    rows = [{"messages": it, "answer_tokens": 7} for it in (answered, shared)]

    assert told(write(tmp_path / "log.jsonl", rows)) == [("→1 1024 0\nand?", 7)] * 2


def test_what_is_left_out_is_counted_by_reason(tmp_path, caplog):
    """Failures, unknown roles, cut JSON, empty prompts, missing answers: each with its number."""
    good = [ROWS["batch"](*it) for it in ASKED]
    failed = {**good[0], "response": {"status_code": 500, "body": {"error": "x"}}}
    no_usage = {**good[0], "response": {"status_code": 200, "body": {"choices": []}}}
    unknown = {**good[0], "request": {"body": {"messages": [*chat("p"), one("critic", "x")]}}}
    empty = {**good[0], "request": {"body": {"messages": [one("system", "x")]}}}
    cut = {**good[0], "request": {"body": {"messages": json.dumps(chat("p"))[:-3]}}}
    path = write(tmp_path / "log.jsonl", [failed, no_usage, unknown, empty, cut, failed, *good])

    with caplog.at_level(logging.WARNING):
        assert told(path) == ASKED

    reasons = {
        "failed request": 2, "no answer": 1, "role 'critic' is not known": 1, "no prompt": 1,
        "messages in JSON text that is cut short or broken": 1,
    }  # fmt: skip
    for reason, count in reasons.items():
        assert f"{count} ({reason})" in caplog.text
    facts, _ = make_workload(WorkloadPlan(records=path, arrivals="burst"))
    assert facts["left_out"] == reasons
    few = "--test-size 0.5 --train-num-pairs 0 --val-num-pairs 0"
    done = CliRunner().invoke(
        commands, f"prepare records --input {path} --output-dir {tmp_path / 'out'} {few}"
    )
    assert done.exit_code == 0, done.output
    for reason in reasons:
        assert f"left out: {reason}" in done.output
    counts = json.loads((tmp_path / "out/prepare.json").read_text())["counts"]
    assert counts["left_out"] == reasons


@pytest.mark.parametrize("nothing", ["", "nan", "NULL", "None", None, float("nan")])
def test_what_tables_write_for_null_is_no_answer(tmp_path, nothing, caplog):
    """A column of numbers with gaps: pandas fills them with NaN, others with words."""
    rows = [{"prompt": p, "answer_tokens": n} for p, n in ASKED]
    path = write(tmp_path / "log.jsonl", [{"prompt": "x", "answer_tokens": nothing}, *rows])

    assert told(path) == ASKED
    assert "1 (no answer)" in caplog.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"prompt,answer\na,b\nc,d,e\n", "row 2: has 3 cells, and the first line names 2 columns"),
        (b"prompt,answer\na,b\nGr\xfc\xdfe,b\n", "not UTF-8 text: save the file as UTF-8"),
        (b"prompt,answer,prompt\na,b,c\n", "its first line names the column 'prompt' twice"),
        (b'prompt,answer\na,"b\n', "row 1: is not valid CSV: unexpected end of data"),
        (b"prompt,answer\n", "has no rows"),
        (b'prompt,answer_tokens\na,"1,234"\n', "'answer_tokens' must be a number .*'1,234'"),
    ],
)
def test_a_table_with_a_fault_is_named(tmp_path, text, problem):
    """By its row, and what would be right."""
    path = tmp_path / "log.csv"
    path.write_bytes(text)

    with pytest.raises(DataError, match=problem):
        read_data(path)


def test_the_two_files_of_a_batch_are_joined(tmp_path):
    """By custom_id, in any order; an answer without a request is counted."""
    asked = [
        {"custom_id": f"{n}", "method": "POST", "body": {"messages": chat(p), "max_tokens": 300}}
        for n, (p, _) in enumerate(ASKED)
    ]
    answers = [
        {"id": "b", "custom_id": f"{n}", "response": {"status_code": 200, "body": body(tokens)}}
        for n, (_, tokens) in enumerate(ASKED)
    ]
    requests = write(tmp_path / "in.jsonl", asked)
    output = write(tmp_path / "out.jsonl", [*reversed(answers), {**answers[0], "custom_id": "?"}])

    facts, made = make_workload(
        WorkloadPlan(records=output, requests=requests, arrivals="burst", length_unit="tokens")
    )
    assert sorted((it.prompt, it.output_tokens, it.max_tokens) for it in made) == sorted(
        (prompt, tokens, 300) for prompt, tokens in ASKED
    )
    assert facts["left_out"] == {"no prompt": 1}
    few = "--test-size 0.4 --train-num-pairs 0 --val-num-pairs 0"
    done = CliRunner().invoke(
        commands,
        f"prepare records --input {output} --requests {requests} {few}"
        f" --output-dir {tmp_path / 'd'}",
    )
    assert done.exit_code == 0, done.output
    data = [it for name in ("train", "val") for it in told(tmp_path / f"d/{name}_data.json")]
    assert sorted(data) == sorted(ASKED)
    with pytest.raises(DataError, match="give the input too: --requests FILE"):
        read_data(output)


def test_sharegpt_rows_with_unknown_roles_are_counted(tmp_path):
    """Nothing is passed over: the role is named in the table."""
    rows = [ROWS["sharegpt"](f"{p} {n}", n) for n in range(9) for p, _ in ASKED]
    rows.append(
        {"conversations": [{"from": "human", "value": "p"}, {"from": "judge", "value": "x"}]}
    )
    rows.append({"conversations": [{"from": "system", "value": "p"}]})
    done = CliRunner().invoke(
        commands,
        f"prepare sharegpt --input {write(tmp_path / 's.jsonl', rows)}"
        f" --output-dir {tmp_path / 'out'}",
    )

    assert done.exit_code == 0, done.output
    assert "left out: role 'judge' is not known" in done.output
    assert "left out: no message that is answered" in done.output


WRONG = [{"id": f"{n:032x}", "prompt": f"say {n}", "n": n, "created": 1.7e9 + n, "latency_ms": n,
          "prompt_tokens": n, "when": f"2024-05-{n + 1:02d}"} for n in range(12)]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"prompt_field": "id", "length_field": "n"}, "field 'id' holds '0000"),
        ({"prompt_field": "when", "length_field": "n"}, "field 'when' holds '2024-05-01' and"),
        ({"length_field": "prompt_tokens"}, "field 'prompt_tokens' is no length of an answer"),
        ({"length_field": "created"}, "field 'created' is no length of an answer"),
        ({"length_field": "prompt"}, "field 'prompt' must be a number of 0 or more, not 'say 0'"),
        ({"length_field": "usage.n"}, "has no field 'usage.n'; its fields: created, id"),
        ({"prompt_field": "n", "length_field": "n"}, "field 'n' must be text, not a number"),
    ],
)
def test_what_looks_like_the_wrong_column_is_refused_with_its_name(tmp_path, asked, problem):
    """Ids, dates, times and the prompt's own tokens."""
    with pytest.raises(DataError) as error:
        read_data(write(tmp_path / "log.jsonl", WRONG), names=named(**asked))

    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("unit", "length", "tokens"), [("words", 6, 8), ("characters", 30, 8), ("tokens", 9, 9)]
)
def test_a_bare_answer_length_is_in_the_unit_that_its_text_shows(tmp_path, unit, length, tokens):
    """Six words of 30 characters: as train_data.json that was moved away from its prepare.json."""
    rows = [{"prompt": "p", "answer_content": TEXT * 6, "answer_length": length}]
    facts, [request] = make_workload(
        WorkloadPlan(records=write(tmp_path / "log.jsonl", rows), arrivals="burst")
    )

    assert request.output_tokens == tokens
    assert facts["lengths_from"] == f"answer_length, in {unit}"


def test_a_length_of_an_unknown_unit_is_not_replayed(tmp_path):
    """A line asks for the unit."""
    path = write(tmp_path / "log.jsonl", [{"prompt": "p", "answer_length": 9}])

    with pytest.raises(ParsError, match="give --length-unit"):
        make_workload(WorkloadPlan(records=path, arrivals="burst"))


def test_messages_of_tools_and_thoughts_are_read():
    """Calls count as the answer that they are; Responses' thoughts are passed over."""
    items = [
        one("user", "Weather?"), {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "output": "sunny"},
    ]  # fmt: skip

    assert [it["role"] for it in asked_in(items)] == ["user", "assistant", "tool"]


def test_a_length_within_a_response_needs_no_answer_there(tmp_path):
    """The named path is what counts; what stands beside it need not be text."""
    rows = [
        {"request": {"prompt": f"p{n}"}, "response": {"body": {"usage": {"completion_tokens": n}}}}
        for n in (7, 9)
    ]
    path = "response.body.usage.completion_tokens"

    found = told(
        write(tmp_path / "log.jsonl", rows), prompt_field="request.prompt", length_field=path
    )

    assert found == [("p7", 7.0), ("p9", 9.0)]
