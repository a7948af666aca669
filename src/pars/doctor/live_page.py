"""A gateway's page as lines of text, and its control, asked over HTTP."""

import asyncio
import json
import math
from typing import Any

from pars.doctor.metrics_page import MetricsPage
from pars.doctor.probe import key_header
from pars.errors import ParsError
from pars.outcomes.switchback import NTPOT
from pars.serving.answer import UpstreamError
from pars.serving.control import CTL_PATH
from pars.serving.pages import METRICS_PATH, NOW_PATH, SERVER_NAME
from pars.serving.upstream import Upstream

TIMEOUT_S = 10.0
MAX_BYTES = 1 << 20
NO_GATEWAY = "no pars gateway answers there: give its URL, without /pars or /v1 behind it"
BARS = " ▁▂▃▄▅▆▇█"

Now = dict[str, Any]


def now_of(url: str) -> Now:
    """
    What /pars/now tells.

    Raises:
        ParsError: nothing answers at `url`, or no gateway of ours, or it wants a key.
    """
    status, told = asyncio.run(_ask(url, "GET", NOW_PATH, key_header(), None))
    if status == 401:
        raise ParsError(f"{url}: wants a key: set PARS_API_KEYS to one of the gateway's")
    if told.get("server") != SERVER_NAME:
        raise ParsError(f"{url}: {NO_GATEWAY} (HTTP {status})")
    return told


def metrics_of(url: str) -> MetricsPage:
    """
    A gateway's metrics.

    Raises:
        ParsError: nothing answers at `url`, or no page of metrics.
    """
    status, content = asyncio.run(_asked(url, "GET", METRICS_PATH, key_header(), None))
    if status != 200:
        raise ParsError(f"{url}{METRICS_PATH}: HTTP {status}")
    return MetricsPage.parse(content.decode(errors="replace"))


def change(url: str, admin_key: str, asked: dict[str, Any]) -> dict[str, str]:
    """
    Carry out a change of `pars ctl`; what is set after it.

    Raises:
        ParsError: nothing answers at `url`, or it does not allow it, or the change makes no sense.
    """
    headers = [(b"authorization", b"Bearer " + admin_key.encode())]
    body = json.dumps(asked).encode() if asked else None
    status, told = asyncio.run(_ask(url, "POST" if asked else "GET", CTL_PATH, headers, body))
    error = told.get("error")
    if status == 200:
        return {name: str(value) for name, value in told.items()}
    if isinstance(error, dict) and status == 400:
        raise ParsError(str(error.get("message")))
    if status != 403:
        raise ParsError(f"{url}: {NO_GATEWAY} (HTTP {status})")
    raise ParsError(f"{url}: HTTP {status}: is PARS_ADMIN_KEY the same there?")


def lines_of(now: Now) -> list[str]:
    """The page as text."""
    worth = now["worth"]
    upstream = now.get("upstream") or {}
    lines = [f"pars in front of {upstream.get('url', '?')}: {now['status']}, {now['policy']}", ""]
    lines.append(
        f"  waiting {worth['num_waiting']}, longest {_seconds(worth['longest_waiting_s'])};"
        f" being answered {worth['num_running']}"
    )
    if held := now.get("held"):
        slots = held["slots"] or "unknown"
        lines.append(f"  held here {held['num_waiting']}; slots {slots}, by {held['slots_by']}")
    lines += [
        "",
        *_gain(worth),
        *_held_out(worth.get("holdout")),
        "",
        *_minutes(worth["minutes"]),
        "",
    ]
    if learning := now.get("learning"):
        lines.append(f"  {_learned(learning)}")
    lines += _tenants(now.get("tenants") or [])
    lines.append(f"  engine {now['engine']}: {_order(now)}")
    return lines + [f"  ! {warning}" for warning in now["warnings"]]


def _order(now: Now) -> str:
    """Whether the queue goes by priority, in words."""
    obeys = now["schedules_by_priority"]
    if now.get("held"):
        waits = "requests wait there all the same, first come, first served: set --slots"
        return waits if obeys is False else "needs no priorities, the queue is held in the gateway"
    told = {True: "goes by priority", False: "IGNORES priorities", None: "order not seen yet"}
    return told[obeys]


