"""An engine without priorities that answers when a test tells it to."""

import json
import socket
import threading
from typing import Any

import httpx

from gateways import read_request

from serving import DEADLINE_S

PATH = "/v1/completions"


class Engine:
    """
    Answers generation requests when it is told to, and everything else with a 404.

    Attributes:
        prompts: Of the requests that it got, in their order.
        busy: It sends so many requests back with a 503.
        limited: Callers' keys that get a 429, which asks them to come again in a second.
    """

    def __init__(self, slots: int | None = None) -> None:
        self.prompts: list[str] = []
        self.busy = 0
        self.limited: set[str] = set()
        self.gone: list[str] = []
        self.slots = slots
        self._may_end = threading.Semaphore(0)
        self._lock = threading.Lock()

    def finish(self, num: int) -> None:
        """Let so many answers end."""
        self._may_end.release(num)

    def serve(self, connection: socket.socket, _: int) -> None:
        while request := read_request(connection):
            head, _, body = request.partition(b"\r\n\r\n")
            if head.startswith(b"POST "):
                key = head.lower().partition(b"x-api-key: ")[2].split(b"\r\n")[0].decode()
                if key in self.limited:
                    connection.sendall(answer(429, {"error": "limit"}, b"retry-after: 1\r\n"))
                else:
                    self._generate(connection, json.loads(body))
            elif head.startswith(b"GET /props ") and self.slots is not None:
                connection.sendall(answer(200, {"total_slots": self.slots}))
            else:
                connection.sendall(answer(404, {}))

    def _generate(self, connection: socket.socket, body: dict[str, Any]) -> None:
        with self._lock:
            self.busy -= 1
            is_busy = self.busy >= 0
            if not is_busy:
                self.prompts.append(body["prompt"])
        if is_busy:
            connection.sendall(answer(503, {"error": "busy"}, b"retry-after: 0\r\n"))
            return
        while not self._may_end.acquire(timeout=0.02):
            connection.setblocking(False)
            try:
                if connection.recv(1, socket.MSG_PEEK) == b"":
                    self.gone.append(body["prompt"])
                    return
            except BlockingIOError:
                pass
            finally:
                connection.settimeout(DEADLINE_S)
        connection.sendall(answer(200, {"usage": {"prompt_tokens": 1, "completion_tokens": 9}}))


def answer(status: int, value: Any, more: bytes = b"") -> bytes:
    body = json.dumps(value).encode()
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n"
    return head % (status, more, len(body)) + body


def ask(url: str, prompt: str, key: str = "", **fields: str) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": 1000}
    headers = fields | ({"x-api-key": key} if key else {})
    return httpx.post(url + PATH, json=body, headers=headers, timeout=DEADLINE_S, trust_env=False)
