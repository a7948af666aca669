"""Limits of goodput, as they are spelled: which measure must stay within how many seconds."""

from pars.errors import ParsError

LIMITED = ("ttft_s", "tpot_s", "e2e_s", "ntpot_s", "longest_itl_s")


def parse_limits(text: str) -> dict[str, float]:
    """
    Limits of goodput, "ttft_s:0.5,ntpot_s:0.1", by measure, in seconds.

    Raises:
        ParsError: a measure is unknown, or a limit is not a positive number.
    """
    limits = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = part.partition(":")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = 0.0
        if name not in LIMITED or not 0 < limits[name] < float("inf"):
            known = ", ".join(LIMITED)
            raise ParsError(f"--goodput: {part!r}: want MEASURE:SECONDS with one of {known}")
    return limits
