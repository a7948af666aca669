"""Gateways on real sockets, upstreams that follow a script, and clients that see bytes."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from pars.ranking.live_ranker import LiveRanker
from pars.serving.gateway import UVICORN_OPTIONS, Gateway
from pars.serving.settings import Settings
from pars.serving.upstream import Upstream

from serving import DEADLINE_S, LengthScorer, serve_in_thread

INFO = SimpleNamespace(score_quantiles=[0.0, 1000.0], expected_tokens=[0.0, 1000.0])


def live_ranker(folder: Path, scorer: Any = None) -> LiveRanker:
    """A ranker that expects as many tokens as a prompt has characters, or as `scorer` says."""
    (folder / "ranker.json").write_text("{}")
    loaded = SimpleNamespace(info=INFO, score=(scorer or LengthScorer()).score)
    return LiveRanker(folder, load=lambda _: loaded)


@contextmanager
def gateway_to(
    upstream_url: str | Sequence[str],
    folder: Path,
    *,
    scorer: Any = None,
    upstream: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    protocol: Any = None,
    **options: Any,
) -> Iterator[tuple[str, Gateway]]:
    """The base URL of a gateway in front of one server or several, and the gateway."""
    urls = [upstream_url] if isinstance(upstream_url, str) else upstream_url
    patient = {"budget_ms": DEADLINE_S * 1000, "max_wait_ms": DEADLINE_S * 1000}
    chosen = {"engine": "vllm", "max_overtake_s": 30.0, **patient, **(settings or {})}
    app = Gateway(
        [Upstream(url, **{"timeout_s": DEADLINE_S, **(upstream or {})}) for url in urls],
        Settings(**chosen),
        ranker=live_ranker(folder, scorer),
        **options,
    )
    served = {**UVICORN_OPTIONS, **({"http": protocol} if protocol else {})}
    with serve_in_thread(app, **served) as url:
        yield url, app


def counted(app: Gateway, name: str, **labels: str) -> float:
    """The value of one of the gateway's metrics, 0 if it has no sample."""
    return app.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def scripted_upstream(
    serve: Callable[[socket.socket, int], None], listener: socket.socket | None = None
) -> Iterator[str]:
    """A server that calls `serve(connection, index)` in a thread for each connection."""
    listener = listener or socket.create_server(("127.0.0.1", 0), backlog=256)
    threads: list[threading.Thread] = []
    open_sockets: list[socket.socket] = []

    def run_one(connection: socket.socket, index: int) -> None:
        with connection, suppress(OSError):
            serve(connection, index)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(DEADLINE_S)
                open_sockets.append(connection)
                thread = threading.Thread(target=run_one, args=(connection, len(threads)))
                threads.append(thread)
                thread.start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        name = listener.getsockname()
        yield f"unix:{name}" if isinstance(name, str) else f"http://127.0.0.1:{name[1]}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for connection in open_sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(DEADLINE_S)


def read_head(connection: socket.socket) -> bytes:
    """Bytes up to and with the empty line that ends a head; what follows may come along."""
    return read_until(connection, b"\r\n\r\n")


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """Bytes up to and with `end`; what follows may come along."""
    data = b""
    while end not in data:
        piece = connection.recv(65536)
        if not piece:
            return data
        data += piece
    return data


def read_request(connection: socket.socket) -> bytes:
    """A request with a Content-Length body, or none; b"" when there is no further request."""
    data = read_head(connection)
    if not data:
        return b""
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        piece = connection.recv(65536)
        if not piece:
            break
        body += piece
    return head + b"\r\n\r\n" + body


def connect(url: str) -> socket.socket:
    """A connection to the server at `url`."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE_S)


def exchange(url: str, *pieces: bytes) -> bytes:
    """All bytes that come back for raw `pieces`, sent one by one, until the other side closes."""
    with connect(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """Bytes until the other side closes."""
    data = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def get(path: str, *headers: str) -> bytes:
    """A raw GET that asks to close the connection afterwards."""
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode()


def post(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    """A raw POST that asks to close the connection afterwards."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def is_eof(connection: socket.socket) -> bool:
    """Whether the other side has closed; waits for it up to the deadline."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
