"""`pars prepare` makes PARS's files from any source, all of them or none."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pars.cli.learn import SOURCE_NAMES
from pars.cli.main import main
from pars.learn.data.pair_files import read_pairs
from pars.learn.data.records import read_data
from pars.learn.data.sources import SOURCES

SHARED = Path(os.environ.get("PARS_SHARED", Path(__file__).parents[2] / "shared")) / "data"
FILES = {
    "train_data.json", "train_pairs_length_diff_0.2.json",
    "val_data.json", "val_pairs_length_diff_0.2.json", "prepare.json",
}  # fmt: skip


def rows_of(source, num_rows=60):
    """Rows in the shape of a source, with answers of 1, 2, … words (two letters each)."""
    for number in range(num_rows):
        prompt, answer = f"prompt {number}", " ".join(["ab"] * (number + 1))
        if source in ("alpaca", "code", "math"):
            yield {"instruction": prompt, "input": "", "output": answer}
        elif source == "lmsys":
            talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            yield {"model": "gpt-4", "turn": 1, "conversation": talk}
            yield {"model": ("vicuna", "gpt-4")[number % 2], "turn": 2, "conversation": talk}
        elif source == "sharegpt":
            talk = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
            yield {"id": f"c{number}", "conversations": talk}
        else:
            yield {"prompt": prompt, "answer": answer, "category": "chat", "model": "m"}


def write_rows(path, rows):
    path.write_text(json.dumps(list(rows)), "utf-8")
    return path


@pytest.fixture
def pars(monkeypatch, capsys):
    """Runs `pars prepare …` in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pars", "prepare", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        return (exited.value.code or 0, *capsys.readouterr())

    return run


def prepare_elsewhere(*arguments, environment=None, **options):
    """Runs `pars prepare …` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pars", "prepare", *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_source_can_be_asked_for():
    """The names that the command takes are those of the sources, and records."""
    assert {*SOURCE_NAMES} == {*SOURCES, "records"}


@pytest.mark.parametrize(
    ("source", "num_pairs", "length_of_first"),
    [("alpaca", (540, 60), 1), ("code", (540, 60), 2), ("math", (540, 60), 2),
     ("lmsys", (2700, 30), 2), ("sharegpt", (540, 60), 1), ("records", (540, 60), 1)],
)  # fmt: skip
def test_every_source_is_prepared(tmp_path, pars, source, num_pairs, length_of_first):
    """60 rows give 54 and 6, and each row gets all its pairs; prompt 0's answer is one word."""
    path = write_rows(tmp_path / "in.json", rows_of(source))
    code, out, err = pars(source, "--input", path, "--output-dir", tmp_path / "out")

    assert (code, err) == (0, "")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    train, val = (read_data(tmp_path / "out" / f"{name}_data.json") for name in ("train", "val"))
    assert (len(train), len(val)) == (54, 6)
    [first] = [row for row in train + val if row.prompt == "prompt 0"]
    assert first.answer_length == length_of_first
    for name, num, rows in (("train", num_pairs[0], train), ("val", num_pairs[1], val)):
        pairs = read_pairs(tmp_path / "out" / f"{name}_pairs_length_diff_0.2.json")
        assert len(pairs.labels) == num
        assert set(pairs.prompts) <= {row.prompt for row in rows}
        assert f"{num:,}" in out


def test_rows_are_split_first_and_dropped_then(tmp_path, pars):
    """task_id is a row's place in its split before rows without prompt or answer are dropped."""
    rows = list(rows_of("alpaca", 40))
    rows[3]["output"], rows[5]["instruction"], rows[6]["output"] = "", " \n", None
    pars("alpaca", "--input", write_rows(tmp_path / "in.json", rows), "--output-dir", tmp_path)

    order = np.random.default_rng(42).permutation(40).tolist()
    for name, part in (("train", order[4:]), ("val", order[:4])):
        read = json.loads((tmp_path / f"{name}_data.json").read_text())
        assert read == [
            {
                "task_id": place,
                "prompt": f"prompt {index}",
                "answer_content": rows[index]["output"],
                "answer_length": index + 1,
            }
            for place, index in enumerate(part)
            if index not in (3, 5, 6)
        ]
    counts = json.loads((tmp_path / "prepare.json").read_text())["counts"]
    dropped = [counts[name] for name in ("train", "val")]
    assert sum(part["dropped_no_prompt"] for part in dropped) == 1
    assert sum(part["dropped_no_answer"] for part in dropped) == 2


