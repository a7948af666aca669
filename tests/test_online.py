"""The ranker that learns while it serves: what it makes of answers, and what it keeps of them."""

import json
import math
import os
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pars.cli.main import commands
from pars.errors import ParsError
from pars.learn.evaluation.online import evaluate_online
from pars.ranking.online.forgetting import forget_caller
from pars.ranking.online.model import Callers, OnlineModel
from pars.ranking.online.ranker import Gauge, OnlineRanker
from pars.ranking.online.reading import NUM_SLOTS, Reader
from pars.ranking.online.state import HEAD, MARK, MAX_IDS, MAX_LOG_BYTES, State, forget
from pars.ranking.online.words import MAX_PARTS, WordHashes
from pars.request.features import Signals, signals_of
from pars.request.prompts import read_request

SECRET = b"a secret of sixteen bytes or more"
CHAT = "/v1/chat/completions"


def asked(text: str, key: str = "", **fields: Any) -> Signals:
    """A chat request's signals."""
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **fields}
    request = read_request(CHAT, body)
    assert request is not None
    return signals_of(CHAT, body, request, key)


def traffic(num_requests: int, seed: int = 0) -> list[tuple[Signals, int]]:
    """Essays of about 800 tokens and translations of about 30, in other words each time."""
    chance = random.Random(seed)
    nouns = [f"thing{n}" for n in range(200)]
    requests = []
    for _ in range(num_requests):
        about = " ".join(chance.sample(nouns, 3))
        if chance.random() < 0.5:
            requests.append((asked(f"Write an essay about {about}"), chance.randint(600, 1000)))
        else:
            requests.append((asked(f"Translate to French: {about}"), chance.randint(20, 40)))
    return requests


def test_a_hundred_answers_teach_the_words_that_matter():
    """Afterwards an essay about things never named is expected to be longer than a translation."""
    ranker = OnlineRanker(SECRET)
    for signals, tokens in traffic(100):
        ranker.learn(ranker.expect(signals), tokens)

    essay = ranker.expect(asked("Write an essay about the sea"))
    translation = ranker.expect(asked("Translate to French: the sea"))

    assert essay.tokens > 5 * translation.tokens
    assert essay.low_tokens < essay.tokens < essay.high_tokens


def test_who_asks_is_learned_by_his_key():
    """The same words from two callers, one of whom gets long answers, within fifty each."""
    ranker = OnlineRanker(SECRET)
    chance = random.Random(1)
    for _ in range(100):
        words = f"word{chance.randrange(1000)}"
        key, tokens = chance.choice([("long", 900), ("short", 20)])
        ranker.learn(ranker.expect(asked(words, key)), tokens)

    guesses = {key: ranker.expect(asked("Hello", key)).tokens for key in ("long", "short")}

    assert guesses["long"] > 3 * guesses["short"]


def test_one_callers_odd_answers_move_the_others_little():
    """A quarter of the traffic turns round what it gets; the others' order stays above 0.6."""
    alone, beside = OnlineRanker(SECRET), OnlineRanker(SECRET)
    held_out = traffic(200, seed=9)
    for number, (signals, tokens) in enumerate(traffic(600)):
        alone.learn(alone.expect(signals), tokens)
        beside.learn(beside.expect(signals), tokens)
        if number % 3 == 0:
            liar = Signals(signals.text, ("key=liar", *signals.facts), signals.before, 10.0)
            beside.learn(beside.expect(liar), 20_000 / tokens)

    def accuracy(ranker: OnlineRanker) -> float:
        told = [(ranker.expect(signals).tokens, tokens) for signals, tokens in held_out]
        pairs = [(a, b) for a in told for b in told if a[1] > 2 * b[1]]
        return sum(a[0] > b[0] for a, b in pairs) / len(pairs)

    assert accuracy(alone) > 0.99
    assert accuracy(beside) > 0.95


def test_who_turns_the_others_answers_round_loses_his_say():
    """What all share says the opposite of his answers: they count for nothing; others' do."""
    callers, chance = Callers(), random.Random(4)
    trusts = {}
    for _ in range(200):
        expected = chance.gauss(0, 1)
        noise = chance.gauss(0, 0.5)
        trusts["honest"] = callers.trust(1, expected, expected + noise)
        trusts["liar"] = callers.trust(2, expected, noise - expected)
        trusts["odd scale"] = callers.trust(3, expected, 3 + expected / 2 + noise)
    trusts["new"] = callers.trust(4, 1.0, -1.0)

    assert trusts["liar"] == 0
    assert trusts["honest"] == trusts["new"] == 1
    assert trusts["odd scale"] > 0.6


