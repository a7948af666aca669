"""
Looks at an endpoint again and again, and says what changed.

    for look in looks(DoctorOptions(endpoint="http://localhost:8000")):
        print(look.render())
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pars.doctor.doctor import DoctorOptions, diagnose
from pars.doctor.findings import Finding, Report, wrapped
from pars.errors import ParsError

LEAST_BETWEEN_S = 1.0  # from the begin of one look to that of the next


@dataclass(frozen=True, slots=True)
class Look:
    """
    One look, and the report of the one before it; None: it is the first.

    Attributes:
        at_s: Unix time of its end.
    """

    at_s: float
    report: Report
    before: Report | None = None

    @property
    def changed(self) -> list[Finding]:
        """Findings that say something else than before, or are new; numbers alone do not count."""
        known = {it.kind for it in self._findings_before}
        return [it for it in self.report.findings if it.kind not in known]

    @property
    def gone(self) -> list[str]:
        """Questions that were answered before and are no more."""
        asked = {it.name for it in self.report.findings}
        return list(dict.fromkeys(it.name for it in self._findings_before if it.name not in asked))

    def render(self) -> str:
        """The whole report at first, from then on what changed; empty: nothing did."""
        if self.before is None:
            return self.report.render()
        if not (self.changed or self.gone):
            return ""
        was = {it.name: f"before: {it.verdict}" for it in self._findings_before}
        lines = ["", time.strftime("%H:%M:%S", time.localtime(self.at_s))]
        for it in self.changed:
            lines += replace(it, told=f"{it.told} ({was.get(it.name, 'new')})").lines()
        if self.gone:
            lines += wrapped(f"no longer told: {', '.join(self.gone)}")
        return "\n".join(lines + wrapped(self.report.summary))

    def as_json(self) -> dict[str, Any]:
        """The whole report, its time, and the names of what changed and what is gone."""
        names = [it.name for it in self.changed]
        return {"at_s": self.at_s, "changed": names, "gone": self.gone} | self.report.as_json()

    @property
    def _findings_before(self) -> list[Finding]:
        return [] if self.before is None else self.before.findings


def looks(options: DoctorOptions, *, every_s: float = LEAST_BETWEEN_S) -> Iterator[Look]:
    """
    Look, one time after the other, without an end.

    Args:
        every_s: At least so long from the begin of one look to that of the next.

    Raises:
        ParsError: as `diagnose`; or each look would fill the server.
    """
    if options.probe:
        raise ParsError("--watch: leave --probe out: it would fill the server again and again")
    before: Report | None = None
    while True:
        began_s = time.monotonic()
        report = diagnose(options)
        yield Look(time.time(), report, before)
        before = report
        time.sleep(max(0.0, began_s + every_s - time.monotonic()))
