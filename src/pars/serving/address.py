"""Where the upstream is and how it is reached: a URL or a Unix socket, a proxy, whom to trust."""

import ssl
from base64 import b64encode
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from pars.errors import ParsError
from pars.request.prompts import reader_of

UNIX_SCHEMES = ("unix", "http+unix")


@dataclass(frozen=True, slots=True)
class Address:
    """
    Attributes:
        shown: The URL for people.
        base: The one that paths are added to: scheme, host, port, prefix.
        socket_path: Of a Unix socket; empty: it is reached by TCP.
        proxy: The proxy to ask through.
        tls: Whom to trust for https.
    """

    shown: str
    base: URL
    socket_path: str = ""
    proxy: URL | None = None
    tls: ssl.SSLContext | bool = True

    @classmethod
    def parse(cls, url: str, ca_file: str = "") -> Self:
        """
        Read `url` as `Upstream` takes it, and the environment's proxies.

        Raises:
            ParsError: it is no such URL, or `ca_file` cannot be read.
        """
        shown, base, socket_path = _read_url(url)
        tls = _trusting(ca_file) if ca_file else True
        proxy = None if socket_path else _proxy_for(base)
        return cls(shown, URL(base), socket_path, URL(proxy) if proxy else None, tls)

    @property
    def proxy_fields(self) -> list[bytes]:
        """For an http proxy that wants to know who asks."""
        if self.proxy is None or self.base.scheme != "http" or not self.proxy.user:
            return []
        known = f"{self.proxy.user}:{self.proxy.password or ''}".encode()
        return [b"Proxy-Authorization: Basic " + b64encode(known)]

    @property
    def prefix(self) -> bytes:
        """What comes before a request's path: the prefix, and for an http proxy the whole base."""
        is_absolute = self.proxy is not None and self.base.scheme == "http"
        path = self.base.raw_path.rstrip("/")
        return ((str(self.base.origin()) if is_absolute else "") + path).encode()

    @property
    def host(self) -> bytes:
        """For the Host field."""
        return self.base.raw_authority.encode()


def _read_url(url: str) -> tuple[str, str, str]:
    """The URL as people read it, the one that paths are added to, and the path of its socket."""
    scheme, _, rest = url.partition(":")
    if scheme in UNIX_SCHEMES:
        path = rest.removeprefix("//")
        path = unquote(path) if scheme == "http+unix" else path
        path = path.rstrip("/")
        if not path or "\0" in path:
            raise ParsError(f"upstream {url!r}: want unix:PATH, such as unix:/run/vllm.sock")
        return url, "http://localhost", path
    parts = _split(url)
    if parts is None:
        raise ParsError(f"upstream {url!r}: want http://HOST:PORT, https://HOST:PORT or unix:PATH")
    if parts.query or parts.fragment or parts.username is not None:
        raise ParsError(f"upstream {url!r}: a URL with a query, fragment or user is not taken")
    prefix = parts.path.rstrip("/")
    prefix = prefix.removesuffix("/v1").rstrip("/")
    if reader_of(prefix) is not None or prefix.endswith("/v1/models"):
        raise ParsError(f"upstream {url!r}: a path of the server's API; want the server alone")
    base = str(URL(f"{parts.scheme}://{parts.netloc}{prefix}"))
    return f"{parts.scheme}://{parts.netloc}{prefix}", base.rstrip("/"), ""


def _split(url: str) -> SplitResult | None:
    """The parts of an http URL; None if it is none."""
    try:
        parts = urlsplit(url)
        URL(f"{parts.scheme}://{parts.netloc}")
        is_http = parts.scheme in ("http", "https") and parts.hostname
        return parts if is_http and parts.port != 0 else None
    except ValueError:  # a port or an address that is none, a name that cannot be encoded
        return None


def _trusting(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParsError(f"upstream_ca_file {ca_file}: no PEM certificates: {reason}") from None


def _proxy_for(base: str) -> str | None:
    """
    The proxy that the environment names for this URL (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).

    A server on this machine is never asked through one: that is hardly ever meant, and the proxy's
    own loopback is another machine's.
    """
    parts = urlsplit(base)
    host = parts.hostname or ""
    if _is_loopback(host) or proxy_bypass(host):
        return None
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy.startswith(("http://", "https://")):
        proxy = None if "://" in proxy else f"http://{proxy}"
    return proxy


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
