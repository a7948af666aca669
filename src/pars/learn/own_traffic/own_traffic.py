"""
What outcomes can teach: prompts with the lengths of their answers, old ones apart from the newest.

    traffic = teaching(read_outcomes(folder).outcomes)
    old, newest = split_by_time(traffic.requests, 0.2)

A request teaches when it has one prompt whose text was kept, and one answer whose length is known.
One that was cut short teaches that its answer is longer than that.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pars.learn.data.records import Row
from pars.outcomes.records import CUT_SHORT, Outcome


@dataclass(frozen=True, slots=True)
class Request:
    """A row to learn from, and when it came, as Unix time."""

    row: Row
    arrival_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The requests that teach, by arrival, and how many do not, by reason."""

    requests: list[Request]
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """
    Some requests in numbers.

    Attributes:
        num_censored: Of those whose answer was cut short.
        first, last: Arrivals, in UTC.
    """

    num_requests: int
    num_prompts: int
    num_censored: int
    first: str
    last: str

    @classmethod
    def of(cls, requests: Sequence[Request]) -> "Part":
        """The numbers of requests in order of arrival."""
        times = [_utc(request.arrival_s) for request in requests] or [""]
        return cls(
            num_requests=len(requests),
            num_prompts=len({request.row.message for request in requests}),
            num_censored=sum(request.row.is_censored for request in requests),
            first=times[0],
            last=times[-1],
        )

    def __str__(self) -> str:
        if not self.num_requests:
            return "none"
        told = f"{self.num_requests:,} requests, {self.num_prompts:,} prompts"
        cut = f", {self.num_censored:,} cut short" if self.num_censored else ""
        return f"{told}{cut}, {self.first} to {self.last}"


def teaching(outcomes: Iterable[Outcome]) -> Traffic:
    """The requests of `outcomes`, which are in order of arrival, that teach."""
    requests: list[Request] = []
    left_out: Counter[str] = Counter()
    for number, outcome in enumerate(outcomes):
        lesson = _lesson(number, outcome)
        if isinstance(lesson, Row):
            requests.append(Request(lesson, outcome.arrival_s))
        else:
            left_out[lesson] += 1
    return Traffic(requests=requests, left_out=dict(left_out.most_common()))


def _lesson(number: int, outcome: Outcome) -> Row | str:
    """The row that an outcome teaches, or why it teaches none."""
    if outcome.num_prompts != 1:
        return "several prompts"
    if outcome.num_answers != 1:
        return "several answers"
    if outcome.answer_tokens is None or (outcome.is_censored and not outcome.answer_tokens):
        return "no answer, or none whose length is known"
    if not outcome.prompt:
        return "the prompt's text was not kept"
    reason = outcome.finish_reason
    if not outcome.is_censored:
        reason = "stop"
    elif reason not in CUT_SHORT:  # whatever failed was cut short, also where no reason is told
        reason = "error"
    return Row(
        number, outcome.prompt, outcome.answer_tokens, model=outcome.model, finish_reason=reason
    )


def split_by_time(
    requests: Sequence[Request], newest_share: float
) -> tuple[list[Request], list[Request]]:
    """The older and the newest of `requests`; of the older, those whose prompt is in no newer."""
    cut = len(requests) - round(newest_share * len(requests))
    newest = list(requests[cut:])
    held_out = {request.row.message for request in newest}
    return [it for it in requests[:cut] if it.row.message not in held_out], newest


def rows_of(requests: Iterable[Request]) -> list[Row]:
    """The rows alone."""
    return [request.row for request in requests]


def _utc(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def now() -> str:
    """The present time in UTC."""
    return _utc(datetime.now(UTC).timestamp())