def _gain(worth: dict[str, Any]) -> list[str]:
    """What the order is worth, beside first come, first served."""
    lines, gain = [], worth["gain"]
    if shadow := worth["shadow_gain"]:
        share = f"{shadow['ntpot_ratio']:.0%}"
        lines.append(f"  shadow mode: in order it would have been {share} less time per token")
    if gain is None:
        return [*lines, "  nothing is known of the last hour yet"]
    title = f"{gain['num_requests']:,} answers of the last hour"
    lines.append(f"  {title:<30}{'as it is':>12}{'first come':>14}")
    for title, name in (
        ("time per token, mean", "ntpot_s"),
        ("wait, mean", "wait_s"),
        ("wait, p99", "p99_wait_s"),
        ("wait, longest", "longest_wait_s"),
        ("end to end, mean", "e2e_s"),
    ):
        ours, theirs = _seconds(gain[name]), _seconds(gain[f"fcfs_{name}"])
        lines.append(f"    {title:<28}{ours:>12}{theirs:>14}")
    ratios = f"time per token by {gain['ntpot_ratio']:.0%}, the wait by {gain['wait_ratio']:.0%}"
    return [*lines, f"  shorter: {ratios}"]


def _held_out(holdout: dict[str, Any] | None) -> list[str]:
    """What the order is worth beside the windows that are held out; nothing where none are."""
    if holdout is None:
        return []
    where = f"held out, {holdout['share']:.1%} of the time"
    it = next((it for it in holdout["effects"] if it["measure"] == NTPOT), None)
    if it is None or not it["is_enough"]:
        return [f"  {where}: not enough windows yet"]
    told = f"in order {it['ratio']:.0%} less time per token [{it['low']:.0%}, {it['high']:.0%}]"
    return [f"  {where}: {told}, {it['num_blocks']} blocks"]


def _minutes(minutes: list[dict[str, Any] | None]) -> list[str]:
    """Time per token by minute, as it is and first come, first served, in one scale."""
    known = [it if it and it["num_requests"] else None for it in minutes]
    series = [
        [it[name] / it["num_requests"] if it else 0.0 for it in known]
        for name in ("ntpot_s", "fcfs_ntpot_s")
    ]
    most = max(map(max, series))
    if most <= 0:
        return []
    return [
        f"  {title:<11}" + "".join(BARS[math.ceil(8 * it / most)] for it in means)
        for title, means in zip(("as it is", "first come"), series, strict=True)
    ]


def _tenants(rows: list[dict[str, Any]]) -> list[str]:
    """Of the last ten minutes, by tenant: its share by weight, and what it got."""
    lines = []
    for it in rows:
        told = "no answers" if it["work_share"] is None else f"{it['work_share']:.0%} of the work"
        if it["wait_s"] is not None:
            told += f", mean wait {_seconds(it['wait_s'])}"
        share = f"share {it['share']:.0%}"
        lines.append(f"  tenant {it['tenant']:<20} {share}, {told}, {it['num_waiting']} waiting")
    return [*lines, ""] if lines else []


def _learned(learning: dict[str, Any]) -> str:
    told = f"{learning['num_learned']:,} answers learned, "
    told += "orders the queue" if learning["in_use"] else "not yet better than chance"
    tau_b = learning["tau_b"]
    if tau_b["value"] is None:
        return told
    return f"{told}; tau-b {tau_b['value']:.2f} [{tau_b['low']:.2f}, {tau_b['high']:.2f}]"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


async def _asked(
    url: str, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes | None
) -> tuple[int, bytes]:
    try:
        async with asyncio.timeout(TIMEOUT_S), Upstream(url) as upstream:
            with await upstream.ask(method, path.encode(), headers, body) as answer:
                return answer.status, await answer.rest(MAX_BYTES)
    except (UpstreamError, TimeoutError) as error:
        raise ParsError(f"{url}: {error or 'no answer'}") from None


async def _ask(
    url: str, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes | None
) -> tuple[int, dict[str, Any]]:
    status, content = await _asked(url, method, path, headers, body)
    try:
        told = json.loads(content)
    except ValueError:
        told = {}
    return status, told if isinstance(told, dict) else {}
