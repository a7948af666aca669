"""The options that say by whose scores policies order, for simulate and bench."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pars.errors import ParsError

if TYPE_CHECKING:
    from pars.prove.workload.scores import Source

_F = TypeVar("_F", bound=Callable[..., Any])

LEARNING = "online"  # instead of a folder: the ranker that learns

_SOURCE_OPTIONS = (
    click.option(
        "--ranker",
        "rankers",
        multiple=True,
        metavar="[NAME=]RANKER",
        help="Folder, or module:object with score(list[str]), of the policy ranker, or of"
        " ranker:NAME; repeats. online: the ranker that learns as answers end, which is the"
        " policy online.  [default: the bundled one]",
    ),
    click.option(
        "--scores",
        multiple=True,
        metavar="NAME=FILE",
        help="Scores of any other system, for a policy NAME: JSON lines or CSV with request_id or"
        " prompt, and score or expected_tokens; or a folder of `pars score`; repeats.",
    ),
)


def source_options(command: _F) -> _F:
    """The options that say by whose scores policies order."""
    for add in reversed(_SOURCE_OPTIONS):
        command = add(command)
    return command


def told_apart(
    policies: Sequence[str], rankers: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """
    Policies and rankers with `--ranker online` taken away: its policies are called online.
    """
    learning = [it.removesuffix(LEARNING) for it in rankers if it.rpartition("=")[2] == LEARNING]
    names = {f"ranker:{it[:-1]}" if it else "ranker" for it in learning}
    spelled = (it.partition("@") for it in policies)
    renamed = [
        (LEARNING if name.strip() in names else name) + at + bound for name, at, bound in spelled
    ]
    kept = (it for it in rankers if it.rpartition("=")[2] != LEARNING)
    return tuple(renamed), tuple(kept)


def sources_of(rankers: Sequence[str], scores: Sequence[str]) -> "dict[str, Source]":
    """
    What the options name, by what a policy orders by: "ranker", "ranker:NAME", or NAME.

    A folder whose own name has a = in it is one if it is there.
    """
    from pars.prove.workload.score_files import FileSource
    from pars.prove.workload.scores import RankerSource, check_scores_name

    sources: dict[str, Source] = {}
    for text in rankers:
        name, equals, ranker = text.partition("=")
        is_named = equals and not Path(text).exists()
        known, ranker = (f"ranker:{name}", ranker) if is_named else ("ranker", text)
        if known in sources:
            raise ParsError("--ranker: two for one name; name them apart: --ranker NAME=RANKER")
        sources[known] = RankerSource(ranker)
    for text in scores:
        name, equals, path = text.partition("=")
        if not (equals and path):
            raise ParsError(f"--scores {text}: want NAME=FILE")
        check_scores_name(name)
        if name in sources:
            raise ParsError(f"--scores {text}: two files for one name")
        sources[name] = FileSource(Path(path))
    return sources
