"""
One streaming request to a live engine: sent, timed token by token, and judged.

    client = Client("http://localhost:8000", api_key=os.environ.get("OPENAI_API_KEY"))
    answer = await client.stream("/v1/completions", body, headers, clock)
    answer.first_token_s, answer.end_s, answer.num_tokens, answer.error

A connection of its own for every request: opening it is part of the delay, and no request waits
for another's. What goes wrong becomes a *kind* of error, a few words that many failures share, and
an excerpt of what the server said.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pars.errors import ParsError
from pars.prove.report.times import itl_bucket
from pars.serving.answer import Answer as Response
from pars.serving.answer import UpstreamError
from pars.serving.upstream import Upstream

EXCERPT_CHARS = 300
MAX_EVENT_BYTES = 16 << 20
Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Answer:
    """
    What came back; times are the clock's.

    Attributes:
        num_tokens: By the server's own usage; by its events where it sends none.
        itl_counts: Intervals between events with tokens, by bucket.
        excerpt: What the server said when it went wrong.
    """

    sent_s: float | None = None
    first_token_s: float | None = None
    end_s: float | None = None
    num_tokens: int = 0
    num_prompt_tokens: int | None = None
    longest_itl_s: float | None = None
    itl_counts: dict[int, int] = field(default_factory=dict)
    error: str | None = None
    excerpt: str = ""
    _last_token_s: float = 0.0
    _is_done: bool = False

    def judged(self, asked_tokens: int | None) -> "Answer":
        """With an error if it has no tokens, or not as many as were asked for."""
        if self.error is None and self.num_tokens == 0:
            self.error = "no token in the answer"
        elif self.error is None and asked_tokens is not None and self.num_tokens != asked_tokens:
            few = self.num_tokens < asked_tokens
            self.error = "too few tokens" if few else "too many tokens"
            self.excerpt = f"{self.num_tokens} instead of {asked_tokens}"
        return self


class StreamError(Exception):
    """The answer is not what was asked for; `kind` is counted, `excerpt` shown once."""

    def __init__(self, kind: str, excerpt: bytes = b"") -> None:
        super().__init__(kind)
        self.kind = kind
        self.excerpt = excerpt[:EXCERPT_CHARS].decode(errors="replace").strip()


class Client:
    """
    Talks to one server; its requests share nothing.

    Args:
        url: As for `pars gateway --upstream`, with or without /v1 at its end.
        api_key: Sent as a bearer token.
        timeout_s: Without a byte from the server.

    Raises:
        ParsError: `url` is no http or https URL.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 1800.0) -> None:
        self.upstream = Upstream(
            url,
            max_connections=1 << 30,
            connect_timeout_s=60.0,
            timeout_s=timeout_s,
            api_key=api_key or "",
            keeps_connections=False,
        )

    @property
    def url(self) -> str:
        return self.upstream.url

    async def get(self, path: str, *, timeout_s: float = 30.0) -> tuple[int, bytes]:
        """
        Status and body of a GET.

        Raises:
            UpstreamError: there was no answer in time.
        """
        return await self.upstream.get(
            path.encode(), timeout_s=timeout_s, max_bytes=MAX_EVENT_BYTES
        )

    async def close(self) -> None:
        """Close what is open."""
        await self.upstream.close()

    async def json(self, path: str) -> dict[str, Any]:
        """
        A JSON object that the server must have.

        Raises:
            ParsError: it does not answer, or with something else.
        """
        try:
            status, body = await self.get(path)
        except UpstreamError as error:
            raise ParsError(f"{self.url}: {error}: is the engine up?") from None
        try:
            page = json.loads(body)
        except ValueError:
            page = None
        if status != 200 or not isinstance(page, dict):
            told = body[:EXCERPT_CHARS].decode(errors="replace").strip()
            raise ParsError(f"{self.url}{path}: wanted JSON, got HTTP {status}: {told}")
        return page

    async def stream(
        self,
        path: str,
        body: bytes,
        headers: Headers,
        clock: Callable[[], float],
        on_first_token: Callable[[], None] | None = None,
    ) -> Answer:
        """
        Send a POST and read its stream to the end. Failures are in the answer's `error`.

        Args:
            on_first_token: Called once, when it comes.
        """
        answer = Answer()

        def note_sent() -> None:
            answer.sent_s = clock()

        sent = [*headers, (b"content-type", b"application/json")]
        try:
            with await self.upstream.ask(
                "POST", path.encode(), sent, body, on_connect=note_sent
            ) as response:
                await _check_head(response)
                pending = b""
                while not response.is_finished:
                    pending = _take(answer, pending + await response.read(), clock)
                    if on_first_token is not None and answer.first_token_s is not None:
                        on_first_token()
                        on_first_token = None
                if not answer._is_done:
                    raise StreamError("the stream ended without [DONE]", pending)
        except StreamError as error:
            answer.error, answer.excerpt = error.kind, error.excerpt
        except UpstreamError as error:
            answer.error, answer.excerpt = _kind(error, answer), str(error)
        finally:
            answer.end_s = clock()
        return answer