def test_an_answer_cut_short_is_no_short_answer():
    """Cut at 100 tokens where 800 were expected, it teaches nothing; where 20 were, it does."""
    ranker = OnlineRanker(SECRET)
    for signals, tokens in traffic(200):
        ranker.learn(ranker.expect(signals), tokens)
    essay, translation = asked("Write an essay about it"), asked("Translate to French: it")
    before = ranker.expect(essay).tokens, ranker.expect(translation).tokens
    for _ in range(5):
        ranker.learn(ranker.expect(essay), 100, is_lower_bound=True)
    assert ranker.expect(essay).tokens == before[0]

    for _ in range(5):
        ranker.learn(ranker.expect(translation), 100, is_lower_bound=True)
    assert ranker.expect(translation).tokens > before[1]


def test_eight_of_ten_answers_fall_into_the_interval():
    """After a thousand requests of any spread, within five points."""
    ranker, chance = OnlineRanker(SECRET), random.Random(2)
    inside = []
    for number in range(3000):
        guess = ranker.expect(asked(f"say word{number % 50}"))
        tokens = math.exp(chance.gauss(4, 1.3))
        inside.append(guess.low_tokens <= tokens <= guess.high_tokens)
        ranker.learn(guess, tokens)

    assert 0.75 <= np.mean(inside[1000:]) <= 0.85


def test_the_gauge_is_of_what_was_told_before_the_answer():
    """Random answers never make the order count; answers that follow it do, and then no more."""
    chance, gauge = random.Random(3), Gauge(window=200)

    def see(num_answers: int, slope: float) -> None:
        for _ in range(num_answers):
            told = chance.random()
            gauge.observe(told, slope * told + chance.random(), is_lower_bound=False)
            if gauge.is_due:
                gauge.judge()

    see(11, 1.0)
    assert not gauge.is_useful
    see(100, 1.0)
    assert gauge.is_useful
    see(400, -1.0)
    assert not gauge.is_useful
    see(400, 1.0)
    assert gauge.is_useful


def test_no_word_and_no_key_can_be_told_without_the_secret():
    """The same request has other ids under another secret, and the same under the same."""
    signals = asked("Write an essay about the sea", "key")
    first, again, other = (Reader(it).read(signals) for it in (SECRET, SECRET, b"another" * 5))

    assert first.ids.tolist() == again.ids.tolist()
    assert not set(first.ids.tolist()) & set(other.ids.tolist())
    assert first.ids.max() < NUM_SLOTS


@pytest.mark.parametrize(
    "text", ["", "\ud800", "x" * 100_000, "a " * 50_000, "\0\n\t", "日本語 " * 999]
)
def test_any_text_is_read_within_bounds(text: str):
    """Few ids, finite numbers, whatever is asked."""
    reading = Reader(SECRET).read(asked(text))

    assert len(reading.ids) < MAX_IDS
    assert np.isfinite(reading.dense).all()


def test_a_character_is_a_word_where_words_have_no_space_between():
    """Two Chinese sentences of other words share the characters that they have in common."""
    words = WordHashes(SECRET, {})
    first, second = words.of("写一篇文章")[0], words.of("请写文章")[0]

    assert (len(first), len(second)) == (5, 4)
    assert len(set(first.tolist()) & set(second.tolist())) == 3


def test_words_are_told_by_letters_digits_and_signs():
    """Case does not count, a new line does, and only a word that is known has a vector."""
    words = WordHashes(SECRET, {"tea": 7})
    hashes, rows = words.of("Tea-2,\ntea\tun_known")

    assert rows.tolist() == [7, 0, 0, 0, 0, 7, 0, 0]
    assert hashes[0] == hashes[5]
    assert len(set(hashes.tolist())) == 7


def test_the_start_and_the_end_of_a_long_text_are_read():
    """128 words and 48, whether it is a little too long or very much."""
    words = WordHashes(SECRET, {})
    for num_words in (300, 30_000):
        text = " ".join(f"w{it:05d}" for it in range(num_words))  # each a letter and a number
        expected = [words.of(text[start:][:700])[0] for start in (0, len(text) - 24 * 7)]
        read = words.of(text)[0]
        assert read[:128].tolist() == expected[0][:128].tolist()
        assert read[128:].tolist()[-47:] == expected[1].tolist()[-47:]


