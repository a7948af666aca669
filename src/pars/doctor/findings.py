"""
What `pars doctor` says: one finding a question, each with its number and what to change.

    Finding("queue", OK, "a queue in 9 of 20 looks, up to 31 waiting")
    report.render(); report.as_json(); report.exit_code
"""

import textwrap
from dataclasses import dataclass, field
from typing import Any

OK, PROBLEM, UNKNOWN = "ok", "problem", "unknown"
WIDTH = 100
MARGIN = 21
NO_ANSWER = ("endpoint", "upstream")  # then nothing else can be seen
BLOCKING = (*NO_ANSWER, "priority", "scheduling", "engine", "decisions", "ranker")


@dataclass(frozen=True, slots=True)
class Finding:
    """
    The answer to one question.

    Attributes:
        verdict: OK, PROBLEM, or UNKNOWN: it could not be seen from here.
        told: In words, with the number behind it.
        change: What to change, or how to find out; empty where all is well.
        numbers: For programs.
    """

    name: str
    verdict: str
    told: str
    change: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[str, str, str]:
        """What stays the same while nothing but its numbers changes."""
        says = self.told if self.verdict == PROBLEM and not self.change else self.change
        return self.name, self.verdict, says

    def lines(self) -> list[str]:
        """For a terminal."""
        gap = " " * MARGIN
        lines = wrapped(self.told, f"{self.verdict:<9}{self.name:<{MARGIN - 9}}", gap)
        if self.change:
            lines += wrapped(self.change, f"{gap}-> ", f"{gap}   ")
        return lines


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about one endpoint."""

    endpoint: str
    watched_s: float
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """0: nothing to change that can be seen; 1: something is; 3: the endpoint is silent."""
        problems = [it.name for it in self.findings if it.verdict == PROBLEM]
        return 3 if "endpoint" in problems else int(bool(problems))

    @property
    def summary(self) -> str:
        """Whether pars helps, in a sentence."""
        found = {it.name: it for it in self.findings}
        blocks = [found[name] for name in BLOCKING if name in found]
        for it in blocks:
            if it.verdict == PROBLEM:
                return f"pars cannot help before this is changed: {it.told}."
        if "scheduling" in found and found["scheduling"].verdict == UNKNOWN:
            return (
                "Whether pars helps is not known: it does only where the engine goes by priority,"
                f" and {found['scheduling'].told}."
            )
        queue = found.get("queue")
        if queue is not None and queue.numbers.get("has_queue") is False:
            return (
                "Nothing to gain at this moment: no request waits, and order helps where some do."
            )
        unknown = [it.name for it in self.findings if it.verdict == UNKNOWN]
        if unknown:
            return f"Nothing is wrong that can be seen from here; not known: {', '.join(unknown)}."
        if self.exit_code:
            return "pars helps: requests wait, and it orders them; something else is to change."
        return "pars helps: requests wait, it orders them, and its order is better than chance."

    def render(self) -> str:
        """One screen."""
        head = f"{self.endpoint}, watched for {self.watched_s:g} s"
        body = [line for finding in self.findings for line in finding.lines()]
        return "\n".join([head, "", *body, "", *wrapped(self.summary)])

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        names = ("name", "verdict", "told", "change", "numbers")
        return {
            "endpoint": self.endpoint,
            "watched_s": self.watched_s,
            "summary": self.summary,
            "exit_code": self.exit_code,
            "findings": [{it: getattr(one, it) for it in names} for one in self.findings],
        }


def wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    """Lines of one screen's width; options of a command line and names of metrics stay whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )
