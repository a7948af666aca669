"""
Which of several servers are well: one that cannot be reached, or says that it is not, or says
nothing at all, gets nothing until it is back.
"""

import asyncio

from pars.serving.answer import UpstreamError
from pars.serving.held.replica import Replica
from pars.serving.upstream import Upstream

PATIENCE_S = 5.0
MOST_LATE = 3  # looks in a row that got no answer
HANGS = "it takes connections and answers nothing"


async def keep_well(
    upstream: Upstream,
    replica: Replica,
    pauses_s: tuple[float, float],
    *,
    patience_s: float = PATIENCE_S,
) -> None:
    """
    Look at a server's /health for ever; one without such a page is well if it answers at all.

    A server that answers too late may be busy, as long as a byte of some request's answer comes. If
    none does, it hangs.

    Args:
        pauses_s: Between two looks: while it is out of use, or late, and while it is well.
        patience_s: For the answer to a look.
    """
    soon_s, settled_s = pauses_s
    num_late = num_heard = 0
    async with upstream.asked_afresh() as asked:
        while True:
            is_late = await _look(asked, replica, patience_s)
            if not is_late or replica.num_heard != num_heard:
                num_late, num_heard = 0, replica.num_heard
            num_late += is_late
            if num_late >= MOST_LATE:
                replica.problem = HANGS
            await asyncio.sleep(soon_s if replica.problem or is_late else settled_s)


async def _look(upstream: Upstream, replica: Replica, patience_s: float) -> bool:
    """Look once; whether the answer did not come in time."""
    try:
        status, _ = await upstream.get(b"/health", timeout_s=patience_s)
    except UpstreamError as error:
        if error.code == "upstream_timeout":
            return True
        if error.code != "no_connections_left":  # which is our own fault
            replica.problem = str(error)
        return False
    replica.problem = f"its /health answers HTTP {status}" if status >= 500 else ""
    return False
