"""`pars score`: whole logs, part by part, stopped and gone on with."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import DataError, ParsError, RankerError
from pars.learn.scoring.parts import Log, Reading, parts_of
from pars.learn.scoring.score import ScorePlan, score
from pars.processes import spread
from pars.prove.workload.score_files import FileSource
from pars.prove.workload.workload import WorkloadRequest
from pars.ranking.ranker import Ranker
from pars.request.conversation import with_note

from serving import DEADLINE_S, eventually

PROMPTS = [f"Write {n} words about the sea. {'More. ' * (n % 7)}" for n in range(25)]
MODULE = """
import os
import time
from pathlib import Path


class Counting:
    def score(self, prompts):
        with Path("asked").open("a") as file:
            file.write("".join(f"{it}\\n" for it in prompts))
        return [float(len(it)) for it in prompts]


class InTokens(Counting):
    def expected_tokens(self, prompts):
        return [10.0 * len(it) for it in prompts]


class Stopped(Counting):
    def score(self, prompts):
        if "stop" in prompts and not Path("stopped").exists():
            Path("stopped").touch()
            raise KeyboardInterrupt
        return super().score(prompts)


class Killed(Counting):
    def score(self, prompts):
        if "kill" in prompts:
            while not Path("out/0000-00000.jsonl").exists():  # another process may have it still
                time.sleep(0.01)
            os._exit(1)
        return super().score(prompts)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a module of rankers in it."""
    (tmp_path / "counting.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("counting", None)
    return tmp_path


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts_file(path: Path, *prompts: str) -> Path:
    return write_lines(path, *({"id": f"r{n}", "prompt": it} for n, it in enumerate(prompts)))


def pars_score(*arguments: object, processes: int = 1, ranker: str = "counting:Counting"):
    """The command; its result."""
    asked = ["score", *map(str, arguments), "--num-processes", str(processes)]
    asked += ["--ranker", ranker] if ranker else []
    return CliRunner().invoke(commands, asked)


def scores_in(output: Path) -> dict[str, dict]:
    """Every row of scores by its id."""
    lines = [it for part in sorted(output.glob("*.jsonl")) for it in part.read_text().splitlines()]
    rows = list(map(json.loads, lines))
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def asked_of_ranker(folder: Path) -> list[str]:
    """What the ranker was shown, its trial at the start left out."""
    lines = (folder / "asked").read_text().splitlines()
    return [it for it in lines if it not in ("", "Is this ranker whole?", "Name a sea.")]


def test_every_row_keeps_its_id_and_gets_the_rankers_score_and_tokens(folder):
    """In one process as in two; the bundled ranker has a calibration."""
    log = prompts_file(folder / "log.jsonl", *PROMPTS)
    ranker = Ranker.load()

    for processes in (1, 2):
        out = folder / f"out{processes}"
        done = pars_score(log, "--output", out, "--rows-a-part", 7, processes=processes, ranker="")

        assert done.exit_code == 0, done.output
        assert "25 prompts scored" in done.output
        rows = scores_in(out)
        assert sorted(rows, key=lambda it: int(it[1:])) == [f"r{n}" for n in range(25)]
        got = [rows[f"r{n}"] for n in range(25)]
        np.testing.assert_allclose([it["score"] for it in got], ranker.score(PROMPTS), atol=1e-5)
        tokens = ranker.expected_tokens(PROMPTS)
        np.testing.assert_allclose([it["expected_tokens"] for it in got], tokens, atol=0.2)
        assert len(list(out.glob("*.jsonl"))) == 4  # 7, 7, 7 and 4 rows


def test_no_prompt_is_kept(folder):
    """Not in the scores, and not beside them."""
    log = prompts_file(folder / "log.jsonl", "my secret diary")

    pars_score(log, "--output", folder / "out", ranker="")

    kept = "".join(it.read_text() for it in (folder / "out").iterdir())
    assert "r0" in kept
    assert "secret" not in kept


def test_json_lines_csv_and_parquet_give_the_same_scores(folder):
    """Three files in one call; those of a table have their ids from it, too."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"id": n, "prompt": it} for n, it in enumerate(PROMPTS[:3])]
    write_lines(folder / "a.jsonl", *rows)
    (folder / "b.csv").write_text(
        "id,prompt\n" + "".join(f"{n},{it}\n" for n, it in enumerate(PROMPTS[:3]))
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "c.parquet")

    done = pars_score("a.jsonl", "b.csv", "c.parquet", "--output", "out")

    assert done.exit_code == 0, done.output
    parts = [(folder / "out" / f"{n:04d}-00000.jsonl").read_bytes() for n in range(3)]
    assert parts[0] == parts[1] == parts[2]
    assert [json.loads(it)["id"] for it in parts[0].splitlines()] == ["0", "1", "2"]


