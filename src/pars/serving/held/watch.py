"""
Which of several servers are well: one that cannot be reached, or says that it is not, gets nothing
until it is back.
"""

import asyncio

from pars.serving.answer import UpstreamError
from pars.serving.held.replica import Replica
from pars.serving.upstream import Upstream

PATIENCE_S = 5.0


async def keep_well(upstream: Upstream, replica: Replica, pauses_s: tuple[float, float]) -> None:
    """
    Look at a server's /health for ever; one without such a page is well if it answers at all.

    A server that answers too late is taken for busy: that alone puts none out of use.

    Args:
        pauses_s: Between two looks: while it is out of use, and while it is well.
    """
    soon_s, settled_s = pauses_s
    async with upstream.asked_afresh() as asked:
        while True:
            await _look(asked, replica)
            await asyncio.sleep(soon_s if replica.problem else settled_s)


async def _look(upstream: Upstream, replica: Replica) -> None:
    try:
        status, _ = await upstream.get(b"/health", timeout_s=PATIENCE_S)
    except UpstreamError as error:
        if error.code != "upstream_timeout":
            replica.problem = str(error)
        return
    replica.problem = f"its /health answers HTTP {status}" if status >= 500 else ""
