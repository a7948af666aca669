"""
Whose request it is: a file that says which API keys, or values of a header, belong to which tenant.

    header = "X-Tenant"                # optional; set by a proxy in front, and by nobody else

    [tenants.search]
    weight = 3                         # of its share; 1 if it is not given
    keys = ["9f86d081884c7d65…"]       # API keys by their SHA-256: printf %s "$KEY" | sha256sum

    [tenants.batch]
    values = ["batch", "nightly"]      # of the header; its own name if it is not given

TOML, or JSON of the same shape where the file ends in .json. A key that is known counts before the
header. Everybody else shares the tenant "other".
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pars.errors import DataError
from pars.scheduling.policies.fair_tenants import OTHERS
from pars.scheduling.trust import BEARER_HEADER, KEY_HEADERS, WISH_HEADERS, Headers, keys_in

MOST_TENANTS = 1000
MOST_WEIGHT = 1e6
MAX_NAME_CHARS = 64
FIELDS = ("weight", "keys", "values")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
DIGEST = re.compile(r"[0-9a-f]{64}")
OWN_HEADERS = WISH_HEADERS | {BEARER_HEADER, *KEY_HEADERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    """
    Attributes:
        weights: By tenant, above 0.
        by_key: Tenant by the SHA-256 (hex) of an API key.
        header: By whose value a proxy says the tenant, in lower case; empty: none does.
        by_value: Tenant by that value.
    """

    weights: Mapping[str, float]
    by_key: Mapping[str, str] = field(default_factory=dict)
    header: bytes = b""
    by_value: Mapping[bytes, str] = field(default_factory=dict)

    def of(self, headers: Headers, *, header_counts: bool = True) -> str:
        """
        The tenant of a request; of one that is not known, "other".

        Args:
            headers: Names in lower case.
            header_counts: Whether whoever sent it may say so by the header.
        """
        if self.by_key:
            for key in keys_in(headers):
                if (tenant := self.by_key.get(hashlib.sha256(key).hexdigest())) is not None:
                    return tenant
        if self.header and header_counts:
            sent = [value for name, value in headers if name == self.header]
            if len(sent) == 1:  # of two the client may have sent one
                return self.by_value.get(sent[0].strip(), OTHERS)
        return OTHERS

    @classmethod
    def read(cls, path: Path) -> "Tenants":
        """
        Of a file.

        Raises:
            DataError: it cannot be read, or a field is not what it must be; the field is named.
        """
        given = _table(path)
        if unknown := sorted(set(given) - {"header", "tenants"}):
            raise DataError.at(path, f"{unknown[0]!r} is none of header, tenants")
        header = given.get("header", "")
        if not isinstance(header, str) or (header and not HEADER_NAME.fullmatch(header)):
            raise DataError.at(path, f"header: want the name of a header, not {header!r}")
        if header.lower().encode() in OWN_HEADERS:
            raise DataError.at(path, f"header: {header} has a meaning of its own; choose another")
        tenants = given.get("tenants")
        if not isinstance(tenants, dict) or not tenants:
            raise DataError.at(path, "tenants: want at least one, as in [tenants.search]")
        if len(tenants) > MOST_TENANTS:
            raise DataError.at(path, f"tenants: {len(tenants)} are more than {MOST_TENANTS}")
        reading = _Reading(path, bool(header))
        for name, table in tenants.items():
            reading.take(name, table)
        return cls(
            weights=reading.weights,
            by_key=reading.by_key,
            header=header.lower().encode(),
            by_value=reading.by_value,
        )


class _Reading:
    """The file's tenants, one after the other."""

    def __init__(self, path: Path, has_header: bool) -> None:
        self.weights: dict[str, float] = {}
        self.by_key: dict[str, str] = {}
        self.by_value: dict[bytes, str] = {}
        self._path = path
        self._has_header = has_header

    def take(self, name: str, table: Any) -> None:
        place = f"tenants.{name[:MAX_NAME_CHARS]}"
        if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
            raise self._error(place, f"want a name of 1 to {MAX_NAME_CHARS} characters")
        if not isinstance(table, dict):
            raise self._error(place, "want a table of weight, keys and values")
        for unknown in sorted(set(table) - set(FIELDS)):
            near = get_close_matches(unknown, FIELDS, n=1)
            hint = f": did you mean {near[0]}?" if near else f": none of {', '.join(FIELDS)}"
            raise self._error(f"{place}.{unknown}", f"is no field of a tenant{hint}")
        self.weights[name] = self._weight(f"{place}.weight", table.get("weight", 1.0))
        for at, digest in self._texts(f"{place}.keys", table.get("keys", [])):
            if not DIGEST.fullmatch(digest):  # which may be a key itself: it is not shown
                want = 'is no SHA-256 in lower-case hex (printf %s "$KEY" | sha256sum)'
                raise self._error(at, want)
            self._claim(at, name, self.by_key, digest)
        usual = [name] if self._has_header else []
        for at, value in self._texts(f"{place}.values", table.get("values", usual)):
            if not self._has_header:
                raise self._error(at, 'wants a header to be the value of: header = "X-Tenant"')
            self._claim(at, name, self.by_value, value.strip().encode())

    def _weight(self, place: str, weight: Any) -> float:
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 1 / MOST_WEIGHT <= weight <= MOST_WEIGHT:
            want = f"must be a number from {1 / MOST_WEIGHT:g} to {MOST_WEIGHT:g}, not {weight!r}"
            raise self._error(place, want)
        return float(weight)

    def _texts(self, place: str, given: Any) -> list[tuple[str, str]]:
        """(where, what) of a list of texts."""
        if not isinstance(given, list) or not all(isinstance(it, str) and it for it in given):
            raise self._error(place, "must be a list of texts")
        return [(f"{place}[{index}]", it) for index, it in enumerate(given)]

    def _claim(self, place: str, name: str, by: dict[Any, str], what: Any) -> None:
        if (other := by.setdefault(what, name)) != name:
            raise self._error(place, f"is that of {other} too: want one tenant")

    def _error(self, place: str, problem: str) -> DataError:
        return DataError.at(self._path, f"{place}: {problem}")


def _table(path: Path) -> dict[str, Any]:
    """The file's top level; a fault of its syntax is told with its line."""
    is_json = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        given = json.loads(text) if is_json else tomllib.loads(text)
    except OSError as error:
        raise DataError.at(path, f"cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        kind = "JSON" if is_json else "TOML"
        raise DataError.at(path, f"is not {kind}: {error}") from None
    if not isinstance(given, dict):
        raise DataError.at(path, "must be an object with tenants")
    return given
