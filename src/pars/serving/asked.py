"""What a generation request asks for, as far as its body can be read: the one reading of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from pars.request.features import Signals, signals_of, without_limits
from pars.request.fields import SMALL_BYTES, read_fields
from pars.request.prompts import Prompt, Request, reader_of, unread_request
from pars.scheduling.trust import Headers, keys_in

NO_TEXT = Request((Prompt(None, 0.0),))
MAX_NAME_CHARS = 256  # of a model's or a request's name, kept until the answer ends

_T = TypeVar("_T")


class Body(Protocol):
    """
    A request's body, or what is known of one that is not held (`request.body.HeldBody`).

    Attributes:
        outcome: Why it is not to be read; None: it is held as a whole.
        num_bytes: That came.
    """

    outcome: str | None
    num_bytes: int

    def content(self) -> bytes:
        """Its bytes."""


@dataclass(slots=True)
class Asked:
    """
    One request as it was read.

    Attributes:
        problem: Why there is no text to score, as counted in pars_decisions_total; empty: there is.
        model, request_id: As the request names them.
        is_stream: The answer is asked for as a stream.
        signals: What the ranker that learns reads; None: it was not asked for, or not readable.
    """

    request: Request = NO_TEXT
    problem: str = "error"
    model: str | None = None
    request_id: str | None = None
    is_stream: bool = False
    signals: Signals | None = None

    @property
    def texts(self) -> list[str]:
        """The prompts' texts that there are."""
        return [prompt.text for prompt in self.request.prompts if prompt.text]


class Shown(NamedTuple):
    """
    What the ranker that learns is shown of a request.

    Attributes:
        signals: Anything; False: there is none.
        limits: max_tokens and its like, which in benchmarks that impose lengths give them away.
    """

    signals: bool
    limits: bool = True


async def read_asked(asked: Asked, path: str, headers: Headers, body: Body, shown: Shown) -> None:
    """
    Read the request into `asked`; a large body beside the event loop.

    What was read before something goes wrong stays in `asked`, which says "error" then.
    """
    asked.problem = body.outcome or "undecodable"
    asked.request = unread_request(body.num_bytes)
    if body.outcome is not None:
        return
    await beside_loop(body.num_bytes, _read, asked, path, headers, body.content(), shown)


def _read(asked: Asked, path: str, headers: Headers, content: bytes, shown: Shown) -> None:
    fields, reader = read_fields(content), reader_of(path)
    if fields is None or reader is None:
        return
    asked.problem = "error"
    asked.request = reader(fields)
    asked.model, asked.request_id = _name(fields, "model"), _name(fields, "request_id")
    asked.is_stream = fields.get("stream") is True
    if shown.signals:
        key = next(iter(keys_in(headers)), b"").decode("latin-1")
        told = fields if shown.limits else without_limits(fields)
        asked.signals = signals_of(path, told, asked.request, key)
    asked.problem = "" if asked.texts else "no_text"


async def beside_loop(num_bytes: int, do: Callable[..., _T], *arguments: Any) -> _T:
    """`do` beside the event loop if that takes milliseconds, so that nobody else waits for it."""
    if num_bytes <= SMALL_BYTES:
        return do(*arguments)
    return await asyncio.to_thread(do, *arguments)


def _name(fields: dict[str, Any], field: str) -> str | None:
    value = fields.get(field)
    if not isinstance(value, str):
        return None
    # A lone surrogate, which JSON can spell, is no text that pages and logs can hold.
    return value[:MAX_NAME_CHARS].encode("utf-8", "replace").decode("utf-8")