def test_chats_are_read_without_their_answer_and_rows_without_a_prompt_are_counted(folder):
    """As everywhere; a row without an id is called by its file and number."""
    asked = {"role": "user", "content": "Why?"}
    write_lines(
        folder / "log.jsonl",
        {"messages": [asked, {"role": "assistant", "content": "Because it is so."}]},
        {"messages": []},
        {"messages": [asked]},
    )

    done = pars_score("log.jsonl", "--output", "out")

    assert "2 prompts scored" in done.output
    assert "1 rows without a prompt left out" in done.output
    rows = scores_in(folder / "out")
    assert {it: row["score"] for it, row in rows.items()} == {
        "log.jsonl:1": 4.0,
        "log.jsonl:3": 4.0,
    }
    assert "expected_tokens" not in rows["log.jsonl:1"]  # this ranker only orders


def test_fields_can_be_named(folder):
    """By dotted path; and an object that tells tokens is asked for both."""
    write_lines(folder / "log.jsonl", {"a": {"b": "Why?"}, "c": {"d": 7}, "prompt": "no"})

    pars_score(
        *("log.jsonl", "--output", "out", "--prompt-field", "a.b", "--id-field", "c.d"),
        ranker="counting:InTokens",
    )

    [row] = scores_in(folder / "out").values()
    assert (row["id"], row["score"], row["expected_tokens"]) == ("7", 4.0, 40.0)


def test_a_part_is_read_before_the_rest_of_its_file(folder):
    """Else a large file would be in memory whole: what is broken behind it is not yet seen."""
    log = prompts_file(folder / "log.jsonl", *["x"] * 300)
    with log.open("a") as file:
        file.write('{"prompt": 3}\n')
    parts = parts_of(Log(0, log), Reading(rows_a_part=100))

    assert [len(next(parts).prompts) for _ in range(3)] == [100, 100, 100]
    with pytest.raises(DataError, match="row 301: field 'prompt' must be text, not a number"):
        next(parts)


def test_parts_are_read_as_processes_have_room():
    """Two a process are handed out, and the next when one is done: memory holds no more."""
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(-9, 0):
            taken.append(number)
            yield number

    results = spread(abs, tasks(), 2)

    first = next(results)
    assert len(taken) == 4
    assert sorted([first, *results]) == list(range(1, 10))


def test_what_was_stopped_goes_on_and_asks_for_no_part_twice(folder):
    """Ctrl-C in the second of three parts: the first stays, and the third is not begun."""
    log = prompts_file(folder / "log.jsonl", "a", "b", "stop", "d", "e")
    arguments = (log, "--output", "out", "--rows-a-part", 2)

    first = pars_score(*arguments, ranker="counting:Stopped")
    there = scores_in(folder / "out")
    second = pars_score(*arguments, ranker="counting:Stopped")

    assert (first.exit_code, second.exit_code) == (130, 0)
    assert "the same command again goes on" in first.output
    assert set(there) == {"r0", "r1"}
    assert "3 prompts scored" in second.output
    assert "2 were there" in second.output
    assert asked_of_ranker(folder) == ["a", "b", "stop", "d", "e"]
    assert set(scores_in(folder / "out")) == {f"r{n}" for n in range(5)}


def test_a_file_that_is_done_is_not_read_again_and_more_may_follow(folder):
    """Tomorrow's log goes behind today's: only it is scored."""
    today = prompts_file(folder / "today.jsonl", "a", "b")
    pars_score(today, "--output", "out")
    num_bytes = today.stat().st_size
    today.write_bytes(b"#" * num_bytes)  # would be no JSON, if anybody looked

    done = pars_score(today, prompts_file(folder / "tomorrow.jsonl", "c"), "--output", "out")

    assert done.exit_code == 0, done.output
    assert "1 prompts scored" in done.output
    assert "2 were there" in done.output
    assert asked_of_ranker(folder) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"ranker": "counting:InTokens"}, 'was scored with ranker "counting:Counting", not'),
        ({"reading": Reading(rows_a_part=3)}, "was scored with rows_a_part 5000, not 3"),
        ({"files": (Path("other.jsonl"),)}, "file 1 was log.jsonl of .* bytes, not other.jsonl"),
    ],
)
def test_a_folder_takes_no_other_scores(folder, change, problem):
    """Two rankers' scores in one folder would order nothing."""
    prompts_file(folder / "log.jsonl", "a")
    prompts_file(folder / "other.jsonl", "a")
    plan = {"files": (Path("log.jsonl"),), "output": folder / "out", "num_processes": 1}
    plan |= {"ranker": "counting:Counting"}
    score(ScorePlan(**plan))

    with pytest.raises(ParsError, match=problem):
        score(ScorePlan(**{**plan, **change}))