async def _check_head(response: Response) -> None:
    names = {name.lower(): value for name, value in response.headers}
    kind = names.get(b"content-type", b"")
    if response.status != 200:
        raise StreamError(f"HTTP {response.status}", await response.rest(EXCERPT_CHARS))
    if not kind.lower().startswith(b"text/event-stream"):
        told = kind.decode(errors="replace").partition(";")[0] or "no content type"
        raise StreamError(f"no stream but {told}", await response.rest(EXCERPT_CHARS))


def _kind(error: UpstreamError, answer: Answer) -> str:
    if error.code == "upstream_closed":
        begun = answer.first_token_s is not None
        return "the stream broke off" if begun else "closed without an answer"
    return {
        "upstream_unreachable": "no connection",
        "upstream_connect_timeout": "no connection in time",
        "upstream_timeout": "no byte for too long",
        "upstream_protocol_error": "no valid HTTP",
    }.get(error.code, error.code)


def _take(answer: Answer, received: bytes, clock: Callable[[], float]) -> bytes:
    """Read the whole events in `received`; what is left is the beginning of the next."""
    *lines, pending = received.split(b"\n")
    now_s = clock()
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            answer._is_done = True
            continue
        try:
            event = json.loads(data)
            _note(answer, event, now_s)
        except (ValueError, TypeError, AttributeError, LookupError):
            raise StreamError("an event that is no JSON of a completion", data) from None
    if len(pending) > MAX_EVENT_BYTES:
        raise StreamError("an event without end", pending)
    return pending


def _note(answer: Answer, event: dict[str, Any], now_s: float) -> None:
    if event.get("error"):
        raise StreamError("an error in the stream", json.dumps(event["error"]).encode())
    choices = event["choices"]
    if any(map(_has_token, choices)):
        if answer.first_token_s is None:
            answer.first_token_s = now_s
        else:
            interval_s = now_s - answer._last_token_s
            bucket = itl_bucket(interval_s)
            answer.itl_counts[bucket] = answer.itl_counts.get(bucket, 0) + 1
            answer.longest_itl_s = max(answer.longest_itl_s or 0.0, interval_s)
        answer._last_token_s = now_s
        if answer.num_prompt_tokens is None:
            answer.num_tokens += 1
    usage = event.get("usage")
    if usage:
        answer.num_tokens = int(usage["completion_tokens"])
        answer.num_prompt_tokens = int(usage["prompt_tokens"])


def _has_token(choice: dict[str, Any]) -> bool:
    """Not the opening of a chat, which names the role, nor an end that says only why."""
    if "text" in choice:
        return bool(choice["text"]) or choice.get("finish_reason") is None
    delta = choice["delta"]
    said = [value for name, value in delta.items() if name != "role" and value]
    return bool(said) or ("role" not in delta and choice.get("finish_reason") is None)