def test_same_seed_gives_the_same_bytes(tmp_path, pars):
    """Two runs with one seed write the same files; another seed writes others."""
    path = write_rows(tmp_path / "in.json", rows_of("alpaca"))
    for name, seed in (("a", 42), ("b", 42), ("c", 7)):
        pars("alpaca", "--input", path, "--output-dir", tmp_path / name, "--seed", seed)

    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert bytes_of(tmp_path / "a") != bytes_of(tmp_path / "c")


@pytest.mark.parametrize(("options", "shared"), [((), False), (("--no-group-by-prompt",), True)])
def test_grouping_keeps_a_prompt_in_one_split(tmp_path, pars, options, shared):
    """With --group-by-prompt (records' default) no stripped prompt stands in both splits."""
    rows = [{"prompt": f" p{n % 20}" + " " * (n % 3), "length": n + 1} for n in range(200)]
    path = write_rows(tmp_path / "in.json", rows)
    pars("records", "--input", path, "--output-dir", tmp_path, *options)

    train, val = (
        {row.prompt.strip() for row in read_data(tmp_path / f"{name}_data.json")}
        for name in ("train", "val")
    )
    assert bool(train & val) is shared


def test_a_message_is_one_prompt_whatever_came_before_it(tmp_path, pars):
    """The same message after different answers stands in one split only."""
    rows = [
        {"prompt": f"p{n % 20}", "length": n + 1, "answers_before": [2**n] * (n // 20)}
        for n in range(200)
    ]
    path = write_rows(tmp_path / "in.json", rows)
    pars("records", "--input", path, "--output-dir", tmp_path)

    train, val = (read_data(tmp_path / f"{name}_data.json") for name in ("train", "val"))
    assert {row.message for row in train} & {row.message for row in val} == set()
    assert len({row.prompt for row in val}) > len({row.message for row in val})


def test_records_can_be_filtered_and_keep_their_model(tmp_path, pars):
    """--where keeps rows of one model; lengths, category and model are carried along."""
    rows = [
        {"q": f"p{n}", "n_tokens": n + 1, "category": "math", "model": ("a", "b")[n % 2]}
        for n in range(80)
    ]
    path = write_rows(tmp_path / "in.json", rows)
    named = ("--prompt-field", "q", "--length-field", "n_tokens", "--where", "model=a")
    code, out, _ = pars("records", "--input", path, "--output-dir", tmp_path, *named)

    assert code == 0
    kept = json.loads((tmp_path / "train_data.json").read_text())
    kept += json.loads((tmp_path / "val_data.json").read_text())
    assert sorted(row["answer_length"] for row in kept) == list(range(1, 80, 2))
    assert {(row["category"], row["model"], row["answer_content"]) for row in kept} == {
        ("math", "a", "")
    }
    assert json.loads((tmp_path / "prepare.json").read_text())["length_unit"] == "tokens"
    assert "without model=a" in out


def test_an_answer_cut_short_stays_known_and_is_never_the_shorter_one(tmp_path, pars):
    """Rows keep finish_reason, and no pair says that something outlasts a cut answer."""
    rows = [
        {"prompt": f"p{n}", "answer_tokens": n, "finish_reason": "length" if n % 2 else "stop"}
        for n in range(10, 50)
    ]
    path = write_rows(tmp_path / "r.json", rows)

    pars("records", "--input", path, "--output-dir", tmp_path / "data", "--threshold", 0)

    data = json.loads((tmp_path / "data/train_data.json").read_text())
    pairs = json.loads((tmp_path / "data/train_pairs_length_diff_0.0.json").read_text())
    reasons = {row["prompt"]: row["finish_reason"] for row in data}
    shorter = {pair["prompt_B"] if pair["label"] else pair["prompt_A"] for pair in pairs}
    assert set(reasons.values()) == {"length", "stop"}
    assert {reasons[prompt] for prompt in shorter} == {"stop"}


def test_threshold_names_the_files_and_the_shortfall_is_said(tmp_path, pars):
    """At 0.9 most tries fail: the pairs that are missing are counted in the report."""
    path = write_rows(tmp_path / "in.json", rows_of("alpaca"))
    code, out, _ = pars(
        "alpaca", "--input", path, "--output-dir", tmp_path, "--similarity-threshold", "0.9",
        "--val-num-pairs", "0",
    )  # fmt: skip

    assert code == 0
    pairs = json.loads((tmp_path / "train_pairs_length_diff_0.9.json").read_text())
    counts = json.loads((tmp_path / "prepare.json").read_text())["counts"]
    assert counts["train"]["pairs"] == len(pairs) < 540
    assert counts["train"]["pairs_short"] == 540 - len(pairs)
    assert f"{540 - len(pairs):,}" in out
    assert json.loads((tmp_path / "val_pairs_length_diff_0.9.json").read_text()) == []


def test_tokens_are_counted_by_a_tokenizer(tmp_path, pars):
    """--length-unit tokens counts with the tokenizer.json of a folder, without special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"ab": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("b", "merged_with_previous")
    tokenizer.enable_truncation(3)  # must not cap the count
    (tmp_path / "tok").mkdir()
    tokenizer.save(str(tmp_path / "tok" / "tokenizer.json"))
    path = write_rows(tmp_path / "in.json", rows_of("alpaca"))
    asked = ("--length-unit", "tokens", "--tokenizer", tmp_path / "tok")
    code, _, err = pars("alpaca", "--input", path, "--output-dir", tmp_path, *asked)

    assert (code, err) == (0, "")
    rows = read_data(tmp_path / "train_data.json")
    assert all(row.answer_length == len(row.answer_content.split()) for row in rows)


def test_cut_file_needs_leave(tmp_path, pars):
    """A file cut inside a row is refused; --allow-truncated keeps the whole rows and says so."""
    path = write_rows(tmp_path / "in.json", rows_of("sharegpt"))
    path.write_bytes(path.read_bytes()[:-20])
    asked = ("sharegpt", "--input", path, "--output-dir", tmp_path / "out")
    code, _, err = pars(*asked)

    assert code == 2
    assert f"{path}, row 60: the file ends inside this row" in err
    assert not (tmp_path / "out").exists()

    code, out, _ = pars(*asked, "--allow-truncated")
    assert code == 0
    assert "bytes cut off at the end" in out
    counts = json.loads((tmp_path / "out" / "prepare.json").read_text())["counts"]
    assert counts["rows_read"] == 59


GOOD = list(rows_of("alpaca", 30))


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        ([*GOOD, {"instruction": 1, "output": "a"}], (), ", row 31: field 'instruction' must be"),
        ([*GOOD, {"instruction": "a"}], (), ", row 31: has no field 'output'"),
        ([], (), ": has no rows"),
        (GOOD[:1], (), "1 rows, 1 of them for validation, leave none to train on: give more rows"),
        (GOOD[:5], (), ": its val split has 1 usable rows, and a pair takes two"),
        ([{**row, "output": "a b"} for row in GOOD], (), "answers, all of length 2: there is"),
        (GOOD, ("--threshold", "0.99"), "has no pair whose lengths differ by 0.99: lower"),
        (GOOD, ("--where", "model=x"), ", row 1: has no field 'model'"),
        (GOOD, ("--where", "input=x"), ": none of its 30 rows has input=x"),
        (GOOD, ("--where", "input"), "--where takes FIELD=VALUE, not input"),
        (GOOD, ("--threshold", "1.5"), "--threshold is from 0 to 1, not 1.5"),
        (GOOD, ("--threshold", "nan"), "--threshold is from 0 to 1, not nan"),
        (GOOD, ("--test-size", "1"), "--test-size is between 0 and 1, not 1.0"),
        (GOOD, ("--seed", "-1"), "--seed is 0 or more, not -1"),
        (GOOD, ("--val-num-pairs", "-2"), "the number of pairs is 0 or more, not -2"),
        (GOOD, ("--dataset", "a/b"), "--input reads a file, --dataset and --revision the Hub"),
        (GOOD, ("--prompt-field", "a"), "--prompt-field, --answer-field and --length-field are"),
        (GOOD, ("--length-unit", "tokens"), "--length-unit tokens needs --tokenizer"),
        (GOOD, ("--tokenizer", "x"), "--tokenizer is of use with --length-unit tokens only"),
    ],
)
def test_bad_input_is_one_line_and_no_file(tmp_path, pars, rows, options, told):
    """One line says what is wrong, the exit code is 2, and nothing is written."""
    path = write_rows(tmp_path / "in.json", rows)
    code, out, err = pars("alpaca", "--input", path, "--output-dir", tmp_path / "out", *options)

    assert (code, out) == (2, "")
    assert told in err
    assert err.startswith("pars: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_records_need_a_file(tmp_path, pars):
    """There is no Hub name for the user's own records."""
    code, _, err = pars("records", "--output-dir", tmp_path)

    assert (code, err) == (2, "pars: error: records are your own: name their file with --input\n")


@pytest.mark.parametrize("limit_kib", [1, 8, 60])
def test_full_disk_leaves_the_old_files(tmp_path, limit_kib):
    """When a file cannot be written whole, all five stay as they were and no other appears."""
    path = write_rows(tmp_path / "in.json", rows_of("alpaca", 100))
    out = tmp_path / "out"
    out.mkdir()
    (out / "train_data.json").write_text("old")

    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_kib * 1024, limit_kib * 1024))

    run = prepare_elsewhere(
        "alpaca", "--input", path, "--output-dir", out, preexec_fn=limit_file_size
    )

    assert run.returncode == 2
    assert ".json: cannot be written: File too large\n" in run.stderr
    assert run.stderr.startswith(f"pars: error: {out}/")
    assert bytes_of(out) == {"train_data.json": b"old"}