def test_the_end_of_a_text_without_spaces_is_read_too():
    """Of 300 different characters the first 128 and the last 48."""
    words = WordHashes(SECRET, {})
    text = "".join(chr(0x4E00 + number) for number in range(300))
    each = [int(words.of(it)[0][0]) for it in text]

    assert words.of(text)[0].tolist() == each[:128] + each[-48:]


def test_what_is_remembered_of_words_is_bounded():
    """However many there are; and they are told the same afterwards."""
    words = WordHashes(SECRET, {})
    before = words.of("some words")[0].tolist()
    for number in range(2 * MAX_PARTS):
        words.of(f"word{number}" if number % 2 else "x" * 10_000 + str(number))
        words.of("!?" * 30 + "abc"[number % 3])

    assert len(words) <= MAX_PARTS + 1
    assert sum(map(len, words.values())) < 128 * MAX_PARTS
    assert words.of("some words")[0].tolist() == before


# What is kept


def taught(state: State, num_requests: int, seed: int = 0) -> OnlineRanker:
    """A ranker of that folder, which has learned so many answers and kept them."""
    ranker = OnlineRanker(state.secret, state.load())
    for signals, tokens in traffic(num_requests, seed):
        guess = ranker.expect(signals)
        ranker.learn(guess, tokens)
        state.keep(guess.reading, math.log1p(tokens), is_lower_bound=False)
    state.flush()
    return ranker


def test_what_was_learned_outlives_a_kill(tmp_path: Path):
    """From the log alone, and from a snapshot with a log behind it, the expectations return."""
    ranker = taught(State(tmp_path), 60)
    question = asked("Write an essay about the sea")
    expected = ranker.expect(question).tokens

    state = State(tmp_path)
    returned = OnlineRanker(state.secret, state.load())
    assert returned.expect(question).tokens == pytest.approx(expected, rel=1e-3)
    assert state.snapshot(returned.model)

    again = State(tmp_path)
    assert OnlineRanker(again.secret, again.load()).expect(question).tokens == pytest.approx(
        expected, rel=1e-3
    )


def test_processes_learn_from_each_other(tmp_path: Path):
    """Each follows the other's log, and none learns an answer twice."""
    first, second = State(tmp_path), State(tmp_path)
    taught(first, 30)
    taught(second, 20, seed=1)

    assert len(list(first.news())) == 20
    assert list(first.news()) == []
    taught(second, 5, seed=2)
    assert len(list(first.news())) == 5


def test_two_writers_do_not_meet_in_the_snapshot(tmp_path: Path):
    """Whoever does not get the lock leaves it to the other."""
    import fcntl

    state = State(tmp_path)
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not state.snapshot(OnlineModel())
    assert state.snapshot(OnlineModel())


@pytest.mark.parametrize("damage", ["cut", "flip", "junk before", "snapshot", "empty snapshot"])
def test_a_damaged_file_costs_what_it_held(tmp_path: Path, damage: str):
    """The start goes on with the rest."""
    state = State(tmp_path)
    ranker = taught(state, 40)
    [log] = tmp_path.glob("learned-*.log")
    data = log.read_bytes()
    if damage == "cut":
        log.write_bytes(data[:-7])
    elif damage == "flip":
        log.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    elif damage == "junk before":
        log.write_bytes(b"P3" + b"\xff" * 90 + data)
    else:
        state.snapshot(ranker.model)
        model = tmp_path / "model.npz"
        model.write_bytes(model.read_bytes()[:9000] if damage == "snapshot" else b"")

    num_learned = State(tmp_path).load().num_learned

    assert num_learned == {"cut": 39, "flip": 39}.get(damage, 40)


def test_what_an_older_version_learned_is_begun_anew(tmp_path: Path):
    """Its snapshot and its logs count for nothing; the next snapshot takes their place."""
    older = State(tmp_path)
    older.snapshot(taught(older, 40).model)
    with np.load(tmp_path / "model.npz") as stored:
        arrays = dict(stored)
    note = json.loads(arrays["note"].tobytes()) | {"format": 3}
    arrays["note"] = np.frombuffer(json.dumps(note).encode(), np.uint8)
    np.savez(tmp_path / "model.npz", **arrays)
    for log in tmp_path.glob("learned-*.log"):
        log.write_bytes(log.read_bytes().replace(b"P4", b"P3") * 10)
        os.utime(log, (0, 0))

    state = State(tmp_path)
    ranker = taught(state, 7)

    assert ranker.model.num_learned == 7
    assert state.snapshot(ranker.model)
    assert len(list(tmp_path.glob("learned-*.log"))) == 1
    assert State(tmp_path).load().num_learned == 7


