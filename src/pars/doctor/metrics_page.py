"""
A page of Prometheus metrics, read: an engine's, or ours on it.

    page = MetricsPage.parse(text)
    page.total(*WAITING)                         # 3.0; None where no such metric is told
    page.by("pars_decisions_total", "outcome")   # {"scored": 118.0, ...}
    later.since(page)                            # a page of what was counted in between

Whatever is no sample is passed over, so that any text is a page, at worst an empty one.
"""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

# What vLLM calls it, and what SGLang does.
RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs")
WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
PREEMPTIONS = ("vllm:num_preemptions_total", "sglang:num_retractions_total")
QUEUE_TIME = ("vllm:request_queue_time_seconds", "sglang:queue_time_seconds")

OF_ALL = ("priority", "")

Labels = tuple[tuple[str, str], ...]
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """Samples by name and labels."""

    samples: Mapping[tuple[str, Labels], float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The page in `text`."""
        samples: dict[tuple[str, Labels], float] = {}
        for name, labels, value in _SAMPLE.findall(text):
            with suppress(ValueError):
                samples[name, tuple(_LABEL.findall(labels))] = float(value)
        return cls(samples)

    def values(self, *names: str) -> list[float]:
        """
        The values of the first of `names` that is there, one for each set of labels.

        Where SGLang tells a value for each priority beside that of all, which has the priority "",
        only that counts.
        """
        for name in names:
            if found := {labels: it for (of, labels), it in self.samples.items() if of == name}:
                of_all = [value for labels, value in found.items() if OF_ALL in labels]
                return of_all or list(found.values())
        return []

    def total(self, *names: str) -> float | None:
        """Their sum; None if none is there."""
        values = self.values(*names)
        return sum(values) if values else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums by the values of one label."""
        sums: dict[str, float] = {}
        for (it, labels), value in self.samples.items():
            if it == name and (key := dict(labels).get(label)) is not None:
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def mean(self, *histograms: str) -> float | None:
        """The mean of what the first of `histograms` that is there observed."""
        count = self.total(*(f"{name}_count" for name in histograms))
        total = self.total(*(f"{name}_sum" for name in histograms))
        return total / count if count and total is not None else None

    def most(self, *histograms: str) -> tuple[float, float] | None:
        """Between which bounds the largest observation of a histogram lies; None without one."""
        for name in histograms:
            by_bound = self.by(f"{name}_bucket", "le")
            buckets = sorted((float(bound), count) for bound, count in by_bound.items())
            low = 0.0
            for bound, count in buckets:
                if count and count == buckets[-1][1]:
                    return low, bound
                low = bound
        return None

    def since(self, before: "MetricsPage") -> "MetricsPage":
        """What was counted since `before`; a counter that began anew counts from 0."""
        counted = {}
        for key, value in self.samples.items():
            earlier = before.samples.get(key, 0.0)
            counted[key] = value - earlier if value >= earlier or math.isnan(value) else value
        return MetricsPage(counted)