@pytest.mark.parametrize("source", ["alpaca", "lmsys"])
def test_hub_path_gives_what_the_file_gives(tmp_path, pars, source):
    """load_dataset on a dataset folder leads to the same rows and pairs as --input."""
    pytest.importorskip("datasets", reason="the Hub path needs the train extra")
    (tmp_path / "hub").mkdir()
    path = write_rows(tmp_path / "hub" / "train.json", rows_of(source))
    offline = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    run = prepare_elsewhere(
        source, "--dataset", tmp_path / "hub", "--output-dir", tmp_path / "a", environment=offline
    )
    pars(source, "--input", path, "--output-dir", tmp_path / "b")

    assert run.returncode == 0, run.stderr
    hub, file = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    notes = [json.loads(one.pop("prepare.json")) for one in (hub, file)]
    assert hub == file
    assert notes[0]["counts"] == notes[1]["counts"]


def test_hub_name_out_of_reach_is_one_line(tmp_path):
    """A Hub name that cannot be reached is named, with the way round it."""
    pytest.importorskip("datasets", reason="the Hub path needs the train extra")
    offline = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    run = prepare_elsewhere("math", "--output-dir", tmp_path / "out", environment=offline)

    assert run.returncode == 2
    assert run.stderr.startswith("pars: error: TIGER-Lab/MATH-plus: cannot be loaded: ")
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_hub_that_does_not_answer_is_given_up_quickly(tmp_path):
    """One question decides whether the Hub is there; its libraries' retries are not waited for."""
    pytest.importorskip("datasets", reason="the Hub path needs the train extra")
    with socket.socket() as bound:  # and not listening: whoever knocks is refused
        bound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        nobody = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        run = prepare_elsewhere("math", "--output-dir", tmp_path / "out", environment=nobody)

    assert run.returncode == 2
    told = "pars: error: dataset TIGER-Lab/MATH-plus: cannot be had from the Hub ("
    assert run.stderr.startswith(told)
    assert "Retrying" not in run.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")
@pytest.mark.parametrize(
    ("source", "name", "rows", "pairs"),
    [
        ("alpaca", "alpaca_shaped_davinci003_5k.json", (4_500, 500), (45_000, 5_000)),
        ("alpaca", "alpaca_shaped_gpt4_1k.json", (725, 81), (7_250, 810)),
        ("code", "code_shaped_gpteacher_gpt4.json", (4_081, 454), (40_810, 4_540)),
        ("lmsys", "lmsys_shaped.jsonl", (270, 30), (13_500, 150)),
        ("math", "math_shaped_gpt4.json", (1_836, 204), (18_360, 2_040)),
    ],
)
def test_real_files_give_the_expected_counts(tmp_path, pars, source, name, rows, pairs):
    """Real texts in each source's shape give every row and every wanted pair."""
    pars(source, "--input", SHARED / "raw" / name, "--output-dir", tmp_path)

    counts = json.loads((tmp_path / "prepare.json").read_text())["counts"]
    assert tuple(counts[split]["rows"] for split in ("train", "val")) == rows
    assert tuple(counts[split]["pairs"] for split in ("train", "val")) == pairs
