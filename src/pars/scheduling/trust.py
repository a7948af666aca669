"""
Who may move a request in the queue: trusted proxies by address, holders of a secret, and API keys.

Everybody else's wishes are dropped before the engine sees them.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from pars.errors import DataError, ParsError
from pars.scheduling.engines import PRIORITY_HEADER
from pars.scheduling.keys import MAX_OFFSET_S

OFFSET_HEADER = b"x-pars-offset-s"
SECRET_HEADER = b"x-pars-secret"
PRIVATE_HEADERS = frozenset((OFFSET_HEADER, SECRET_HEADER))
WISH_HEADERS = PRIVATE_HEADERS | {PRIORITY_HEADER}
# Where clients send their API key: OpenAI's and most others; Anthropic's; Azure's.
BEARER_HEADER = b"authorization"
KEY_HEADERS = (b"x-api-key", b"api-key")

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller may ask for: seconds of delay (negative: lead), or a key of its own."""

    offset_s: float = 0.0
    priority: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """
    Attributes:
        proxies: Peers whose wishes count. The peer is who opened the connection; nothing is read
            from X-Forwarded-For here.
        secret: Callers that send it in X-Pars-Secret are trusted wherever they come from.
        key_offsets_s: Offset in seconds for callers with an API key, by its SHA-256 in hex.
            Of several keys the first that has one counts.
    """

    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    secret: bytes = b""
    key_offsets_s: Mapping[str, float] = field(default_factory=dict)

    def wish(self, headers: Iterable[tuple[bytes, bytes]], peer: str | None) -> Wish:
        """What this request may ask for. Unreadable values count as none."""
        headers = list(headers)
        offset_s = self._key_offset_s(headers) if self.key_offsets_s else 0.0
        sent: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in WISH_HEADERS:
                sent.setdefault(name, value)
        if not sent:
            return Wish(offset_s)
        if not self._is_trusted(sent.get(SECRET_HEADER), peer):
            return Wish(offset_s)
        asked_s = _number(sent.get(OFFSET_HEADER))
        return Wish(offset_s if asked_s is None else asked_s, _integer(sent.get(PRIORITY_HEADER)))

    @property
    def names_anyone(self) -> bool:
        """Whether there is anybody whose wishes count."""
        return bool(self.proxies or self.secret)

    def is_trusted(self, headers: Iterable[tuple[bytes, bytes]], peer: str | None) -> bool:
        """Whether a request comes from somebody whose wishes count."""
        sent = next((value for name, value in headers if name == SECRET_HEADER), None)
        return self._is_trusted(sent, peer)

    def _is_trusted(self, secret: bytes | None, peer: str | None) -> bool:
        if self.secret and secret is not None and hmac.compare_digest(secret, self.secret):
            return True
        if not self.proxies or peer is None:
            return False
        try:
            address = ip_address(peer)
        except ValueError:  # a Unix socket has no address
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self.proxies)

    def _key_offset_s(self, headers: Headers) -> float:
        digests = (hashlib.sha256(key).hexdigest() for key in keys_in(headers))
        known = (self.key_offsets_s[it] for it in digests if it in self.key_offsets_s)
        return next(known, 0.0)


def keys_in(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Every API key that a request shows, wherever clients send it."""
    for name, value in headers:
        scheme, _, key = value.strip().partition(b" ")
        if name == BEARER_HEADER and scheme.lower() == b"bearer":
            yield key.strip()
        elif name in KEY_HEADERS:
            yield value.strip()


def read_proxies(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Networks in CIDR form, separated by commas; raises ParsError for anything else."""
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ParsError(f"trusted proxies: {error} (want CIDR, such as 10.0.0.0/8)") from None


def read_key_offsets_s(path: Path) -> dict[str, float]:
    """
    A JSON object of offsets in seconds by the SHA-256 (hex) of API keys.

    Raises:
        DataError: the file is missing, or an entry is not a digest with a number.
    """
    try:
        offsets: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError.at(path, f"not a readable JSON file: {error}") from None
    if not isinstance(offsets, dict):
        raise DataError.at(path, "must be a JSON object: SHA-256 of an API key -> seconds")
    for digest, offset_s in offsets.items():
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise DataError.at(path, f"{digest[:12]!r}… is no SHA-256 in lower-case hex")
        is_number = isinstance(offset_s, int | float) and not isinstance(offset_s, bool)
        if not is_number or not abs(offset_s) <= MAX_OFFSET_S:
            raise DataError.at(path, f"offset of {digest[:12]}… must be seconds, not {offset_s!r}")
    return offsets


def _number(value: bytes | None) -> float | None:
    try:
        number = float(value or b"")
    except ValueError:
        return None
    return number if number == number else None


def _integer(value: bytes | None) -> int | None:
    try:
        return int((value or b"")[:40])
    except ValueError:
        return None
