"""What Envoy's messages say of a request, and what it is told in return."""

from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

from pars.scheduling.dialects import DIALECT_HEADERS
from pars.scheduling.engines import PRIORITY_HEADER
from pars.scheduling.trust import BEARER_HEADER, KEY_HEADERS, PRIVATE_HEADERS, Headers
from pars.serving.ext_proc import messages_pb2 as pb
from pars.serving.ext_proc.exchange import Stamp

DUPLEX = 4  # FULL_DUPLEX_STREAMED
OVERWRITE = 2  # OVERWRITE_IF_EXISTS_OR_ADD
MAX_PIECE_BYTES = 60_000  # of a body that is given back: Envoy takes up to 64 KB
FILTER = "envoy.filters.http.ext_proc"  # under which attributes come
NAME_HEADER = b"x-pars-id"
# Of a request without its headers; envoy.yaml asks for the same as `request.headers['NAME']`.
ASKED_HEADERS = (b"x-request-id", BEARER_HEADER, *KEY_HEADERS, *sorted(PRIVATE_HEADERS))


class Told(NamedTuple):
    """
    A request, without its body.

    Attributes:
        path: With its query, and its escapes read, as engines read them.
        peer: The address of who opened the connection to Envoy.
    """

    path: str
    headers: Headers
    peer: str | None


def request_of(message: Any) -> Told:
    """The request of a stream's first message: by its headers where they come, or attributes."""
    fields = message.attributes[FILTER].fields if FILTER in message.attributes else {}

    def attribute(name: str) -> str:
        return fields[name].string_value if name in fields else ""

    peer = attribute("source.address").rpartition(":")[0].strip("[]") or None
    if message.WhichOneof("request") == "request_headers":
        headers = headers_of(message.request_headers)
        path = dict(headers).get(b":path", b"").decode("latin-1")
        # Nobody has taken the client's own priority away before.
        shown = [it for it in headers if not it[0].startswith(b":") and it[0] != PRIORITY_HEADER]
        return Told(unquote(path), shown, peer)
    named = ((name, attribute(f"request.headers['{name.decode()}']")) for name in ASKED_HEADERS)
    headers = [(name, value.encode("latin-1", "replace")) for name, value in named if value]
    return Told(unquote(attribute("request.path")), headers, peer)


def headers_of(told: Any) -> Headers:
    """Header fields as ASGI has them; Envoy's names are in lower case."""
    fields = told.headers.headers
    return [
        (it.key.encode("latin-1", "replace"), it.raw_value or it.value.encode("latin-1", "replace"))
        for it in fields
    ]


def change_of(stamp: Stamp, name: str | None, *, is_alone: bool) -> Any:
    """
    What Envoy is to change in a request: its place, and the name its answer is known by.

    Args:
        is_alone: No other header may say a place, not even Envoy's own first-come key.
    """
    change = pb.CommonResponse()
    named = [(NAME_HEADER, name.encode())] if name else []
    for key, value in (*stamp.headers, *named):
        header = pb.HeaderValue(key=key.decode(), raw_value=value)
        option = pb.HeaderValueOption(header=header, append_action=OVERWRITE)
        change.header_mutation.set_headers.append(option)
    if is_alone and (stamp.headers or stamp.body is not None):
        others = DIALECT_HEADERS - dict(stamp.headers).keys()
        change.header_mutation.remove_headers.extend(it.decode() for it in sorted(others))
    if stamp.body is not None:
        change.body_mutation.body = stamp.body
    return change


def streamed(kind: str, told: Any) -> Iterator[Any]:
    """A piece of a body given back, in pieces that Envoy takes."""
    size = len(told.body)
    for start in range(0, max(size, 1), MAX_PIECE_BYTES):
        answer = pb.ProcessingResponse()
        piece = getattr(answer, kind).response.body_mutation.streamed_response
        piece.body = told.body[start : start + MAX_PIECE_BYTES]
        piece.end_of_stream = told.end_of_stream and start + MAX_PIECE_BYTES >= size
        yield answer
