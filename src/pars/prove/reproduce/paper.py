"""
What PARS (arXiv 2510.03243) published, as far as we could read it, beside what is measured here.

Its data are answers of GPT-4, Llama and R1 to Alpaca, LMSYS, code and math prompts, its predictor
is BERT-base, its engine vLLM 0.8.5 on a GPU. None of that is here, so no figure of ours contradicts
one of its figures: they stand side by side to show the scale.
"""

from dataclasses import dataclass

NOT_THE_SAME = "not the same data"


@dataclass(frozen=True, slots=True)
class Published:
    """A figure of the paper: what it is of, and where it was read."""

    what: str
    value: str
    where: str


PUBLISHED = (
    Published(
        "mean per-token latency of PARS beside first come, first served, at best",
        "up to 15.7 times lower",
        "abstract, v3",
    ),
    Published("tau of PARS, LMSYS with R1", "0.50", "v3, second-hand"),
    Published("tau of the pointwise ranker, LMSYS with R1", "0.09", "v3, second-hand"),
    Published("tau of PARS at best", "up to 0.96", "v1, second-hand"),
    Published(
        "throughput of first come, first served, and of PARS",
        "2.57, 2.87 requests/s",
        "v3, second-hand",
    ),
)
