"""Tables of text for the terminal."""

from collections.abc import Sequence


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text, each as wide as its widest cell; one line a row."""
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *body)
    ]
    return [lines[0], "  ".join("─" * width for width in widths), *lines[1:]]
