"""
The one sentence of a report: what came out, or why nothing could, and what makes it doubtful.

    print(verdict(result, figures(result)))
    # ranker@30 cut mean NTPOT from 0.27 s to 0.12 s (2.2x), 71% [64, 77] of what perfect knowledge
    # would give; the longest wait rose from 30.1 s to 38.2 s.
"""

from collections.abc import Sequence

import numpy as np

from pars.prove.report.gain import BASELINE, BEST, Gain, compared
from pars.prove.report.latency import Figures
from pars.prove.report.times import Result
from pars.ranking.intervals import Estimate

# Below these, order had nothing to work on: the share of looks at which the engine had requests
# waiting, and the part of fcfs's mean that even the oracle saves.
LEAST_SHARE_QUEUED = 0.05
LEAST_GAIN = 0.05


def verdict(result: Result, rows: Sequence[Figures]) -> str:
    """
    One sentence: what the policy of interest changed at the highest load, or why nothing could.

    It begins with what makes it doubtful: an interrupted run, failed requests.
    """
    doubts = []
    if result.interrupted:
        doubts.append("INTERRUPTED, so these are the figures of a part")
    num_failed = sum(sum(row.errors.values()) for row in rows)
    num_asked = sum(row.num_requests for row in rows)
    if num_failed:
        doubts.append(f"{num_failed:,} of {num_asked:,} requests FAILED and are in no figure")
    sentence = _sentence(result, rows)
    return f"{'; '.join(doubts)}: {sentence}" if doubts else sentence


def _sentence(result: Result, rows: Sequence[Figures]) -> str:
    base_rows = [row for row in rows if row.policy == BASELINE and row.num_ended_well]
    if not base_rows:
        return "no request ended well under fcfs, so there is nothing to compare with."
    base_row = base_rows[-1]  # the highest load
    rate = base_row.rate
    at = "" if rate is None else f" at {rate:g} requests/s"
    row = _row_of_interest(rows, rate)
    if row is None:
        return "only fcfs has answers, so there is nothing to compare it with."
    found = compared(result, row.policy, rate=rate)
    if found is None:
        return f"no request ended well under both fcfs and {row.policy}."
    if base_row.queue is not None and base_row.queue.share_queued < LEAST_SHARE_QUEUED:
        return (
            f"there was no queue{at}: under fcfs, requests waited at only"
            f" {base_row.queue.share_queued:.0%} of the looks at the engine, so nothing could be"
            " gained; try a higher load."
        )
    best = found.best_mean
    if best is not None and found.base_mean - best < LEAST_GAIN * found.base_mean:
        return _no_gain(base_row, found, at)
    return f"{_change(found)}{at}{_share_told(found)}; {_wait_told(base_row, row)}."


def _row_of_interest(rows: Sequence[Figures], rate: float | None) -> Figures | None:
    there = {row.policy: row for row in rows if row.rate == rate and row.num_ended_well}
    policy = of_interest([name for name in there if name != BASELINE])
    return there[policy] if policy is not None else None


def _no_gain(base_row: Figures, found: Gain, at: str) -> str:
    told = (
        f"even perfect knowledge of the lengths changed the mean NTPOT only from"
        f" {seconds(found.base_mean)} to {seconds(found.best_mean)}{at}"
    )
    if base_row.queue is not None and base_row.queue.mean_waiting > base_row.queue.mean_running:
        return (
            f"{told}, though {base_row.queue.mean_waiting:.0f} requests waited on average: does the"
            " engine run with --scheduling-policy priority?"
        )
    return f"{told}: there was nothing to gain at this load."


def _change(found: Gain) -> str:
    times = found.speedup
    verb = "cut" if times >= 1 else "RAISED"
    factor = times if times >= 1 else 1 / times
    return (
        f"{found.policy} {verb} mean NTPOT from {seconds(found.base_mean)} to"
        f" {seconds(found.policy_mean)} ({factor:.{2 if factor < 1.95 else 1}f}x)"
    )


def _share_told(found: Gain) -> str:
    if found.share is None or share_text(found.share) == "-":
        return ""
    if found.policy.partition("@")[0] == BEST:
        return ""
    told = f", {share_text(found.share)} of what perfect knowledge would give"
    unsure = found.share.low <= 0 <= found.share.high
    return f"{told} (which may as well be nothing)" if unsure else told


def _wait_told(base_row: Figures, row: Figures) -> str:
    before_s, after_s = base_row.longest_wait_s, row.longest_wait_s
    if before_s is None or after_s is None:
        return "the longest wait is not known"
    before, after = seconds(before_s), seconds(after_s)
    if before == after:
        return f"the longest wait stayed at {after}"
    verb = "rose" if after_s > before_s else "fell"
    return f"the longest wait {verb} from {before} to {after}"


def of_interest(policies: Sequence[str]) -> str | None:
    """The policy that the verdict speaks of: the first ranker, else the first that is no anchor."""
    bare = {policy: policy.partition("@")[0] for policy in policies}
    rankers = [policy for policy in policies if bare[policy] in ("ranker", "gateway")]
    others = [policy for policy in policies if bare[policy] not in (BASELINE, BEST, "reversed")]
    oracles = [policy for policy in policies if bare[policy] == BEST]
    return next(iter([*rankers, *others, *oracles]), None)


def share_text(share: Estimate) -> str:
    """`71% [64, 77]`, or `-` where the oracle gained nothing that is surely more than noise."""
    if np.isnan(share.value) or np.isnan(share.low):
        return "-"
    return f"{share.value:.0%} [{share.low * 100:.0f}, {share.high * 100:.0f}]"


def seconds(value: float | None) -> str:
    """To three digits at most, in ms where that is shorter."""
    if value is None or np.isnan(value):
        return "-"
    if abs(value) < 0.0995:
        return f"{value * 1000:.3g} ms"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:,.{digits}f} s"
