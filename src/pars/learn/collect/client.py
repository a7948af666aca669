"""
One answer from an OpenAI-compatible endpoint, over a pool of connections.

    ask = Asker(base_url_of(endpoint), "chat", key, timeout_s=600.0, num_connections=8)
    reply = await ask(body)                       # raises Failure: kind, whether to retry

The key goes into one header and nowhere else: whatever the server says is searched for it before
it is shown or kept.
"""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pars.errors import ParsError
from pars.learn.collect.reply import Failure, Reply, reply_of, retry_after_s

if TYPE_CHECKING:
    import httpx

MAX_BODY_BYTES = 64 << 20
EXCERPT_CHARS = 200
LEAST_SECRET_CHARS = 8  # servers without a key are given words such as EMPTY, which answers hold
MAX_IDLE_S = 4.0  # uvicorn closes after 5 s; a request must not meet that
RETRIED = frozenset({408, 409, 425, 429})  # and 5xx
HOPELESS = frozenset({401, 402, 403, 404, 405})  # and 3xx: no other prompt would fare better
PATHS = {"chat": "/chat/completions", "completions": "/completions"}


def base_url_of(endpoint: str) -> str:
    """
    What OpenAI's clients call base_url: `endpoint`, with /v1 where it has no path.

    Raises:
        ParsError: it is no http or https URL, has a query, or holds a user or password.
    """
    try:
        parts = urlsplit(endpoint)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        has_more = bool(parts.query or parts.fragment) or not endpoint.isprintable()
    except ValueError:
        is_good, has_more = False, False
    if not is_good or has_more or " " in endpoint:
        raise ParsError("--endpoint: want http://HOST:PORT or https://HOST/v1, without a query")
    if "@" in parts.netloc:
        raise ParsError(
            "--endpoint holds a user or password, which others see in the list of processes:"
            " keys come from the environment (--api-key-env)"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


class Asker:
    """
    Asks one endpoint; at most `num_connections` at once.

    Args:
        key: Sent as a bearer token.
        timeout_s: For a whole answer.

    Raises:
        ParsError: the key is nothing that a header can hold, or the host no name.
    """

    def __init__(
        self, base_url: str, api: str, key: str | None, *, timeout_s: float, num_connections: int
    ) -> None:
        import httpx

        if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise ParsError("the API key holds characters that no HTTP header takes")
        self._url = base_url + PATHS[api]
        try:
            httpx.URL(self._url).host  # noqa: B018 - decoding it is the check
        except (httpx.InvalidURL, UnicodeError):
            raise ParsError(f"--endpoint: {base_url} has no name of a host") from None
        self._timeout_s = timeout_s
        self._secret = key if key and len(key) >= LEAST_SECRET_CHARS else None
        self._client = httpx.AsyncClient(
            headers={
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {key}"} if key else {}),
            },
            timeout=httpx.Timeout(None, connect=min(30.0, timeout_s)),
            limits=httpx.Limits(max_connections=num_connections, keepalive_expiry=MAX_IDLE_S),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def __call__(self, body: Mapping[str, Any]) -> Reply:
        """
        Ask once.

        Raises:
            Failure: there was no answer, and why.
        """
        import httpx

        # In ASCII, since httpx's own JSON is in UTF-8, which has no half of a surrogate pair.
        content = json.dumps(body).encode()
        began_s = time.monotonic()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("POST", self._url, content=content) as response,
            ):
                answer = await _body(response)
        except TimeoutError:
            raise Failure(f"no answer within {self._timeout_s:g} s") from None
        except httpx.ConnectError as error:
            raise Failure("no connection", self._shown(str(error))) from None
        except httpx.ConnectTimeout:
            raise Failure("no connection in time") from None
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            raise Failure("the connection broke off", self._shown(str(error))) from None
        except httpx.DecodingError:
            raise Failure("a body that cannot be decompressed") from None
        except httpx.HTTPError as error:
            raise Failure(type(error).__name__, self._shown(str(error))) from None
        text = answer.decode(errors="replace")
        if response.status_code != 200:
            raise self._refused(response, text)
        return self._read(text, response, time.monotonic() - began_s, body.get("max_tokens"))

    def _refused(self, response: "httpx.Response", text: str) -> Failure:
        status = response.status_code
        return Failure(
            f"HTTP {status}",
            self._shown(_message_in(text)),
            is_final=status < 500 and status not in RETRIED,
            is_hopeless=status in HOPELESS or 300 <= status < 400,
            retry_after_s=retry_after_s(response.headers) if status in (429, 503) else None,
        )

    def _read(
        self, text: str, response: "httpx.Response", seconds: float, max_tokens: int | None
    ) -> Reply:
        try:
            page = json.loads(text)
        except (ValueError, RecursionError):
            is_html = "html" in response.headers.get("content-type", "") or text.lstrip()[:1] == "<"
            kind = "HTML in place of an answer" if is_html else "an answer that is no JSON"
            raise Failure(kind, self._shown(text)) from None
        if isinstance(page, dict) and page.get("error"):
            raise Failure("an error in place of an answer", self._shown(_message_in(text)))
        try:
            return reply_of(page, seconds, self._without_secret, max_tokens)
        except (TypeError, LookupError, AttributeError):
            raise Failure("JSON that is no answer", self._shown(text)) from None

    def _shown(self, text: str) -> str:
        """On one line, short, and without the key."""
        return " ".join(self._without_secret(text).split())[:EXCERPT_CHARS]

    def _without_secret(self, text: str) -> str:
        return text.replace(self._secret, "***") if self._secret else text


async def _body(response: "httpx.Response") -> bytes:
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > MAX_BODY_BYTES:
            raise Failure("an answer of more than 64 MiB", is_final=True)
    return bytes(content)


def _message_in(text: str) -> str:
    """The server's own words, where it has OpenAI's shape of errors; else all of it."""
    with suppress(ValueError, TypeError, LookupError, RecursionError):
        message = json.loads(text)["error"]["message"]
        if isinstance(message, str):
            return message
    return text
