"""
One plot for page, paper and notebook: the same drawing as SVG, PDF or PNG. Needs the `plot` extra.

    drawn = plot("Latency", "Mean NTPOT.", lambda axes: axes.plot(loads, means))
    drawn.save("latency.pdf")                   # or .svg, .png, by the name's end
    drawn                                       # at a notebook's prompt it shows itself

Letters stay letters: text of an SVG can be searched, and fonts of a PDF are embedded (type 42, as
conferences ask for).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pars.errors import MissingExtra, ParsError
from pars.files import written_whole

SIZE_IN = (5.2, 3.2)  # so that the letters can still be read on a phone
STYLE = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
SUFFIXES = (".svg", ".pdf", ".png")


@dataclass(frozen=True, slots=True)
class Plot:
    """
    A drawing with its title and what it shows.

    Attributes:
        svg: A whole element that can stand in HTML.
    """

    title: str
    caption: str
    svg: str
    _draw: Callable[[Any], None] = field(compare=False, repr=False)
    _size_in: tuple[float, float] = SIZE_IN

    def save(self, path: Path | str) -> Path:
        """
        Draw into a file, whole or not at all; the same drawing gives the same bytes.

        Raises:
            ParsError: the name ends in none of .svg, .pdf and .png, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ParsError(f"{path}: a plot's name ends in {', '.join(SUFFIXES)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(_drawn(self.title, self._draw, self._size_in, path.suffix[1:]))
        return path

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        return self.svg


def plot(
    title: str,
    caption: str,
    draw: Callable[[Any], None],
    size_in: tuple[float, float] = SIZE_IN,
) -> Plot:
    """
    A plot of what `draw` does to matplotlib's axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    svg = _drawn(title, draw, size_in, "svg").decode()
    label = f'<svg role="img" aria-label="{title}" '
    svg = svg[svg.index("<svg") :].replace("<svg ", label, 1)
    return Plot(title, caption, svg, draw, size_in)


def need_matplotlib(what: str) -> None:
    """
    Raises:
        MissingExtra: matplotlib is not installed; it names `what` asks for it.
    """
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise MissingExtra(what, "plot") from error


def _drawn(
    title: str, draw: Callable[[Any], None], size_in: tuple[float, float], kind: str
) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # A salt of its own: ids must differ between the pictures of one page, not between two runs.
    with rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size_in, layout="constrained")
        draw(figure.subplots())
        out = io.BytesIO()
        dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(out, format=kind, transparent=kind != "png", metadata=dates.get(kind))
    return out.getvalue()
