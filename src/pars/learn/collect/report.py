"""
What `pars collect` counted, and what it says at its end.

    report.count(reply); report.give_up(row, sample, failure)
    print(report.render()); sys.exit(report.exit_code)
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pars.errors import INTERRUPTED
from pars.learn.collect.reply import Failure, Reply

NUM_EXAMPLES = 3


@dataclass(slots=True)
class CollectReport:
    """
    Counts of one run.

    Attributes:
        num_wanted: Prompts times samples.
        num_before: Answers that were there when the run began.
        failures: Requests without an answer, by kind; most were asked again.
        given_up: By kind, (row of the prompts, sample, what was said) of those that were not.
        problems: Answers without a length, by why.
        left_out: By endpoint, why it was asked no more.
        stopped: Why the run ended before all was asked.
    """

    output: Path
    num_wanted: int
    num_before: int = 0
    num_before_without_length: int = 0
    num_bytes_cut: int = 0
    num_answers: int = 0
    num_tokens: int = 0
    num_retries: int = 0
    num_censored: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    given_up: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    interrupted: bool = False
    seconds: float = 0.0
    began_s: float = field(default_factory=time.monotonic)

    def count(self, reply: Reply) -> None:
        """An answer came, and is kept."""
        self.num_answers += 1
        self.num_tokens += reply.answer_tokens or 0
        self.num_censored += reply.finish_reason == "length"
        if reply.problem:
            self.problems[reply.problem] += 1

    def give_up(self, row: int, sample: int, failure: Failure) -> None:
        """A prompt stays without this answer."""
        self.given_up.setdefault(failure.kind, []).append((row, sample, str(failure)))

    def speed(self) -> str:
        """For the progress bar."""
        speed = self.num_tokens / max(1e-9, time.monotonic() - self.began_s)
        failed = sum(self.failures.values())
        return f"{speed:,.0f} tokens/s" + (f", {failed:,} failed requests" if failed else "")

    @property
    def num_missing(self) -> int:
        return self.num_wanted - self.num_before - self.num_answers

    @property
    def exit_code(self) -> int:
        """0: every answer is there; 1: some are not; 130: interrupted."""
        if self.interrupted:
            return INTERRUPTED
        return 1 if self.num_missing > 0 or self.stopped else 0

    def render(self) -> str:
        """What a person reads at the end."""
        return "\n".join([*self._counts(), *self._failed(), *self._end()])

    def _counts(self) -> list[str]:
        speed = self.num_tokens / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.num_answers:,} answers, {self.num_tokens:,} tokens in {self.seconds:,.1f} s"
            f" ({speed:,.0f} tokens/s)"
        ]
        if self.num_before:
            lines[0] += f"; {self.num_before:,} were there"
        if self.num_bytes_cut:
            cut = f"{self.num_bytes_cut:,} bytes of a line cut short were taken off the end"
            lines.append(f"{cut}; its answer is asked again")
        if self.num_censored:
            lines.append(
                f"{self.num_censored:,} answers were cut at the limit on tokens (finish_reason"
                " length): their lengths are lower bounds; a higher --max-tokens tells more"
            )
        without = sum(self.problems.values()) + self.num_before_without_length
        if without:
            told = ", ".join(f"{count:,} {problem}" for problem, count in self.problems.items())
            lines.append(
                f"{without:,} answers have no length{f' ({told})' if told else ''}: `pars prepare`"
                " leaves them out"
            )
        return lines

    def _failed(self) -> list[str]:
        lines = []
        if self.failures:
            told = ", ".join(f"{count:,} {kind}" for kind, count in self.failures.most_common())
            lines.append(f"requests without an answer: {told}; {self.num_retries:,} asked again")
        lines += [f"left out: {url}: {why}" for url, why in self.left_out.items()]
        for kind, rows in self.given_up.items():
            lines.append(f"given up, {kind}: {len(rows):,}")
            lines += [
                f"  row {row}, sample {sample}: {told}" for row, sample, told in rows[:NUM_EXAMPLES]
            ]
        return lines

    def _end(self) -> list[str]:
        if not self.num_missing and not self.stopped:
            return [f"Answers: {self.output} (try: pars prepare records --input {self.output})"]
        lines = [f"Stopped: {self.stopped}"] if self.stopped else []
        there = self.num_before + self.num_answers
        lines.append(
            f"{there:,} of {self.num_wanted:,} answers are in {self.output}; the same command"
            f" again asks for the {self.num_missing:,} that are missing"
        )
        return lines
