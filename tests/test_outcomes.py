"""Outcomes reach their folder whole, within bounds, and are read whatever a crash left of them."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pars.errors import DataError, ParsError
from pars.outcomes.limits import OutcomeLimits, load_redact
from pars.outcomes.metrics import OutcomeMetrics
from pars.outcomes.records import Outcome, read_outcomes
from pars.outcomes.writer import OutcomeWriter

from serving import DEADLINE_S, eventually

NOW_S = 1_795_532_645.0  # 2026-11-24T15:04:05Z
DAY_S = 86_400.0
FULL = Outcome(
    arrival_s=NOW_S,
    path="/v1/completions",
    decision="scored",
    model="m",
    ranker="0123456789ab",
    score=1.5,
    expected_tokens=120.0,
    max_tokens=500,
    num_answers=2,
    num_prompts=1,
    prompt_tokens=11,
    answer_tokens=97,
    is_exact=True,
    finish_reason="stop",
    status=200,
    wait_s=0.25,
    total_s=1.75,
    prompt_key="00112233445566ff",
)


def outcome(number: int, **fields: Any) -> Outcome:
    return Outcome(arrival_s=NOW_S + number, path="/v1/completions", decision="scored", **fields)


class Folder:
    """A writer's folder, and what the writer counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.registry = CollectorRegistry()
        self.metrics = OutcomeMetrics(self.registry)
        self.now_s = NOW_S

    def writer(self, *, max_queued: int = 4096, **limits: Any) -> OutcomeWriter:
        return OutcomeWriter(
            self.path,
            OutcomeLimits(**limits),
            self.metrics,
            clock=lambda: self.now_s,
            max_queued=max_queued,
        )

    @contextmanager
    def writing(self, **limits: Any) -> Iterator[OutcomeWriter]:
        """A writer that has written everything when the block ends."""
        writer = self.writer(**limits)
        writer.start()
        yield writer
        writer.close(DEADLINE_S)

    def write(self, *outcomes: Outcome, **limits: Any) -> None:
        with self.writing(**limits) as writer:
            for it in outcomes:
                writer.put(it)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def dropped(self, reason: str) -> float:
        return self.count("pars_outcomes_dropped_total", reason=reason)

    def dropped_prompts(self, reason: str) -> float:
        return self.count("pars_outcome_prompts_dropped_total", reason=reason)

    @property
    def num_written(self) -> float:
        return self.count("pars_outcomes_written_total")

    def files(self, kind: str) -> list[Path]:
        return sorted(self.path.glob(f"{kind}-*"))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "outcomes")


# Reading


def test_what_was_written_is_read(folder: Folder):
    """Every field comes back as it was, those that are not known as None."""
    bare = outcome(1)

    folder.write(FULL, bare)

    read = read_outcomes(folder.path)
    assert read.outcomes == [FULL, bare]
    assert (read.num_files, read.num_damaged, read.num_newer) == (1, 0, 0)
    assert folder.num_written == 2


def test_outcomes_come_by_arrival(folder: Folder):
    """Those of several processes and files are in one order, that of the requests."""
    folder.write(outcome(3), outcome(1))
    folder.write(outcome(2))

    read = read_outcomes(folder.path)

    assert [it.arrival_s - NOW_S for it in read.outcomes] == [1, 2, 3]
    assert read.num_files == 2


def test_a_file_cut_anywhere_loses_the_cut_line_only(tmp_path: Path):
    """Of three lines, cut at each byte, those that are whole are read and a part is counted."""
    lines = [outcome(number, finish_reason="stop").to_line() for number in range(3)]
    ends = [len(b"".join(lines[: count + 1])) for count in range(3)]
    path = tmp_path / "outcomes-20261124T150405Z-1-1.jsonl"
    for cut in range(ends[-1]):
        path.write_bytes(b"".join(lines)[:cut])

        read = read_outcomes(tmp_path)

        # A line that lacks nothing but its line feed is whole.
        assert len(read.outcomes) == sum(end - 1 <= cut for end in ends), cut
        is_whole = cut == 0 or any(cut in (end - 1, end) for end in ends)
        assert read.num_damaged == (0 if is_whole else 1), cut