def test_a_secret_that_was_cut_is_made_anew(tmp_path: Path):
    """And is the owner's alone."""
    (tmp_path / "secret").write_bytes(b"short")

    assert len(State(tmp_path).secret) == 32
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_nothing_on_disk_tells_a_word(tmp_path: Path):
    """Neither words nor keys stand in any file."""
    state = State(tmp_path)
    ranker = OnlineRanker(state.secret, state.load())
    guess = ranker.expect(asked("Confidential merger", "sk-topsecret", user="ada"))
    state.keep(guess.reading, 3.0, is_lower_bound=False)
    state.flush()
    state.snapshot(ranker.model)

    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(word in held.lower() for word in (b"confidential", b"merger", b"secret", b"ada"))


def test_forgetting_wipes_the_folder_and_is_noticed(tmp_path: Path):
    """Nothing of it is left; a process that runs sees it."""
    state = State(tmp_path)
    taught(state, 10)

    assert not state.is_forgotten()
    done = CliRunner().invoke(commands, ["forget", "--state", str(tmp_path)])

    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []
    assert state.is_forgotten()
    assert forget(tmp_path) == 0


def test_one_callers_part_is_wiped_on_disk_and_where_it_runs(tmp_path: Path):
    """His answers and weights are gone, also from a snapshot; the others' are not."""
    state, running = State(tmp_path), State(tmp_path)
    ranker = OnlineRanker(state.secret, state.load())
    for number in range(120):
        key, tokens = [("long", 900), ("short", 20)][number % 2]
        guess = ranker.expect(asked(f"word{number}", key))
        ranker.learn(guess, tokens)
        state.keep(guess.reading, math.log1p(tokens), is_lower_bound=False)
        if number == 60:
            state.flush()
            assert state.snapshot(ranker.model)
    state.flush()
    follower = OnlineRanker(running.secret, running.load())
    before = {key: follower.expect(asked("Hi", key)).tokens for key in ("long", "short", "new")}
    assert before["long"] > 2 * before["new"]

    done = CliRunner().invoke(commands, ["forget", "--state", str(tmp_path), "--caller", "long"])
    assert done.exit_code == 0, done.output
    assert "with 60 answers" in done.output
    follower.model.forget(running.forgotten_slots())
    for again in (follower, OnlineRanker(state.secret, State(tmp_path).load())):
        after = {key: again.expect(asked("Hi", key)).tokens for key in ("long", "short", "new")}
        assert after["long"] < 1.3 * after["new"]
        assert after["short"] < 0.8 * after["new"]
    assert len(running.forgotten_slots()) == 0

    nothing = CliRunner().invoke(
        commands, ["forget", "--state", str(tmp_path / "x"), "--caller", "k"]
    )
    assert nothing.exit_code != 0


# Replaying a log


def records(path: Path, num_rows: int) -> Path:
    with path.open("w") as file:
        for signals, tokens in traffic(num_rows):
            row = {"prompt": signals.text, "output_tokens": tokens, "model": "m"}
            file.write(json.dumps(row) + "\n")
    return path


def test_a_log_is_replayed_in_its_order(tmp_path: Path):
    """Of 500 rows 400 are learned, each after it was predicted; the last hundred never."""
    result = evaluate_online(records(tmp_path / "log.jsonl", 500))

    assert (result.num_rows, result.num_held_out) == (500, 100)
    assert list(result.after) == [100, 300, 400]
    assert result.after[400].value > 0.5
    assert [(it.first, it.last) for it in result.windows] == [(1, 400)]


def test_the_replay_is_a_command(tmp_path: Path):
    """A table for people, JSON for programs."""
    log = str(records(tmp_path / "log.jsonl", 200))
    told = CliRunner().invoke(commands, ["evaluate", "--online", log])
    as_json = CliRunner().invoke(commands, ["evaluate", "--online", log, "--json"])

    assert told.exit_code == 0, told.output
    assert "after own requests" in told.output
    assert json.loads(as_json.output)["num_held_out"] == 40


