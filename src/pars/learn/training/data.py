"""The prompts, batches and validation pairs of a training, from files that `pars prepare` wrote."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pars.errors import DataError
from pars.learn.data.pair_files import PairFile, read_pairs
from pars.learn.data.records import Row, read_data
from pars.learn.training.batches import BatchSource, LengthBatches, PairBatches
from pars.learn.training.config import TrainConfig

VAL_PAIRS_PER_PROMPT = 20


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """Held-out prompts, each once; pairs (longer, shorter) index them."""

    prompts: list[str]
    longer: NDArray[np.int64]
    shorter: NDArray[np.int64]
    of_rows: NDArray[np.int64]  # index into prompts of each row with a length, for tau-b
    lengths: NDArray[np.float64]
    is_censored: NDArray[np.bool_]  # whether the answer was cut short at its length
    models: list[str | None]  # only answers of one model are compared


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """The training prompts, their batches, and the validation set."""

    prompts: list[str]
    batches: BatchSource
    validation: Validation
    lengths: NDArray[np.float64]  # [num_prompts], of the answers; empty of pair files


def read_training_data(config: TrainConfig) -> TrainingData:
    """The data of the files that `config` names."""
    if config.train_file and config.val_file:
        pairs, val_pairs = read_pairs(config.train_file), read_pairs(config.val_file)
        beside = config.val_file.parent / "val_data.json"
        val_data = config.val_data or (beside if beside.is_file() else None)
        val_rows = read_data(val_data, names=config.names) if val_data else []
        batches: BatchSource = PairBatches(
            pairs.index_a,
            pairs.index_b,
            pairs.labels,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        return TrainingData(pairs.prompts, batches, _validation(val_rows, val_pairs), np.empty(0))
    assert config.train_data is not None  # TrainConfig made sure
    assert config.val_data is not None
    rows, val_rows = (
        read_data(path, names=config.names) for path in (config.train_data, config.val_data)
    )
    return training_data(rows, val_rows, config)


def training_data(rows: list[Row], val_rows: list[Row], config: TrainConfig) -> TrainingData:
    """
    The data of prompts with answer lengths; `config` names where they are from, for errors.

    Raises:
        DataError: there is no pair to learn from, or none to validate with.
    """
    lengths = [row.answer_length for row in rows]
    if min(lengths) == max(lengths):
        raise DataError.at(
            str(config.train_data), "all answers have one length, so there is no order to learn"
        )
    if max(lengths) - min(lengths) < config.threshold * max(lengths):
        raise DataError.at(
            str(config.train_data),
            f"no two answers differ by the share --threshold {config.threshold}: lower it",
        )
    batches = LengthBatches(
        lengths,
        threshold=config.threshold,
        batch_size=config.batch_size,
        seed=config.seed,
        label_temperature=config.label_temperature,
        is_censored=[row.is_censored for row in rows],
    )
    validation = _validation(val_rows, _draw_pairs(val_rows, config))
    return TrainingData([row.prompt for row in rows], batches, validation, np.array(lengths))


def _draw_pairs(rows: list[Row], config: TrainConfig) -> PairFile:
    """Validation pairs out of rows: about 20 a prompt, those that pass the threshold."""
    lengths = np.array([row.answer_length for row in rows])
    rng = np.random.default_rng(config.seed)
    a, b = rng.integers(len(rows), size=(2, VAL_PAIRS_PER_PROMPT * len(rows)))
    is_censored = np.array([row.is_censored for row in rows])
    gap = np.abs(lengths[a] - lengths[b])
    passes = (gap > 0) & (gap >= config.threshold * np.maximum(lengths[a], lengths[b]))
    passes &= ~is_censored[np.where(lengths[a] < lengths[b], a, b)]  # its end is not known
    if not passes.any():
        raise DataError.at(
            str(config.val_data), "no two answers differ in length, so nothing can be validated"
        )
    a, b = a[passes], b[passes]
    return PairFile([row.prompt for row in rows], a, b, (lengths[a] > lengths[b]).astype(np.int8))


def _validation(rows: list[Row], pairs: PairFile) -> Validation:
    positions: dict[str, int] = {}
    of_rows = [positions.setdefault(row.prompt, len(positions)) for row in rows]
    of_pairs = np.array([positions.setdefault(p, len(positions)) for p in pairs.prompts])
    a_is_longer = pairs.labels == 1
    return Validation(
        prompts=list(positions),
        longer=of_pairs[np.where(a_is_longer, pairs.index_a, pairs.index_b)],
        shorter=of_pairs[np.where(a_is_longer, pairs.index_b, pairs.index_a)],
        of_rows=np.array(of_rows, dtype=np.int64),
        lengths=np.array([row.answer_length for row in rows]),
        is_censored=np.array([row.is_censored for row in rows], dtype=bool),
        models=[row.model for row in rows],
    )
