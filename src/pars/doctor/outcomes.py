"""
What `pars doctor` makes of recorded outcomes: does the ranker order, and does anyone starve.

    findings = [ranker_finding(outcomes), waits_finding(outcomes, max_overtake_s)]      # pure
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pars.doctor.findings import OK, PROBLEM, UNKNOWN, Finding
from pars.errors import one_line
from pars.outcomes.queue_order import tells_wait
from pars.outcomes.records import Outcome
from pars.ranking.intervals import Estimate, bootstrap, tau_b_interval
from pars.ranking.order_metrics import PairSums, pair_sums

MOST_OUTCOMES = 5_000  # the latest; more would not narrow the intervals much
LEAST_OUTCOMES = 100
MOST_MODELS, MAX_MODEL_CHARS = 8, 64  # told apart, the busiest
SLACK_S = 1.0  # a wait until the first byte has the prefill in it
THIRDS = ("short", "middle", "long")


def ranker_finding(outcomes: Sequence[Outcome]) -> Finding:
    """Whether the order by score is better than any order, on the latest answers."""
    scored = [one for one in outcomes if _tells_length(one)][-MOST_OUTCOMES:]
    scored = [one for one in scored if one.ranker == scored[-1].ranker]
    numbers: dict[str, Any] = {"answers": len(scored)}
    if len(scored) < LEAST_OUTCOMES:
        told = (
            f"{len(scored)} of its answers have a score and a length; {LEAST_OUTCOMES} are needed"
        )
        return Finding("ranker", UNKNOWN, told, "look again when more requests are done", numbers)
    sums = _pair_sums(scored)
    # Repeats of one prompt are one thing seen often.
    prompts = [one.prompt_key or index for index, one in enumerate(scored)]
    tau_b = bootstrap(sums, "tau_b", clusters=prompts)
    numbers |= {"tau_b": tau_b.as_json(), "ranker": scored[-1].ranker}
    told = f"tau-b {tau_b} between score and length over its last {len(scored):,} answers"
    by_model = _tau_b_by_model(scored)
    if len(by_model) > 1:
        numbers["tau_b_by_model"] = {model: it.as_json() for model, it in by_model.items()}
        told += " (" + ", ".join(f"{model} {it.value:.2f}" for model, it in by_model.items()) + ")"
    if math.isnan(tau_b.value):
        num_whole = sum(not one.is_censored for one in scored)
        told = (
            f"{num_whole:,} of its last {len(scored):,} answers were not cut short, and no two of"
        )
        told += " them differ in both score and length: nothing to order"
        return Finding("ranker", UNKNOWN, told, "", numbers)
    if tau_b.low > 0:
        return Finding("ranker", OK, told, "", numbers)
    return Finding(
        "ranker",
        PROBLEM,
        f"{told}: no better than chance",
        "`pars learn` trains one on these; until then --max-overtake-s 0 is first"
        " come, first served",
        numbers,
    )


def _pair_sums(scored: Sequence[Outcome]) -> PairSums:
    """Pairs of answers of one model; those of two share no queue."""
    return pair_sums(
        [one.score for one in scored if one.score is not None],
        [one.answer_tokens for one in scored if one.answer_tokens is not None],
        strata=[one.model or "" for one in scored],
        is_censored=[one.is_censored for one in scored],
    )


def _tau_b_by_model(scored: Sequence[Outcome]) -> dict[str, Estimate]:
    """Of the busiest models that have answers enough, the worst ordered first."""
    busiest = Counter(one.model or "" for one in scored).most_common(MOST_MODELS)
    found = {
        one_line(model, MAX_MODEL_CHARS): tau_b_interval(
            _pair_sums([one for one in scored if (one.model or "") == model])
        )
        for model, num_answers in busiest
        if num_answers >= LEAST_OUTCOMES
    }
    known = [(model, it) for model, it in found.items() if not math.isnan(it.value)]
    return dict(sorted(known, key=lambda item: item[1].value))


def _tells_length(one: Outcome) -> bool:
    is_single = one.num_prompts == 1 and one.num_answers == 1
    has_failed = one.status is not None and one.status >= 400
    return is_single and not has_failed and one.score is not None and one.answer_tokens is not None


def waits_finding(outcomes: Sequence[Outcome], max_overtake_s: float | None) -> Finding:
    """
    Who waits how long, and whether anyone was overtaken for longer than the bound allows.

    A request that is overtaken only by those that come within the bound after it may wait long
    where the server is overloaded; then everybody does, and no order can help it.
    """
    waited = [one for one in outcomes if one.expected_tokens is not None and tells_wait(one)][
        -MOST_OUTCOMES:
    ]
    numbers: dict[str, Any] = {"answers": len(waited)}
    if len(waited) < LEAST_OUTCOMES:
        told = f"{len(waited)} answers have a wait and an expected length;"
        told += f" {LEAST_OUTCOMES} are needed (of answers that are not streamed it is not known)"
        return Finding("waits", UNKNOWN, told, "look again when more requests are done", numbers)
    waits_s = np.array([one.wait_s for one in waited])
    expected_tokens = np.array([one.expected_tokens for one in waited], dtype=np.float64)
    by_length = np.argsort(expected_tokens, kind="stable")
    parts = dict(zip(THIRDS, np.array_split(waits_s[by_length], 3), strict=True))
    numbers["longest_s"] = {name: round(float(part.max()), 3) for name, part in parts.items()}
    numbers["median_s"] = {name: round(float(np.median(part)), 3) for name, part in parts.items()}
    overtaken_s = longest_overtake_s(waited)
    numbers |= {"overtaken_s": round(overtaken_s, 3), "max_overtake_s": max_overtake_s}
    told = f"longest {waits_s.max():.1f} s; median and longest by expected length: "
    told += ", ".join(
        f"{name} {np.median(part):.1f} and {part.max():.1f} s" for name, part in parts.items()
    )
    told += f"; overtaken by what came up to {overtaken_s:.1f} s later"
    if max_overtake_s is None:  # the bound is on a slowdown: "worth" says whether it holds
        return Finding("waits", OK, told, "", numbers)
    if overtaken_s <= max_overtake_s + SLACK_S:
        return Finding("waits", OK, f"{told} (bound: {max_overtake_s:g} s)", "", numbers)
    return Finding(
        "waits",
        PROBLEM,
        f"{told}, beyond the bound of {max_overtake_s:g} s",
        "is PARS_MAX_OVERTAKE_S the same everywhere and here (--max-overtake-s)? do clocks agree,"
        " does every request pass pars, is there one queue (no replicas, no ranks)?",
        numbers,
    )


def longest_overtake_s(outcomes: Sequence[Outcome]) -> float:
    """
    How much later the latest request came that began before one that was there already.

    Args:
        outcomes: By arrival, each with its wait; those of one model share a queue.
    """
    longest_s = 0.0
    for model in {one.model for one in outcomes}:
        ours = [one for one in outcomes if one.model == model]
        arrivals_s = np.array([one.arrival_s for one in ours])
        begins_s = arrivals_s + np.array([one.wait_s for one in ours])
        for index, begin_s in enumerate(begins_s):
            overtakers = np.flatnonzero(begins_s[index + 1 :] < begin_s)
            if len(overtakers):
                last = index + 1 + overtakers[-1]
                longest_s = max(longest_s, float(arrivals_s[last] - arrivals_s[index]))
    return longest_s
