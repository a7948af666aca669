"""
What clients of a real vLLM see at a door: a gateway's, or its own with the middleware behind it.

The ranker here reads the answer's length off the prompt: "words250" is expected to take 250 tokens.
"""

import asyncio
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from pars.ranking.ranker import TOKENIZER_FILE

from engine import MODEL, Engine, wait_until

LENGTHS = range(10, 1000, 10)  # that the ranker knows
SPOOFED = "-9000000000000000000"
NUM_IN_WAVE = 12
NUM_TOKENS = 4  # of an answer that nobody leaves
ENDLESS = 60_000  # tokens: minutes
DEADLINE_S = 60

# A scorer on a busy machine may be slow, and NUM_TOKENS must not be all that an answer may take.
PATIENT = {"PARS_BUDGET_MS": "20000", "PARS_OBEY_LIMITS": "0", "PARS_RELOAD_S": "0.2"}


@dataclass(frozen=True)
class Door:
    """Where clients knock: at `url`, with `engine` behind it."""

    url: str
    engine: Engine
    metrics_path: str = "/metrics"
    process: subprocess.Popen[str] | None = None  # the gateway

    def metric(self, name: str, **labels: str) -> float:
        """Of pars: a counter or gauge with these labels, 0.0 if it has no sample."""
        with urllib.request.urlopen(self.url + self.metrics_path) as page:  # httpx takes 30 ms
            text = page.read().decode()
        inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
        sample = re.escape(f"{name}{{{inside}}}" if labels else name)
        found = re.search(rf"^{sample} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def decisions(self, outcome: str) -> float:
        """How many requests got their priority this way."""
        return self.metric("pars_decisions_total", outcome=outcome)

    def wait_for(self, at_least: float, name: str, **labels: str) -> None:
        """Until a counter is there."""
        what = f"{name} {labels} of {at_least}"
        wait_until(lambda: self.metric(name, **labels) >= at_least, what, DEADLINE_S)

    def wait_for_decisions(self, more: int, outcome: str) -> None:
        """Until so many more requests got their priority this way."""
        self.wait_for(self.decisions(outcome) + more, "pars_decisions_total", outcome=outcome)


@dataclass(frozen=True)
class Ask:
    """A request, its name in orders of completion, and the queue entries that it makes."""

    name: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def num_entries(self) -> int:
        return int(self.body.get("n", 1))


def completion(length: int, *, headers: dict[str, str] | None = None, **fields: Any) -> Ask:
    """A completion that the ranker expects to take `length` tokens; really it takes NUM_TOKENS."""
    body = {"model": MODEL, "prompt": f"words{length}", "max_tokens": NUM_TOKENS, **fields}
    return Ask(f"completion {length}", "/v1/completions", body, headers or {})


def chat(length: int, **fields: Any) -> Ask:
    """A chat of the same kind, whose last user message counts."""
    asked = [("system", "words10"), ("user", f"words{length}")]
    messages = [{"role": role, "content": content} for role, content in asked]
    body = {"model": MODEL, "messages": messages, "max_tokens": NUM_TOKENS, **fields}
    return Ask(f"chat {length}", "/v1/chat/completions", body)


def order_of_admission(door: Door, asks: Sequence[Ask], *, in_turn: bool = False) -> list[str]:
    """
    Names in the order in which the engine begins them, when all were sent while its slot was held.

    Each is a stream without an end that is left once its first piece is here and its name noted. So
    in an engine of one slot the next cannot begin before, and a machine that stands still cannot
    mix the order up, as it can that of answers which end by themselves.

    Args:
        in_turn: Send each once the one before it waits in the engine, else all at once.
    """

    async def sent(queue: _Queue) -> None:
        waves = [[ask] for ask in asks] if in_turn else [asks]
        for wave in waves:
            await queue.add(wave)

    return asyncio.run(_order_of_admission(door, sent))


def order_of_flood(door: Door, window_s: float) -> list[str]:
    """
    The order of a long request and two waves of short ones, all waiting before the first begins.

    The short ones are named "early", sent at once, and "late", sent more than `window_s` after the
    long one was waiting.
    """

    async def sent(queue: _Queue) -> None:
        await queue.add([replace(completion(900), name="long")])
        closes_s = time.time() + window_s
        await queue.add([replace(completion(10), name="early")] * NUM_IN_WAVE)
        await asyncio.to_thread(wait_until, lambda: time.time() > closes_s, "window", DEADLINE_S)
        await queue.add([replace(completion(10), name="late")] * NUM_IN_WAVE)

    return asyncio.run(_order_of_admission(door, sent))


async def _order_of_admission(door: Door, sent: "Callable[[_Queue], Awaitable[None]]") -> list[str]:
    assert door.engine.num_slots == 1
    async with _client(door) as client, asyncio.TaskGroup() as group:
        queue = _Queue(door.engine, client, group)
        with door.engine.held():
            await sent(queue)
    return queue.order


@dataclass
class _Queue:
    """Requests that wait in the engine; `order` gets their names as they begin."""

    engine: Engine
    client: httpx.AsyncClient
    group: asyncio.TaskGroup
    order: list[str] = field(default_factory=list)
    num_entries: int = 0

    async def add(self, asks: Sequence[Ask]) -> None:
        """Send them all, and wait until they wait."""
        for ask in asks:
            self.group.create_task(self._begin(ask))
            self.num_entries += ask.num_entries
        await asyncio.to_thread(self.engine.wait_for, waiting=self.num_entries)

    async def _begin(self, ask: Ask) -> None:
        body = ask.body | {"stream": True, "max_tokens": ENDLESS}
        async with self.client.stream("POST", ask.path, json=body, headers=ask.headers) as answer:
            assert answer.is_success, await answer.aread()
            async with contextlib.aclosing(answer.aiter_lines()) as lines:
                await anext(lines)
            self.order.append(ask.name)


def _client(door: Door) -> httpx.AsyncClient:
    # Nothing comes while a request waits, for as long as the tests let others go first.
    return httpx.AsyncClient(base_url=door.url, timeout=5 * DEADLINE_S)


def answers_during(door: Door, story: Callable[[], None]) -> list[int]:
    """Keep requests coming while `story` runs; the tokens of each answer, 0 for one that failed."""
    return asyncio.run(_answers_during(door, story))


async def _answers_during(door: Door, story: Callable[[], None]) -> list[int]:
    ask = completion(10)
    num_tokens: list[int] = []
    is_over = False

    async def keep_sending(client: httpx.AsyncClient) -> None:
        while not is_over:
            answer = await client.post(ask.path, json=ask.body)
            usage = answer.json().get("usage", {}) if answer.is_success else {}
            num_tokens.append(usage.get("completion_tokens", 0))

    async with _client(door) as client, asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(keep_sending(client))
        try:
            await asyncio.to_thread(story)
        finally:
            is_over = True
    return num_tokens


def leave_while_waiting(door: Door) -> None:
    """Ask for an answer, and leave once the request waits in the engine's queue."""

    async def ask_and_leave() -> None:
        async with _client(door) as client:
            ask = completion(10)
            asking = asyncio.create_task(client.post(ask.path, json=ask.body))
            await asyncio.to_thread(door.engine.wait_for, waiting=1)
            asking.cancel()

    asyncio.run(ask_and_leave())


def leave_after_the_first_piece(door: Door) -> str:
    """Leave an answer of a minute once its first piece is here and the rest is being made."""
    body = completion(10, max_tokens=8000, stream=True).body
    with httpx.stream("POST", f"{door.url}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()  # httpx closes an answer whose iterator is gone
        first = next(lines)
        door.engine.wait_for(running=1)
    return text_of(first)


def text_of(event: str) -> str:
    """The piece of text in one event of a stream of completions."""
    return json.loads(event.removeprefix("data: "))["choices"][0]["text"]


def word_ranker(folder: Path) -> Path:
    """A lite ranker, exported, that expects exactly N tokens for the prompt "wordsN"."""
    import torch

    from pars.learn.training.export import export_ranker
    from pars.learn.training.models import LiteModel

    lengths = {f"words{length}": length for length in LENGTHS}
    model = LiteModel.untrained([*lengths, *lengths], 32)
    with torch.no_grad():
        for parameter in model.network.head[-1].parameters():
            parameter.zero_()  # nothing but the words' own weights counts
        for word, length in lengths.items():
            num_ids = len(model.tokenizer.encode(word))  # with the marks around it, which weigh 0
            word_id = model.tokenizer.id_of(word)
            model.network.word_weight.weight[word_id] = length * math.sqrt(num_ids)
    line = np.linspace(0.0, 1000.0, 101)  # what is scored x takes x tokens
    export_ranker(model, folder, model_name="words", calibration=(line, line))
    return folder


@contextlib.contextmanager
def anothers_tokenizer(folder: Path) -> Iterator[None]:
    """
    The ranker has the tokenizer of a larger one: it loads, and fails at the words it knew.

    Their ids now lie beyond the graph's table; those of other words and of marks do not.
    """
    path = folder / TOKENIZER_FILE
    good = path.read_text()
    fields = json.loads(good)
    known = [word for word in fields["vocabulary"] if word.startswith("words")]
    others = [f"other {it}" if it in known else it for it in fields["vocabulary"]]
    with replaced(path, json.dumps(fields | {"vocabulary": others + known})):
        yield


@contextlib.contextmanager
def replaced(path: Path, text: str) -> Iterator[None]:
    """The file holds `text` while the block runs, and what it held before afterwards."""
    before = path.read_bytes()

    def put(content: bytes) -> None:
        new = path.parent.parent / f"new-{path.name}"  # the ranker's folder is being watched
        new.write_bytes(content)
        new.replace(path)

    put(text.encode())
    try:
        yield
    finally:
        put(before)


@contextlib.contextmanager
def gateway(engine: Engine, folder: Path, *options: str, **environment: str) -> Iterator[Door]:
    """A process of `pars gateway` in front of `engine`, with the ranker in `folder`."""
    command = [sys.executable, "-m", "pars", "gateway", "--upstream", engine.url, "--port", "0"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARS_")}
    state = {"XDG_STATE_HOME": str(folder.parent / "state")}  # not the user's
    process = subprocess.Popen(
        [*command, "--ranker", str(folder), *options],
        stdout=subprocess.PIPE,
        text=True,
        env=kept | state | PATIENT | environment,
    )
    with process:
        try:
            assert process.stdout is not None
            greeting = process.stdout.readline()
            found = re.search(r"served at (\S+),", greeting)
            assert found, f"pars gateway said {greeting!r}"
            yield Door(found[1], engine, "/pars/metrics", process)
        finally:
            process.terminate()