@pytest.mark.parametrize(
    ("rows", "options", "problem"),
    [
        ([{"text": "a"}], [], r"row 1: has no field 'prompt'; its fields: text"),
        ([{"prompt": "a"}], ["--prompt-field", "q"], r"row 1: has no field 'q'"),
        ([{"prompt": "a", "id": [1]}], [], r"row 1: field 'id' must be text or a whole number"),
    ],
)
def test_what_cannot_be_read_is_named(folder, rows, options, problem):
    """File, row and field, in one line."""
    done = pars_score(write_lines(folder / "log.jsonl", *rows), "--output", "out", *options)

    assert isinstance(done.exception, DataError)
    assert done.exception.args[0].startswith(f"{folder / 'log.jsonl'}, row 1")
    with pytest.raises(DataError, match=problem):
        raise done.exception


def test_a_ranker_that_is_not_there_leaves_no_folder(folder):
    """It is looked for first."""
    log = prompts_file(folder / "log.jsonl", "a")

    done = pars_score(log, "--output", "out", ranker="nothing")

    assert isinstance(done.exception, RankerError)
    assert not (folder / "out").exists()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pars", "score", *arguments]


def test_a_process_that_is_killed_is_said_and_what_was_done_stays(folder):
    """As the system does it to one that takes too much memory."""
    log = prompts_file(folder / "log.jsonl", *(["a"] * 8), "kill")
    arguments = ("--output", "out", "--rows-a-part", "1", "--num-processes", "2")

    done = subprocess.run(
        command(str(log), *arguments, "--ranker", "counting:Killed"),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "a process that scored was killed (out of memory?)" in done.stderr
    assert (folder / "out" / "0000-00000.jsonl").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_processes_and_every_part_that_is_there_is_whole(folder, signum):
    """A real signal to the whole group, as a terminal sends it; then the same command again."""
    log = prompts_file(folder / "log.jsonl", *(f"{it} {n}" for n in range(800) for it in PROMPTS))
    arguments = command(str(log), "--rows-a-part", "50", "--num-processes", "2", "--output")
    process = subprocess.Popen([*arguments, "out"], start_new_session=True, stderr=subprocess.PIPE)
    eventually(lambda: (folder / "out" / "0000-00001.jsonl").exists())
    os.killpg(process.pid, signum) if signum == signal.SIGINT else process.send_signal(signum)
    _, told = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 130, told
    with pytest.raises(ProcessLookupError):  # soon nobody is left in its group
        eventually(lambda: os.killpg(process.pid, 0))
    parts = list((folder / "out").glob("*.jsonl"))
    assert 1 <= len(parts) < 400
    assert all(len(it.read_text().splitlines()) == 50 for it in parts)
    assert not list((folder / "out").glob(".*"))

    subprocess.run([*arguments, "out"], check=True, capture_output=True)
    assert len(scores_in(folder / "out")) == 20_000


# Where the scores go


def requests(*prompts: str) -> list[WorkloadRequest]:
    return [WorkloadRequest(str(n), 0.0, it, 5, 5) for n, it in enumerate(prompts)]


def test_a_folder_of_scores_orders_a_workload_by_its_prompts(folder):
    """Its ids are those of the log and not of the workload, where r0 is another request."""
    prompts_file(folder / "log.jsonl", "long, long", "mid", "s", "mid")
    pars_score("log.jsonl", "--output", "out", "--rows-a-part", 1)

    scores = FileSource(folder / "out").scores(requests("s", "mid", "long, long"))

    assert scores.values.tolist() == [1.0, 3.0, 10.0]
    assert scores.facts["rows"] == 3


def test_a_prompt_behind_a_note_is_found_by_its_checksum(folder):
    """With the note, where the log has it, or without."""
    prompts_file(folder / "log.jsonl", "hello")
    pars_score("log.jsonl", "--output", "out")

    assert FileSource(folder / "out").scores(
        requests(with_note("hello", [1024]))
    ).values.tolist() == [5.0]
    with pytest.raises(DataError, match="has no row with the prompt of request '0'"):
        FileSource(folder / "out").scores(requests("hullo"))


def test_scores_with_tokens_bring_their_calibration(folder):
    """The tokens of a score are those that stand beside it, and straight lines between."""
    prompts_file(folder / "log.jsonl", "1", "333", "55555")
    pars_score("log.jsonl", "--output", "out", ranker="counting:InTokens")

    scores = FileSource(folder / "out").scores(requests("1", "55555"))

    assert scores.values.tolist() == [1.0, 5.0]
    tokens = list(map(scores.calibration.expected_tokens, (1.0, 3.0, 4.0, 5.0)))
    assert tokens == [10.0, 30.0, 40.0, 50.0]


def test_simulate_goes_by_a_folder_of_scores(folder):
    """The command that the report names, on the log itself."""
    rows = [{"prompt": "p" * n, "answer_tokens": n} for n in range(1, 40)]
    write_lines(folder / "log.jsonl", *rows)
    pars_score("log.jsonl", "--output", "out")
    asked = [
        "simulate",
        "--records",
        "log.jsonl",
        "--policies",
        "fcfs,mine,oracle",
        "--rates",
        "50",
    ]

    done = CliRunner().invoke(commands, [*asked, "--scores", "mine=out", "--output-dir", "sim"])

    assert done.exit_code == 0, done.output
    assert "mine" in done.output
