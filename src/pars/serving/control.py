"""
What an operator can change while the gateway serves, without a restart.

    POST /pars/ctl  {"policy": "fcfs"}         Authorization: Bearer PARS_ADMIN_KEY
    POST /pars/ctl  {"policy": "1.25x", "learn": "off", "keep": true}
    POST /pars/ctl  {"rollback": true}

Off by default: without PARS_ADMIN_KEY there is no such page. Each change is logged, shown on the
page and in the metrics, and can be taken back. `keep` lets it outlive a restart.
"""

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pars.errors import ParsError, one_line
from pars.files import read_regular, written_whole
from pars.request.body import Receive, Scope, Send
from pars.scheduling.policies.fcfs import FCFS
from pars.scheduling.policies.policy import Policy
from pars.scheduling.policies.spelled import policy_of
from pars.scheduling.trust import BEARER_HEADER
from pars.serving.middleware import PriorityMiddleware
from pars.serving.replies import send_error, send_json

log = logging.getLogger("pars")

CTL_PATH = "/pars/ctl"
MAX_BODY_BYTES = 4096
MOST_CHANGES = 32  # that can be taken back
SWITCHES = {"on": True, "off": False}

State = dict[str, str]


class Control:
    """
    Changes one gateway. On its event loop.

    Args:
        folder: Where changes are kept that are to outlive a restart; None: nowhere.
        upstreams: Their URLs. Gateways before others may share the folder, and keep their own.
    """

    def __init__(
        self, middleware: PriorityMiddleware, folder: Path | None, upstreams: Sequence[str]
    ) -> None:
        self._middleware = middleware
        name = hashlib.sha256("\n".join(sorted(upstreams)).encode()).hexdigest()[:16]
        self._kept = None if folder is None else folder / f"control-{name}.json"
        settings = middleware.settings
        self._state: State = {"policy": "default", "shadow": "off"}
        self._state["learn"] = settings.learn
        self._state["ranker"] = settings.ranker
        self._before: list[State] = []
        self._changing = asyncio.Lock()  # a ranker takes its time to load

    @property
    def state(self) -> State:
        """What is set now: the policy's name, and the switches."""
        return dict(self._state)

    async def change(self, asked: dict[str, Any]) -> State:
        """
        Carry out a change, all of it or nothing, after those that came before; the state after it.

        Raises:
            ParsError: something in it makes no sense, or a ranker cannot be loaded.
        """
        async with self._changing:
            return await self._change(dict(asked))

    async def _change(self, asked: dict[str, Any]) -> State:
        keeps = asked.pop("keep", False)
        if asked == {"rollback": True}:
            if not self._before:
                raise ParsError("there is no change to take back")
            await self._carry_out(self._before[-1])
            self._before.pop()
        elif asked:
            before = self.state
            await self._carry_out(before | self._checked(asked))
            self._before = [*self._before[1 - MOST_CHANGES :], before]
        log.warning("changed by an operator: %s", json.dumps(self._state))
        if keeps:
            self._keep()
        return self.state

    async def restore(self) -> None:
        """Carry out what was kept, if anything was; a damaged file is said, and costs nothing."""
        if self._kept is None:
            return
        try:
            kept = json.loads(read_regular(self._kept))
            await self._carry_out(self._state | self._checked(kept))
            log.warning("as an operator has set it: %s", json.dumps(self._state))
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError, ParsError) as error:
            log.error("%s is left out: %s", self._kept, one_line(error))

    def _checked(self, asked: Any) -> State:
        if not isinstance(asked, dict):
            raise ParsError("a change is a JSON object")
        for name, value in asked.items():
            if name not in self._state:
                raise ParsError(f"{name}: none of {', '.join(self._state)}, rollback, keep")
            if not isinstance(value, str):
                raise ParsError(f"{name}: want a text, not {json.dumps(value)}")
            if name in ("learn", "shadow") and value not in SWITCHES:
                raise ParsError(f"{name}: want on or off, not {value}")
        return dict(asked)

    async def _carry_out(self, wanted: State) -> None:
        predictor, placing = self._middleware.predictor, self._middleware.placing
        policy = self._policy(wanted["policy"])
        if SWITCHES[wanted["learn"]] and predictor.learner is None:
            raise ParsError("learn: this gateway was started with --learn off")
        if wanted["ranker"] != self._state["ranker"]:
            await asyncio.to_thread(predictor.offline.load, wanted["ranker"])
        if predictor.learner is not None:
            predictor.learner.is_paused = not SWITCHES[wanted["learn"]]
        if wanted["policy"] != self._state["policy"] or wanted["shadow"] != self._state["shadow"]:
            placing.go_by(policy, is_shadow=SWITCHES[wanted["shadow"]])
        self._state = dict(wanted)

    def _policy(self, text: str) -> Policy:
        """The policy spelled "fcfs", "default", "1.25x" or "30" (seconds of overtaking)."""
        settings = self._middleware.settings
        if text == "default":
            return settings.policy()
        if text == "fcfs":
            return FCFS(bits=settings.priority_bits)
        try:
            return settings.by_tenant(
                policy_of(text, shares_engine=settings.shared_engine, bits=settings.priority_bits)
            )
        except ValueError:
            want = "want fcfs, default, 1.25x or 30 (seconds)"
            raise ParsError(f"policy: {want}, not {text}") from None

    def _keep(self) -> None:
        if self._kept is None:
            raise ParsError("keep: this gateway has no state folder (--state)")
        try:
            with written_whole(self._kept, is_private=True) as file:
                file.write(json.dumps(self._state).encode())
        except OSError as error:
            raise ParsError(f"{self._kept}: {error.strerror or error}") from error


async def answer_ctl(
    control: Control, admin_key: str, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer a request to CTL_PATH: GET tells what is set, POST changes it."""
    shown = dict(scope["headers"]).get(BEARER_HEADER, b"")
    if not admin_key or not hmac.compare_digest(shown, b"Bearer " + admin_key.encode()):
        await send_error(send, 403, "not_allowed", "PARS_ADMIN_KEY is not set here, or not sent")
        return
    if scope["method"] == "GET":
        await send_json(send, 200, control.state)
        return
    if scope["method"] != "POST":
        await send_error(send, 405, "method_not_allowed", "GET tells what is set, POST changes it")
        return
    try:
        await send_json(send, 200, await control.change(await _asked(receive)))
    except (ParsError, ValueError, OSError) as error:  # a name that no file can have, too
        await send_error(send, 400, "bad_change", one_line(error))


async def _asked(receive: Receive) -> dict[str, Any]:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise ParsError(f"a change of more than {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            break
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise ParsError("not JSON") from None
    if not isinstance(asked, dict):
        raise ParsError("a change is a JSON object")
    return asked
