"""
Which header fields go on from one connection to the next (RFC 9110, section 7.6.1), and what those
say that name a place on the server behind.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit

from pars.scheduling.dialects import DIALECT_HEADERS
from pars.scheduling.trust import WISH_HEADERS

Headers = list[tuple[bytes, bytes]]

PLACES = frozenset((b"location", b"content-location"))
DEFAULT_PORTS = {"http": 80, "https": 443}

# Of one connection only. What frames a body is among them: a body is framed anew as it is sent on.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade http2-settings"
    b" proxy-authenticate proxy-authorization".split()
)
# Needed to understand the message, so that no Connection field can take them away.
ALWAYS_KEPT = frozenset((b"host", b"content-length"))
# Some servers read "_" as "-": a client's x_vllm_priority would come to them beside our own field.
LOOKED_ALIKE = HOP_BY_HOP | ALWAYS_KEPT | WISH_HEADERS | DIALECT_HEADERS


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The fields that go on: less those of the connection, those it names, and look-alikes."""
    kept: Headers = []
    named: set[bytes] = set()
    for name, value in headers:
        lower = name.lower()
        if lower == b"connection":
            named |= {part.strip().lower() for part in value.split(b",")}
        if b"_" in lower:
            lower = lower.replace(b"_", b"-")
            if lower in LOOKED_ALIKE:
                continue
        if lower not in HOP_BY_HOP:
            kept.append((name, value))
    named -= ALWAYS_KEPT
    return [header for header in kept if header[0].lower() not in named] if named else kept


def seen_outside(headers: Headers, base: str) -> Headers:
    """
    An answer's fields as clients may use them: places on the server at `base` become paths here.

    A server makes Location from the Host that it is asked by, which is one that clients may not
    know, nor reach. Places elsewhere stay as they are.
    """
    return [
        (name, _outside(value, base) if name.lower() in PLACES else value)
        for name, value in headers
    ]


def _outside(value: bytes, base: str) -> bytes:
    try:
        place, own = urlsplit(value.decode("latin-1").strip()), urlsplit(base)
        has_port = place.port is not None
        is_other_host = place.netloc and place.hostname != own.hostname
        is_other_port = has_port and place.port != (own.port or DEFAULT_PORTS.get(own.scheme))
    except ValueError:
        return value
    prefix = own.path.rstrip("/")
    is_relative = not place.netloc and not (prefix and place.path.startswith("/"))
    if is_other_host or is_other_port or is_relative or place.scheme not in ("", "http", "https"):
        return value
    path = place.path
    if path == prefix or path.startswith(prefix + "/"):
        path = path[len(prefix) :]
    # One slash at its beginning: of two, the rest would be another host.
    here = ("", "", "/" + path.lstrip("/"), place.query, place.fragment)
    return urlunsplit(here).encode("latin-1")
