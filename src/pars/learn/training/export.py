"""Torch to a portable ranker folder: an ONNX graph, the tokenizer, and what scoring must know."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pars import __version__
from pars.errors import ParsError, RankerError
from pars.files import utf8
from pars.learn.data.records import length_unit_of, read_data
from pars.learn.training.calibration import calibrate, lengths_if_whole
from pars.learn.training.encoder_graph import encoder_graph, int8_graph
from pars.learn.training.lite_graph import lite_graph
from pars.learn.training.models import EncoderModel, LiteModel, PromptModel
from pars.ranking.intervals import bootstrap
from pars.ranking.order_metrics import kendall_tau_b, pair_sums
from pars.ranking.ranker import INT8_FILE, MODEL_FILE, TOKENIZER_FILE, Ranker
from pars.ranking.ranker_info import INFO_FILE, RankerInfo
from pars.request.conversation import with_note

LARGEST_DISAGREEMENT = 1e-4  # between torch and ONNX Runtime, in score
LEAST_AGREEMENT = 0.99  # Kendall tau-b between 8-bit and float32 scores of held-out prompts
FEWEST_TO_AGREE_ON, MOST_TO_AGREE_ON = 30, 1000
PROBES = ["What is two and two?", "Write a long story about the sea.\n\nUse 3 chapters. " * 8, ""]
NOTED_PROBES = [with_note("And the sky?", [1_200, 300])]


def export_ranker(
    model: PromptModel,
    folder: Path,
    *,
    model_name: str,
    length_unit: str = "tokens",
    tau_b: dict[str, float | None] | None = None,
    trained_on: dict[str, Any] | None = None,
    calibration: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    held_out: Sequence[str] = (),
    reads_notes: bool = False,
) -> RankerInfo:
    """
    Write `folder` anew: it appears whole, after the graph's scores were compared with torch's.

    Args:
        calibration: held-out scores and answer lengths [num_prompts], in `length_unit`.
        held_out: held-out prompts. An encoder gets an 8-bit graph too where that orders them as
            the graph in float32 does; without prompts to try it on, it gets none.
        reads_notes: whether it was trained on prompts with notes of what came before them.

    Raises:
        RankerError: the graph's scores differ from torch's by more than 1e-4.
        ParsError: the folder cannot be written.
    """
    scores, lengths = calibration or (np.empty(0), np.empty(0))
    fitted = calibrate(scores, lengths, length_unit) if len(scores) else None
    info = RankerInfo(
        kind=model.kind,
        model_name=model_name,
        max_length=model.max_length,
        reads_notes=reads_notes,
        pars_version=__version__,
        tau_b=tau_b,
        trained_on=trained_on or {},
        length_unit=length_unit,
        score_quantiles=fitted.score_quantiles if fitted else None,
        expected_tokens=fitted.expected_tokens if fitted else None,
        token_quantiles=fitted.token_quantiles if fitted else None,
    )
    with _replaced_whole(folder) as new:
        model.network.eval().to("cpu")
        (new / MODEL_FILE).write_bytes(_graph(model))
        (new / TOKENIZER_FILE).write_bytes(utf8(model.tokenizer_json()))
        info.write(new)
        _compare(model, new, PROBES + NOTED_PROBES * reads_notes)
        if isinstance(model, EncoderModel) and len(held_out) >= FEWEST_TO_AGREE_ON:
            info = _with_int8(new, info, list(held_out)[:MOST_TO_AGREE_ON])
    return info


def _with_int8(folder: Path, info: RankerInfo, prompts: list[str]) -> RankerInfo:
    """Add the 8-bit graph to a ranker folder, unless it orders `prompts` otherwise."""
    scores = Ranker.load(folder, precision="float32").score(prompts)
    graph = folder / INT8_FILE
    graph.write_bytes(int8_graph((folder / MODEL_FILE).read_bytes()))
    agreement = kendall_tau_b(Ranker.load(folder, precision="int8").score(prompts), scores)
    if agreement < LEAST_AGREEMENT:
        graph.unlink()
    info = replace(info, int8_tau_b=round(agreement, 4))
    info.write(folder)
    return info


def export_checkpoint(
    checkpoint: Path,
    model_name: str,
    folder: Path,
    *,
    max_length: int = 128,
    val_data: Path | None = None,
    reads_notes: bool = False,
    pooling: str = "auto",
    objective: str = "pairwise-margin",
) -> RankerInfo:
    """
    Write a ranker folder from a state dict of an encoder, PARS's or ours.

    Args:
        val_data: held-out prompts with answer lengths, for tau-b and the calibration.
        reads_notes: whether it was trained with notes of conversations, which PARS's were not.
        pooling, objective: what it was trained with.

    Raises:
        RankerError: the encoder or the checkpoint cannot be loaded.
        DataError: `val_data` is not what `pars prepare` writes.
    """
    from pars.learn.training.checkpoint import CheckpointRanker

    check_replaceable(folder)
    ranker = CheckpointRanker.load(
        checkpoint,
        model_name,
        max_length,
        reads_notes=reads_notes,
        pooling=pooling,
        objective=objective,
    )
    tau_b = calibration = None
    prompts: list[str] = []
    if val_data:
        rows = read_data(val_data)
        prompts = [row.prompt for row in rows]
        scores = ranker.score(prompts).astype(np.float64)
        lengths = np.array([row.answer_length for row in rows])
        is_censored = [row.is_censored for row in rows]
        calibration = scores, lengths_if_whole(scores, lengths, is_censored)
        models = [row.model for row in rows]
        sums = pair_sums(scores, lengths, strata=models, is_censored=is_censored)
        tau_b = bootstrap(sums, "tau_b", clusters=[row.message for row in rows]).as_json()
    return export_ranker(
        ranker.model,
        folder,
        model_name=model_name,
        length_unit=length_unit_of(val_data) if val_data else "tokens",
        tau_b=tau_b,
        trained_on={"checkpoint": str(checkpoint)},
        calibration=calibration,
        held_out=prompts,
        reads_notes=reads_notes,
    )


def check_replaceable(folder: Path) -> None:
    """
    Whether writing a ranker there would cost nothing but a ranker.

    Raises:
        ParsError: `folder` is a file, or holds something else.
    """
    if folder.is_file():
        raise ParsError(f"{folder}: is a file, not a folder for a ranker")
    ours = {MODEL_FILE, INT8_FILE, TOKENIZER_FILE, INFO_FILE}
    if folder.is_dir() and (others := sorted({file.name for file in folder.iterdir()} - ours)):
        raise ParsError(
            f"{folder}: holds more than a ranker ({others[0]}): name a new folder, or a ranker's"
        )


@contextmanager
def _replaced_whole(folder: Path) -> Iterator[Path]:
    """A new folder that takes the name of `folder` when the block ends well."""
    check_replaceable(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise ParsError(f"{folder}: cannot be written: {error.strerror}") from error
    old = new.with_name(new.name + ".old")
    try:
        yield new
        new.chmod(0o755)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    except OSError as error:
        raise ParsError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _graph(model: PromptModel) -> bytes:
    if isinstance(model, LiteModel):
        return lite_graph(model)
    assert isinstance(model, EncoderModel)
    return encoder_graph(model, PROBES[:2])


def _compare(model: PromptModel, folder: Path, probes: list[str]) -> None:
    encoded = model.encode(probes)
    with torch.no_grad():
        ours = model.network(**model.collate(encoded, torch.device("cpu"))).numpy()
    theirs = Ranker.load(folder).score(probes)
    disagreement = float(np.abs(ours - theirs).max())
    if not disagreement <= LARGEST_DISAGREEMENT:
        raise RankerError(
            f"{folder}: ONNX and torch scores differ by {disagreement:.1e}; not written"
        )