def test_a_log_that_is_too_short_is_refused(tmp_path: Path):
    """One line, exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "pars", "evaluate", "--online", records(tmp_path / "l.jsonl", 5)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )

    assert done.returncode == 2
    assert "has 5 rows; a replay needs 20 or more" in done.stderr


@pytest.mark.parametrize("name", ["lock", "forgotten"])
def test_what_is_written_follows_no_link(tmp_path: Path, name: str):
    """Whoever may write to the folder cannot have us overwrite a file elsewhere."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    folder = tmp_path / "state"
    state = State(folder)
    (folder / name).symlink_to(precious)

    with pytest.raises(ParsError, match="symbolic link"):
        forget_caller(folder, "sk-1")
    if name == "lock":
        with pytest.raises(OSError, match="symbolic link"):
            state.snapshot(OnlineModel())

    assert precious.read_text() == "kept"


@pytest.mark.parametrize("name", ["model.npz", "learned-1-abcd.log", "forgotten"])
def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path: Path, name: str):
    """It is no file of ours, and costs what a damaged one does."""
    os.mkfifo(tmp_path / name)

    assert State(tmp_path).load().num_learned == 0


def test_a_record_of_no_number_is_damage(tmp_path: Path):
    """It has a right checksum, which has no key, and is left out."""
    state = State(tmp_path)
    ranker = taught(state, 3)
    guess = ranker.expect(asked("Write an essay"))
    state.keep(guess.reading, math.nan, is_lower_bound=False)
    state.flush()

    assert State(tmp_path).load().num_learned == 3


def test_a_pipe_for_a_secret_is_an_error_and_no_wait(tmp_path: Path):
    """The start says what is wrong."""
    os.mkfifo(tmp_path / "secret")

    with pytest.raises(ParsError, match="not a regular file"):
        State(tmp_path)


def test_what_is_learned_is_for_its_owner_only(tmp_path: Path):
    """Each file, whatever the umask is."""
    state = State(tmp_path)
    ranker = taught(state, 3)
    state.snapshot(ranker.model)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o600}, modes


def test_an_order_that_began_with_some_knowledge_ends_where_answers_speak_against_it():
    """Twelve answers in the opposite order do; without such knowledge nothing is ordered at all."""
    began, blank = OnlineRanker(SECRET, begins_ordered=True), OnlineRanker(SECRET)
    assert (began.is_useful, blank.is_useful) == (True, False)

    for number in range(12):
        began.gauge.observe(float(number), float(-number), is_lower_bound=False)
    began.gauge.judge()

    assert not began.is_useful


def test_the_first_answers_move_nothing_of_what_waits_beside_what_comes():
    """Up to thirty the bundled ranker's word stands alone: 128 tokens where it says none."""
    ranker, question = OnlineRanker(SECRET, begins_ordered=True), asked("Name a sea")
    first = ranker.expect(question), ranker.expect(question, 2.0)
    assert first[0].tokens == ranker.neutral_tokens == pytest.approx(128.0)
    assert first[1].tokens == pytest.approx(129.0 * math.exp(0.3 * 2.0) - 1.0)
    long_tokens = ranker.long_tokens

    for _ in range(29):
        ranker.learn(first[0], 5)
        again = ranker.expect(question), ranker.expect(question, 2.0)
        assert [guess.tokens for guess in again] == [guess.tokens for guess in first]
        assert (ranker.neutral_tokens, ranker.long_tokens) == (first[0].tokens, long_tokens)
    ranker.learn(first[0], 5)
    assert ranker.expect(question).tokens == pytest.approx(5.0, abs=1.0)
    assert ranker.neutral_tokens == pytest.approx(5.0)


def test_what_was_learned_before_a_start_orders_at_once(tmp_path: Path):
    """The answers that prove it come only after the start."""
    ranker = taught(State(tmp_path), 40)
    again = State(tmp_path)

    assert OnlineRanker(again.secret, again.load()).is_useful
    assert ranker.model.num_learned == 40


def test_garbage_that_looks_like_records_holds_nobody_up(tmp_path: Path):
    """However long it is, it is passed over once, and what comes behind it is learned."""
    state, other = State(tmp_path), State(tmp_path)
    garbage = HEAD.pack(MARK, MAX_IDS, 0, 0, 1.0, 0, 7) * (3 * MAX_LOG_BYTES // HEAD.size)
    reading = OnlineRanker(state.secret).expect(asked("Write an essay")).reading
    other.keep(reading, 1.0, is_lower_bound=False)
    other.flush()
    [log] = tmp_path.glob("learned-*.log")
    record = log.read_bytes()
    log.write_bytes(garbage + record)

    looks = [len(list(state.news())) for _ in range(3)]

    assert sum(looks) == 1
