"""Where a training stands: kept on disk, stopped by Ctrl-C, continued to the same weights."""

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from pars.errors import INTERRUPTED, ParsError
from pars.files import written_whole
from pars.learn.training.config import TrainConfig, check_same_training, fingerprint
from pars.learn.training.models import LiteModel, PromptModel, load_weights
from pars.ranking.ranker import TOKENIZER_FILE

STATE_FILE, BEST_FILE, LAST_FILE = "training_state.pt", "best_model.pt", "last_model.pt"


class Stopped(ParsError):
    """Ctrl-C or SIGTERM ended the training; its state is on disk."""

    exit_code = INTERRUPTED


@dataclass(slots=True)
class Progress:
    """Where a training stands; saved with its state."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_encodings: int = 0
    train_s: float = 0.0
    best_val_accuracy: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def count(self, loss: float, num_prompts: int) -> None:
        """One more step done."""
        self.step += 1
        self.loss_sum += loss
        self.num_encodings += num_prompts

    def next_epoch(self, entry: dict[str, Any]) -> None:
        """The epoch is over and validated."""
        self.history.append(entry)
        self.best_val_accuracy = max(self.best_val_accuracy, entry["val_accuracy"])
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0


@dataclass(frozen=True, slots=True)
class Saved:
    """What a training needs to go on: its model, its optimizer, and where it stands."""

    config: TrainConfig
    model: PromptModel
    optimizer: torch.optim.Optimizer
    scaler: Any
    device: torch.device

    def save_weights(self, name: str) -> None:
        """The network as a plain state dict."""
        save(self.config.output_dir / name, self.model.network.state_dict())

    def save_state(self, progress: Progress) -> None:
        """All that `resume` restores."""
        on_cuda = self.device.type == "cuda"
        state = {
            "config": fingerprint(self.config),
            "model": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": json.dumps(asdict(progress)),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if on_cuda else None,
        }
        save(self.config.output_dir / STATE_FILE, state)

    def resume(self, source: Path) -> Progress:
        """
        Continue from an output folder, or start anew from the weights of a checkpoint.

        Raises:
            ParsError: there is nothing to continue, or it was another training.
        """
        if source.is_file() and source.name != STATE_FILE:
            self._check_words(source)
            load_weights(self.model.network, source)
            return Progress()
        path = source if source.is_file() else source / STATE_FILE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            check_same_training(state["config"], fingerprint(self.config), source)
            progress = self._restore(state)
        except ParsError:
            raise
        except Exception as error:  # missing, truncated, pickled code, another model
            raise ParsError(
                f"--resume-from {source}: no training state to continue: {path} is missing or "
                "damaged (a .pt with weights only starts a new training from them)"
            ) from error
        self._fetch_best(path.with_name(BEST_FILE))
        return progress

    def _restore(self, state: dict[str, Any]) -> Progress:
        self.model.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        return Progress(**json.loads(state["progress"]))

    def _fetch_best(self, best: Path) -> None:
        """The best epoch so far may lie in another folder than the one that is written now."""
        own = self.config.output_dir / BEST_FILE
        if best.is_file() and best.resolve() != own.resolve():
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(best, own)

    def _check_words(self, checkpoint: Path) -> None:
        """Lite's weights belong to the words that were learnt from one training set."""
        if not isinstance(self.model, LiteModel):
            return
        tokenizer = checkpoint.parent / "ranker" / TOKENIZER_FILE
        words = tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else ""
        if words != self.model.tokenizer_json():
            raise ParsError(
                f"--resume-from {checkpoint}: a lite checkpoint fits only the words it was trained "
                "on: give the same training data"
            )


def save(path: Path, value: Any) -> None:
    """torch.save, whole or not at all."""
    with written_whole(path) as file:
        torch.save(value, file)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came; a second Ctrl-C stops at once."""
    asked = False

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may set signal handlers
        return
    before = {signum: signal.signal(signum, ask) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
