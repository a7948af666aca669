"""Which header fields go on from one connection to the next (RFC 9110, section 7.6.1)."""

from collections.abc import Iterable

from pars.scheduling.trust import WISH_HEADERS

Headers = list[tuple[bytes, bytes]]

# Of one connection only. What frames a body is among them: a body is framed anew as it is sent on.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade http2-settings"
    b" proxy-authenticate proxy-authorization".split()
)
# Needed to understand the message, so that no Connection field can take them away.
ALWAYS_KEPT = frozenset((b"host", b"content-length"))
# Some servers read "_" as "-": a client's x_vllm_priority would come to them beside our own field.
LOOKED_ALIKE = HOP_BY_HOP | ALWAYS_KEPT | WISH_HEADERS


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