@pytest.mark.parametrize(
    "line",
    [
        b"\x00\xff\xfe",
        b"[1, 2]",
        b"7",
        b"{}",
        b'{"arrival_s": 1.0, "path": "/v1/completions"}',
        b'{"arrival_s": "1", "path": "/", "decision": "scored"}',
        b'{"arrival_s": true, "path": "/", "decision": "scored"}',
        b'{"arrival_s": NaN, "path": "/", "decision": "scored"}',
        b'{"arrival_s": 1e999, "path": "/", "decision": "scored"}',
        b'{"arrival_s": 1, "path": "/", "decision": "scored", "answer_tokens": 1.5}',
        b'{"arrival_s": 1, "path": "/", "decision": "scored", "is_exact": 1}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_is_counted_and_the_next_is_read(tmp_path: Path, line: bytes):
    """What is no outcome is left out, and the lines around it count."""
    path = tmp_path / "outcomes-20261124T150405Z-1-1.jsonl"
    path.write_bytes(outcome(1).to_line() + line + b"\n" + outcome(2).to_line())

    read = read_outcomes(tmp_path)

    assert read.outcomes == [outcome(1), outcome(2)]
    assert read.num_damaged == 1


def test_fields_of_a_later_version_are_ignored_and_counted(tmp_path: Path):
    """An outcome with a field that is not known here is read without it."""
    values = {**json.loads(outcome(1).to_line()), "mood": "good"}
    path = tmp_path / "outcomes-20261124T150405Z-1-1.jsonl"
    path.write_text(json.dumps(values) + "\n")

    read = read_outcomes(tmp_path)

    assert read.outcomes == [outcome(1)]
    assert (read.num_damaged, read.num_newer) == (0, 1)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    """The error says which folder and which setting."""
    with pytest.raises(DataError, match=r"absent: no such folder of outcomes \(PARS_OUTCOMES"):
        read_outcomes(tmp_path / "absent")


@pytest.mark.parametrize(
    ("fields", "is_censored"),
    [
        ({"finish_reason": "stop", "status": 200}, False),
        ({"finish_reason": "length", "status": 200}, True),
        ({"finish_reason": "abort"}, True),
        ({"finish_reason": "error", "status": 200}, True),
        ({"status": 503}, True),
        ({}, False),
    ],
)
def test_an_answer_that_was_cut_short_is_censored(fields: dict[str, Any], is_censored: bool):
    """A limit, a client that leaves and an error cut it short; an end of its own does not."""
    assert outcome(1, **fields).is_censored is is_censored


# Prompts


def test_prompts_are_kept_only_if_asked_for(folder: Folder):
    """By default no text reaches the disk."""
    folder.write(outcome(1, prompt_key="a", prompt="a secret"))

    assert read_outcomes(folder.path).outcomes == [outcome(1, prompt_key="a")]
    assert all(b"secret" not in path.read_bytes() for path in folder.path.iterdir())


def test_prompts_that_are_kept_are_read_with_their_outcomes(folder: Folder):
    """Any text comes back, half a surrogate pair and line feeds too."""
    kept = outcome(1, prompt_key="a", prompt='two\nlines, "quoted" \ud800')

    folder.write(kept, keeps_prompts=True)

    assert read_outcomes(folder.path).outcomes == [kept]


def test_prompts_are_dropped_after_their_time_and_outcomes_stay(folder: Folder):
    """A day and a second later a writer with a retention of a day removes the text."""
    kept = outcome(1, prompt_key="a", prompt="a secret")
    folder.write(kept, keeps_prompts=True, retention_s=DAY_S)

    folder.now_s += DAY_S
    folder.write(keeps_prompts=True, retention_s=DAY_S)
    assert read_outcomes(folder.path).outcomes == [kept]

    folder.now_s += 1
    folder.write(retention_s=DAY_S)
    assert read_outcomes(folder.path).outcomes == [outcome(1, prompt_key="a")]
    assert all(b"secret" not in path.read_bytes() for path in folder.path.iterdir())


def test_prompts_of_a_clock_that_was_ahead_do_not_stay_for_ever(folder: Folder):
    """A text that seems to come from beyond the retention time in the future is dropped."""
    folder.now_s += 400 * DAY_S
    folder.write(outcome(1, prompt_key="a", prompt="a secret"), keeps_prompts=True)

    folder.now_s = NOW_S
    folder.write(outcome(2))

    assert [it.prompt for it in read_outcomes(folder.path).outcomes] == [None, None]


def test_a_redacted_prompt_is_what_is_written(folder: Folder):
    """The hook sees the text, and what it returns is kept in its place."""
    folder.write(
        outcome(1, prompt_key="a", prompt="mail bob@example.org"),
        keeps_prompts=True,
        redact=lambda text: re.sub(r"\S+@\S+", "ADDRESS", text),
    )

    assert [it.prompt for it in read_outcomes(folder.path).outcomes] == ["mail ADDRESS"]


def test_redaction_does_not_touch_a_note(folder: Folder):
    """A rule for numbers sees the message, and the note before it stays whole."""
    folder.write(
        outcome(1, prompt_key="a", prompt="→2 1024 768\ncall 5551234"),
        keeps_prompts=True,
        redact=lambda text: re.sub(r"\d{3,}", "NUMBER", text),
    )

    [kept] = read_outcomes(folder.path).outcomes
    assert kept.prompt == "→2 1024 768\ncall NUMBER"


def fails(text: str) -> str:
    raise ValueError(text)


@pytest.mark.parametrize(
    ("redact", "reason"),
    [
        (fails, "redact_failed"),
        (lambda text: 7, "redact_failed"),
        (lambda text: None, "redacted"),
    ],
)
def test_a_prompt_that_redaction_fails_on_is_not_written(
    folder: Folder, redact: Any, reason: str, caplog: pytest.LogCaptureFixture
):
    """A hook that raises or gives no text costs the text, never the outcome, and is counted."""
    folder.write(outcome(1, prompt_key="a", prompt="a secret"), keeps_prompts=True, redact=redact)

    assert read_outcomes(folder.path).outcomes == [outcome(1, prompt_key="a")]
    assert folder.dropped_prompts(reason) == 1
    assert "secret" not in caplog.text


@pytest.mark.parametrize("name", ["", "re", "re:", "re:absent", "absent_module:f", "re:I", ":f"])
def test_a_redaction_hook_that_is_not_there_is_named(name: str):
    """The error names the setting and what it must look like."""
    with pytest.raises(ParsError, match=r"^outcome_redact: "):
        load_redact(name)


def test_equal_texts_have_one_key_in_all_processes_of_a_folder(folder: Folder, tmp_path: Path):
    """Two writers of one folder agree on a text's key, one of another folder does not."""
    first, second = folder.writer(), folder.writer()
    other = Folder(tmp_path / "other").writer()

    assert first.key_of("a") == second.key_of("a") != first.key_of("b")
    assert other.key_of("a") != first.key_of("a")
    assert re.fullmatch("[0-9a-f]{16}", first.key_of("\ud800"))


def test_only_the_owner_may_read(folder: Folder):
    """Files have mode 0600 and the folder 0700, under any umask."""
    before = os.umask(0)
    try:
        folder.write(outcome(1, prompt_key="a", prompt="a secret"), keeps_prompts=True)
    finally:
        os.umask(before)

    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    modes = {path.name.partition("-")[0]: path.stat().st_mode for path in folder.path.iterdir()}
    assert {name: stat.S_IMODE(mode) for name, mode in modes.items()} == {
        "outcomes": 0o600,
        "prompts": 0o600,
        "key": 0o600,
    }


# Bounds


def test_the_oldest_outcomes_make_room(folder: Folder):
    """Of 2,000 outcomes in 32 KiB the newest are left, and the files stay within the bound."""
    folder.write(*(outcome(number) for number in range(2000)), max_bytes=32_768)

    numbers = [it.arrival_s - NOW_S for it in read_outcomes(folder.path).outcomes]

    assert folder.num_written == 2000
    assert 0 < len(numbers) < 2000
    assert numbers == list(range(2000 - len(numbers), 2000))
    assert sum(path.stat().st_size for path in folder.path.iterdir()) <= 32_768
    assert len(b"".join(outcome(n).to_line() for n in range(len(numbers)))) > 16_384


def test_prompts_count_towards_the_bound(folder: Folder):
    """Texts of 1,000 characters make room like everything else."""
    many = [outcome(n, prompt_key=f"{n}", prompt="x" * 1000) for n in range(200)]

    folder.write(*many, max_bytes=32_768, keeps_prompts=True)

    assert sum(path.stat().st_size for path in folder.path.iterdir()) <= 32_768
    assert read_outcomes(folder.path).outcomes[-1] == many[-1]


def test_what_waits_for_a_slow_disk_is_bounded(folder: Folder):
    """With room for two a third outcome is dropped and counted, and the two are written."""
    writer = folder.writer(max_queued=2)
    for number in range(3):
        writer.put(outcome(number))

    writer.start()
    writer.close(DEADLINE_S)

    assert read_outcomes(folder.path).outcomes == [outcome(0), outcome(1)]
    assert folder.dropped("queue_full") == 1


def test_a_writer_that_is_stuck_does_not_hold_up_the_end(folder: Folder):
    """What a hook that hangs leaves unwritten is counted when the writer closes."""
    entered, gate = threading.Event(), threading.Event()

    def hangs(text: str) -> str:
        entered.set()
        assert gate.wait(DEADLINE_S)
        return text

    writer = folder.writer(keeps_prompts=True, redact=hangs)
    writer.start()
    writer.put(outcome(1, prompt_key="a", prompt="a"))
    assert entered.wait(DEADLINE_S)
    writer.put(outcome(2))

    writer.close(0.0)

    assert folder.dropped("shutdown") == 1
    gate.set()


def test_a_file_removed_by_hand_is_replaced(folder: Folder):
    """Outcomes after `rm` go to a new file and not into one that has no name."""
    with folder.writing() as writer:
        writer.put(outcome(1))
        eventually(lambda: folder.num_written == 1)
        folder.files("outcomes")[0].unlink()
        writer.put(outcome(2))

    assert read_outcomes(folder.path).outcomes == [outcome(2)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_prompts_removed_by_hand_are_gone_from_the_disk(folder: Folder):
    """A writer that has nothing more to write closes the file, so that its bytes are freed."""

    def has_removed_file() -> bool:
        links = []
        for handle in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                links.append(str(handle.readlink()))
        return any(link.startswith(str(folder.path)) for link in links if "deleted" in link)

    with folder.writing(keeps_prompts=True, retention_s=1.0) as writer:
        writer.put(outcome(1, prompt_key="a", prompt="a secret"))
        eventually(lambda: folder.num_written == 1)
        for path in folder.files("prompts"):
            path.unlink()
        eventually(lambda: not has_removed_file())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_bytes": 1000}, "outcome_max_bytes: must be at least 32768: 1000"),
        ({"retention_s": 0.0}, "outcome_retention_s: must be more than 0, up to 1e9: 0.0"),
        ({"retention_s": float("nan")}, "outcome_retention_s: must be .*: nan"),
    ],
)
def test_limits_that_make_no_sense_are_named(limits: dict[str, Any], message: str):
    """The error names the setting and what would be right."""
    with pytest.raises(ParsError, match=message):
        OutcomeLimits(**limits)


def test_a_folder_that_cannot_be_made_stops_the_start(tmp_path: Path):
    """Where a file stands in the way, the error names the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ParsError, match=r"^outcomes: \S+/file/x cannot be made: Not a directory"):
        Folder(tmp_path / "file" / "x").writer()


# What a machine may do to it

STORY = """
    import resource, sys, threading
    from pathlib import Path
    from prometheus_client import CollectorRegistry
    from pars.outcomes.limits import OutcomeLimits
    from pars.outcomes.writer import OutcomeWriter
    from pars.outcomes.records import Outcome
    from pars.outcomes.metrics import OutcomeMetrics

    registry = CollectorRegistry()
    writer = OutcomeWriter(Path(sys.argv[1]), OutcomeLimits(), OutcomeMetrics(registry))
    writer.start()

    def put(number):
        writer.put(Outcome(arrival_s=float(number), path="/v1/completions", decision="scored"))

    def count(name, **labels):
        return registry.get_sample_value(name, labels)
"""


def run_story(folder: Path, story: str) -> subprocess.Popen[str]:
    """A process that has a writer for `folder`."""
    script = textwrap.dedent(STORY) + textwrap.dedent(story)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
    )


def test_a_full_disk_costs_outcomes_and_leaves_whole_lines(tmp_path: Path):
    """A file that may not grow beyond 1,000 bytes holds whole lines; the rest is counted."""
    story = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        for number in range(100):
            put(number)
        writer.close(20)
        print(count("pars_outcomes_written_total"))
        print(count("pars_outcomes_dropped_total", reason="disk_full"))
    """
    with run_story(tmp_path, story) as process:
        written, dropped = map(float, process.communicate(timeout=DEADLINE_S * 3)[0].split())

    read = read_outcomes(tmp_path)
    assert [it.arrival_s for it in read.outcomes] == list(range(len(read.outcomes)))
    assert len(read.outcomes) == written > 0
    assert written + dropped == 100
    assert read.num_damaged == 0


def test_a_killed_process_leaves_whole_lines_but_the_last(tmp_path: Path):
    """After SIGKILL in the midst of writing, what is there is a beginning of what was put."""
    story = """
        number = 0
        while True:
            put(number)
            number += 1
            if number % 100 == 0:
                while count("pars_outcomes_written_total") < number - 50:
                    threading.Event().wait(0.001)
                print(number, flush=True)
    """
    with run_story(tmp_path, story) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 500:
                break
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)

    read = read_outcomes(tmp_path)
    assert len(read.outcomes) >= 450
    assert [it.arrival_s for it in read.outcomes] == list(range(len(read.outcomes)))
    assert read.num_damaged <= 1
