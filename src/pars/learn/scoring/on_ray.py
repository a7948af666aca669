"""
The same parts, read and scored by a Ray cluster, with Ray Data. Needs the `ray` extra.

Every node needs pars, the ranker and the files at the same paths; the folder of scores is only
this process's.
"""

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pars.errors import MissingExtra, ParsError, one_line
from pars.learn.data.tables import first_line
from pars.learn.scoring.folder import ScoredPart
from pars.learn.scoring.parts import Log, Reading, parts_of
from pars.learn.scoring.scorer import PartScorer

# Halves and quarters, since where scoring got every CPU, reading would wait for ever. And not the
# same, since Ray then makes one step of both, and a file would be one actor's.
CPUS_TO_READ, CPUS_TO_SCORE = 0.25, 0.5
BLOCK_BYTES = 1 << 20  # less than a part, so that each part is a block and goes to its own actor

# No reports to its makers, and no pages of a plan and of a trace: errors come as exceptions.
_SILENCE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "CRITICAL"}

Row = dict[str, Any]


def scored_on_ray(
    address: str, ranker: str, logs: Sequence[Log], how: Reading, there: frozenset[str]
) -> Iterator[ScoredPart]:
    """
    Every part of the logs, as it is done; those that are `there` with no content.

    Args:
        address: Of the cluster; "auto" finds a running one, "local" starts one here.

    Raises:
        ParsError: the cluster cannot be reached, or a part fails.
    """
    if not logs:
        return
    for name, value in _SILENCE.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise MissingExtra("pars score --ray", "ray") from error
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # whatever Ray raises, the address is what we were told
        raise ParsError(f"--ray {address}: cannot be reached: {one_line(error)}") from error
    try:
        yield from map(_unpacked, _dataset(ranker, logs, how, there).iter_rows())
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        told = one_line(first_line(cause))
        raise ParsError(
            told if isinstance(cause, ParsError) else f"--ray {address}: {told}"
        ) from error
    finally:
        ray.shutdown()


def _dataset(ranker: str, logs: Sequence[Log], how: Reading, there: frozenset[str]) -> Any:
    """Rows of one column, a `ScoredPart` each, as Ray passes bytes on."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    resources: dict[str, float] = ray.cluster_resources()
    num_actors = max(1, int(resources.get("CPU", 1)))
    files = ray.data.from_items([_packed(it) for it in logs], override_num_blocks=len(logs))
    read = files.flat_map(partial(_read, how=how, there=there), num_cpus=CPUS_TO_READ)
    return read.map(
        _actor(ranker),
        num_cpus=CPUS_TO_SCORE,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_actors),
    )


def _read(row: Row, *, how: Reading, there: frozenset[str]) -> Iterator[Row]:
    """A log's parts."""
    for part in parts_of(_unpacked(row), how):
        yield _packed(ScoredPart.of(part) if part.name in there else part)


def _actor(ranker: str) -> type:
    """
    What scores the parts that it is handed, with a ranker of its own.

    A class for each ranker: arguments of an actor would lie in Ray's store, which warns of them.
    """

    class Actor:
        def __init__(self) -> None:
            self._score = PartScorer(ranker)

        def __call__(self, row: Row) -> Row:
            part = _unpacked(row)
            return row if isinstance(part, ScoredPart) else _packed(self._score(part))

    return Actor


def _packed(value: Any) -> Row:
    """Arrow's own text cannot hold half a surrogate pair, which prompts may."""
    return {"pickle": pickle.dumps(value)}


def _unpacked(row: Row) -> Any:
    return pickle.loads(row["pickle"])
