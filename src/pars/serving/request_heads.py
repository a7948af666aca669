"""What about the head of a client's request leaves a doubt (RFC 9112), or is not to go on."""

import re

HOST = re.compile(rb"[\w.~%:\[\]-]*")
VERSIONS = ("1.0", "1.1")

Fields = list[tuple[bytes, bytes]]


def doubt_of(method: bytes, target: bytes, version: str, fields: Fields) -> str:
    """
    Why a request is to be refused; empty: nothing leaves a doubt.

    Args:
        fields: With names in lower case.
    """
    codings, hosts = [], []
    for name, value in fields:
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            codings.append(value.lower())
    if version not in VERSIONS:
        return f"HTTP/{version} is not spoken here"
    if not target.startswith(b"/") or b"#" in target or method == b"CONNECT":
        return "the target must be a path"
    if codings and (codings != [b"chunked"] or version == "1.0"):
        return "the only transfer coding is chunked, once, in HTTP/1.1"
    if len(hosts) > 1 or (not hosts and version != "1.0"):
        return "a request has one Host field"
    if hosts and not HOST.fullmatch(hosts[0]):
        return "Host names no host"
    return ""


def without_upgrade(headers: Fields) -> Fields:
    """The fields of a request that does not offer to go on in another protocol."""
    kept = []
    for name, value in headers:
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            value = b", ".join(it for it in options if it.lower() != b"upgrade")
        if name not in (b"upgrade", b"http2-settings") and (value or name != b"connection"):
            kept.append((name, value))
    return kept
