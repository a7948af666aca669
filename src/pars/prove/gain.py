"""
What a policy's order was worth beside first come, first served, and beside perfect knowledge.

    found = compared(result, "ranker@30")        # at the highest load
    print(found.speedup, found.share)            # 2.2, 0.71 [0.64, 0.77]
    print(verdict(result, figures(result)))      # the one sentence of the report

Policies are compared on the same requests: those that ended well under each of them, in the same
repeat. The share is (fcfs - policy) / (fcfs - oracle) of the means. Its interval is a percentile
bootstrap over repeats and requests at once (Owen 2007, "The pigeonhole bootstrap",
doi:10.1214/07-AOAS122): resampling one of them only would call a noisy machine certain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pars.metrics import Estimate
from pars.prove.latency import Figures, columns, ended_well
from pars.prove.times import RequestTimes, Result

FloatArray = NDArray[np.float64]

BASELINE, BEST = "fcfs", "oracle"
NUM_RESAMPLES = 1000
MAX_GROUPS = 2000  # of requests, for the bootstrap

# Below these, order had nothing to work on: the share of looks at which the engine had requests
# waiting, and the part of fcfs's mean that even the oracle saves.
LEAST_SHARE_QUEUED = 0.05
LEAST_GAIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """
    One policy beside fcfs and the oracle, over the requests that ended well under all of them.

    Attributes:
        best_mean, share: None where no oracle ran; the share is nan where fcfs was no worse.
    """

    policy: str
    rate: float | None
    measure: str
    num_requests: int
    base_mean: float
    policy_mean: float
    best_mean: float | None
    share: Estimate | None

    @property
    def speedup(self) -> float:
        return self.base_mean / self.policy_mean if self.policy_mean > 0 else float("inf")


def best_of(policies: Sequence[str]) -> str | None:
    """The oracle to compare with: without aging if it ran, else the first."""
    found = [policy for policy in policies if policy.partition("@")[0] == BEST]
    return BEST if BEST in found else next(iter(found), None)


def of_interest(policies: Sequence[str]) -> str | None:
    """The policy that the verdict speaks of: the first ranker, else the first that is no anchor."""
    bare = {policy: policy.partition("@")[0] for policy in policies}
    rankers = [policy for policy in policies if bare[policy] in ("ranker", "gateway")]
    others = [policy for policy in policies if bare[policy] not in (BASELINE, BEST, "reversed")]
    oracles = [policy for policy in policies if bare[policy] == BEST]
    return next(iter([*rankers, *others, *oracles]), None)


def compared(
    result: Result,
    policy: str,
    *,
    rate: float | None = None,
    measure: str = "ntpot_s",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Gain | None:
    """
    What `policy` made of fcfs's mean at one load; None if they have no request in common.

    Args:
        measure: One of `latency.columns`.
    """
    best = best_of(result.policies())
    names = [BASELINE, policy] + ([best] if best else [])
    values = _paired(result.requests, names, rate, measure)
    known: NDArray[np.bool_] = np.logical_not(np.isnan(values).any(axis=0))
    if not known.any():
        return None
    values = np.where(known, values, 0.0)
    means = (values.sum(axis=(1, 2)) / known.sum()).tolist()
    share = None
    if best is not None:
        share = Estimate(_share(*means), *_interval(values, known, num_resamples, seed))
    return Gain(
        policy=policy,
        rate=rate,
        measure=measure,
        num_requests=int(known.sum()),
        base_mean=means[0],
        policy_mean=means[1],
        best_mean=means[2] if best else None,
        share=share,
    )


def _paired(
    requests: Sequence[RequestTimes], policies: Sequence[str], rate: float | None, measure: str
) -> FloatArray:
    """[num_policies, num_repeats, num_requests], nan where a request did not end well."""
    good = [r for r in requests if r.policy in policies and r.rate == rate and ended_well(r)]
    rows = {repeat: i for i, repeat in enumerate(sorted({r.repeat for r in good}))}
    places = {name: i for i, name in enumerate(dict.fromkeys(r.request_id for r in good))}
    table = np.full((len(policies), len(rows), len(places)), np.nan)
    for request, value in zip(good, columns(good)[measure].tolist(), strict=True):
        for index, policy in enumerate(policies):  # a policy may stand twice: oracle beside itself
            if policy == request.policy:
                table[index, rows[request.repeat], places[request.request_id]] = value
    return table


def _share(base: float, policy: float, best: float) -> float:
    return (base - policy) / (base - best) if base > best else float("nan")


def _interval(
    values: FloatArray, known: NDArray[np.bool_], num_resamples: int, seed: int
) -> tuple[float, float]:
    """
    The 95% interval of the share. Draws in which fcfs was no worse than the oracle have none, and
    when one in forty is such, neither has the whole.
    """
    values, known = _grouped(values), _grouped(known.astype(np.float64))
    _, num_repeats, num_requests = values.shape
    undefined = (float("nan"), float("nan"))
    if num_requests < 2:
        return undefined
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(num_resamples):
        of_repeats = _weights(rng, num_repeats)
        of_requests = _weights(rng, num_requests)
        if float(of_repeats @ known @ of_requests) > 0:
            base, policy, best = (of_repeats @ (values @ of_requests).T).tolist()
            draws.append(_share(base, policy, best))
    shares = np.array(draws)
    if not len(shares) or np.isnan(shares).mean() > 0.025:
        return undefined
    low, high = np.nanpercentile(shares, [2.5, 97.5]).tolist()
    return low, high


def _grouped(table: FloatArray) -> FloatArray:
    """
    The last axis summed into at most MAX_GROUPS groups of every MAX_GROUPS-th request.

    Resampling groups gives the same interval in expectation, and costs the same however many
    requests there are.
    """
    missing = -table.shape[-1] % MAX_GROUPS
    if table.shape[-1] <= MAX_GROUPS:
        return table
    padded = np.pad(table, [(0, 0)] * (table.ndim - 1) + [(0, missing)])
    summed: FloatArray = padded.reshape(*table.shape[:-1], -1, MAX_GROUPS).sum(axis=-2)
    return summed


def _weights(rng: np.random.Generator, count: int) -> FloatArray:
    """How often each of `count` is drawn in a sample of that size."""
    return np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)


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
