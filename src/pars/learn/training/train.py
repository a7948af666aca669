"""
Train a ranker: pairs of prompts in, checkpoints and a portable ranker folder out.

    output_dir/
    ├── best_model.pt, last_model.pt   plain state dicts, PARS's names
    ├── training_state.pt              what --resume-from continues from
    ├── metrics.json, learning_curve.png
    └── ranker/                        what everything else in pars takes

Under torchrun or `accelerate launch` every process encodes a share of each batch's prompts, the
scores are gathered, and each computes the loss of the whole batch: the gradients add up to those of
one process with the same batch size.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pars.errors import ParsError
from pars.files import write_json
from pars.learn.data.records import length_unit_of
from pars.learn.training.batches import Batch
from pars.learn.training.calibration import lengths_if_whole
from pars.learn.training.config import REPORTED, TrainConfig, plain, with_epochs
from pars.learn.training.data import TrainingData, read_training_data
from pars.learn.training.export import check_replaceable, export_ranker
from pars.learn.training.models import LiteModel, PromptModel, load_weights, new_model
from pars.learn.training.objectives import Objective
from pars.learn.training.processes import Processes, joined_processes, low_precision
from pars.learn.training.report import draw_learning_curve, epoch_line, progress_bar, say
from pars.learn.training.state import (
    BEST_FILE,
    LAST_FILE,
    Progress,
    Saved,
    Stopped,
    stop_requests,
)
from pars.ranking.intervals import bootstrap
from pars.ranking.order_metrics import PairSums, pair_sums
from pars.request.conversation import as_read, message_of, teaches_notes

# A batch is encoded in passes of prompts of like length; a CPU pays for padding, so in small ones.
PROMPTS_PER_PASS = {"cpu": 32, "cuda": 256}


def train(config: TrainConfig) -> dict[str, Any]:
    """
    Train, write everything into `config.output_dir`, and return what metrics.json holds.

    Raises:
        ParsError: an option or a file is wrong; `Stopped` after Ctrl-C, with the state saved.
    """
    folder = config.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParsError(f"--output-dir {folder}: cannot be made: {error.strerror}") from error
    check_replaceable(folder / "ranker")
    with joined_processes() as processes:
        torch.manual_seed(config.seed)
        data = read_training_data(config)
        config = with_epochs(config, len(data.batches) * config.batch_size)
        return Training(config, data, new_model(config, data.prompts), processes).run()


class Training:
    """One run of `train`: the model, its data, and where it stands."""

    def __init__(
        self, config: TrainConfig, data: TrainingData, model: PromptModel, processes: Processes
    ) -> None:
        self.config, self.processes, self.model = config, processes, model
        self.reads_notes = teaches_notes(data.prompts)
        self.prompts, self.batches = as_read(data.prompts, self.reads_notes), data.batches
        self.validation, self.objective = data.validation, Objective.of(config, data.lengths)
        if processes.count > 1:
            torch.manual_seed(config.seed + processes.rank)  # or all would drop the same
        self.network = self.model.network.to(processes.device)
        self.encoded = self.model.encode(self.prompts)
        # Fused: one pass over the weights; of a small batch's step, the plain one takes half.
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.low_precision = low_precision(config, processes.device)
        needs_scaling = self.low_precision == torch.float16  # or small gradients become zero
        self.scaler = torch.amp.GradScaler("cuda", enabled=needs_scaling)
        self.num_steps = config.num_epochs * len(self.batches)
        self.saved = Saved(config, self.model, self.optimizer, self.scaler, processes.device)
        self.progress = self.saved.resume(config.resume_from) if config.resume_from else Progress()

    def run(self) -> dict[str, Any]:
        """Train, and write what `train` leaves."""
        self.fit()
        return self._finish() if self.processes.is_first else {}

    def fit(self) -> None:
        """Train to the end, or to Ctrl-C; the model has the best epoch's weights then."""
        with stop_requests() as stop:
            while self.progress.epoch < self.config.num_epochs:
                self._epoch(stop)
        if self.processes.is_first:
            load_weights(self.network, self.config.output_dir / BEST_FILE)

    def _epoch(self, stop: Callable[[], bool]) -> None:
        progress, started = self.progress, time.perf_counter()
        title = f"Epoch {progress.epoch + 1}/{self.config.num_epochs}"
        bar = progress_bar(len(self.batches), progress.step, title, self.processes.is_first)
        self.network.train()
        for step, batch in enumerate(self.batches.epoch(progress.epoch)):
            if step < progress.step:
                continue
            loss = self._step(batch)
            progress.count(loss, len(batch.prompts))
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if self.processes.any(stop()) and progress.step < len(self.batches):
                bar.close()
                progress.train_s += time.perf_counter() - started
                self._stop()
        bar.close()
        progress.train_s += time.perf_counter() - started
        self._end_epoch()

    def _stop(self) -> None:
        if self.processes.is_first:
            self.saved.save_weights(LAST_FILE)
            self.saved.save_state(self.progress)
        folder = self.config.output_dir
        raise Stopped(f"stopped; continue with the same options and --resume-from {folder}")

    def _step(self, batch: Batch) -> float:
        """One optimizer step; the loss of the whole batch (0 where no pair of it passes)."""
        if self.objective.is_pairwise and len(batch.longer) == 0:
            return 0.0
        share = batch.prompts[self.processes.share(len(batch.prompts))]
        self.optimizer.zero_grad(set_to_none=True)
        device_type, dtype = self.processes.device.type, self.low_precision
        with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
            outputs = self.processes.gather(
                self._encode(self.encoded, share), len(batch.prompts)
            ).float()
            loss = self.objective.loss(outputs, self.objective.targets(batch, outputs.device))
        scaled = self.scaler.scale(loss)
        if scaled.requires_grad:  # a process may have no prompt of a small batch
            scaled.backward()
        self.processes.add_gradients(self.network)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._warmup_and_decay()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(loss.item())

    def _warmup_and_decay(self) -> float:
        """The share of the learning rate at this step: linear up, then linear down to 0."""
        done = self.progress.epoch * len(self.batches) + self.progress.step
        warmup = int(self.config.warmup_ratio * self.num_steps)
        if done < warmup:
            return done / warmup
        return (self.num_steps - done) / max(1, self.num_steps - warmup)

    def _encode(self, encoded: Sequence[Any], rows: NDArray[np.int64]) -> Tensor:
        """Outputs [num_rows, any] with gradients; prompts of like length share a forward pass."""
        if len(rows) == 0:
            return torch.zeros(0, self.objective.readout.num_outputs, device=self.processes.device)
        lengths = np.array([self.model.num_tokens(encoded[row]) for row in rows])
        order = np.argsort(lengths, kind="stable")
        device = self.processes.device
        per_pass = PROMPTS_PER_PASS[device.type]
        outputs = [
            self.network.outputs(**self.model.collate([encoded[row] for row in rows[part]], device))
            for part in np.split(order, range(per_pass, len(rows), per_pass))
        ]
        return torch.cat(outputs)[torch.from_numpy(np.argsort(order, kind="stable"))]

    def score(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        """Scores [num_prompts] without gradients, in evaluation mode, as the exported ranker's."""
        scores: NDArray[np.float64] = self.objective.readout.score(self.outputs(prompts)).numpy()
        return scores

    def outputs(self, prompts: Sequence[str]) -> Tensor:
        """The network's outputs [num_prompts, num_outputs], in double precision on the CPU."""
        encoded = self.model.encode(as_read(prompts, self.reads_notes))
        self.network.eval()
        with torch.no_grad():  # in full precision: ties of half precision would count as wrong
            parts = [
                self._encode(encoded, np.arange(start, min(start + 4096, len(encoded))))
                for start in range(0, len(encoded), 4096)
            ]
        return torch.cat(parts).double().cpu()

    def _end_epoch(self) -> None:
        if isinstance(self.model, LiteModel):
            self.model.network.round_tables()
        entry = self._validate()
        progress = self.progress
        is_best = entry["val_accuracy"] > progress.best_val_accuracy
        progress.next_epoch(entry)
        if not self.processes.is_first:
            return
        say(epoch_line(entry))
        if is_best:
            self.saved.save_weights(BEST_FILE)
        self.saved.save_weights(LAST_FILE)
        self.saved.save_state(progress)

    def _validate(self) -> dict[str, Any]:
        validation, progress = self.validation, self.progress
        outputs = self.outputs(validation.prompts)
        scores: NDArray[np.float64] = self.objective.readout.score(outputs).numpy()
        if not np.isfinite(scores).all():
            raise ParsError("the training diverged (a score is not finite): lower --learning-rate")
        longer, shorter = scores[validation.longer], scores[validation.shorter]
        entry = {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss_sum / max(progress.step, 1),
            "val_loss": self.objective.validation_loss(outputs, validation),
            "val_accuracy": float(((longer > shorter) + (longer == shorter) / 2).mean()),
            "tau_b": None,
            "num_encodings": progress.num_encodings,
            "train_s": round(progress.train_s, 2),
        }
        if len(validation.lengths):
            row_scores = scores[validation.of_rows]
            tau_b = self._sums(row_scores).tau_b()
            entry["tau_b"] = None if np.isnan(tau_b) else round(tau_b, 4)
        return entry

    def _finish(self) -> dict[str, Any]:
        """The metrics, the picture and the ranker folder."""
        config, progress = self.config, self.progress
        row_scores = self.score(self.validation.prompts)[self.validation.of_rows]
        metrics = {
            **{name: plain(getattr(config, name)) for name in REPORTED},
            "best_val_accuracy": progress.best_val_accuracy,
            "history": progress.history,
            "tau_b": self._interval(row_scores),
            "seconds": round(progress.train_s, 2),
            "prompts_per_second": round(progress.num_encodings / max(progress.train_s, 1e-9), 1),
            "num_encodings": progress.num_encodings,
        }
        write_json(config.output_dir / "metrics.json", metrics)
        self._export(metrics, row_scores)
        draw_learning_curve(progress.history, config.output_dir / "learning_curve.png")
        return metrics

    def _interval(self, scores: NDArray[np.float64]) -> dict[str, float | None] | None:
        if not len(scores):
            return None
        prompts = self.validation.prompts
        clusters = [message_of(prompts[index]) for index in self.validation.of_rows]
        return bootstrap(self._sums(scores), "tau_b", clusters=clusters).as_json()

    def _lengths_if_whole(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return lengths_if_whole(scores, self.validation.lengths, self.validation.is_censored)

    def _sums(self, scores: NDArray[np.float64]) -> PairSums:
        validation = self.validation
        return pair_sums(
            scores,
            validation.lengths,
            strata=validation.models,
            is_censored=validation.is_censored,
        )

    def _export(self, metrics: dict[str, Any], row_scores: NDArray[np.float64]) -> None:
        data = self.config.train_file or self.config.train_data
        assert data  # TrainConfig made sure
        export_ranker(
            self.model,
            self.config.output_dir / "ranker",
            model_name=self.config.model_name,
            length_unit=length_unit_of(data, self.config.names),
            tau_b=metrics["tau_b"],
            trained_on={
                "train": str(data),
                "num_prompts": len(self.prompts),
                "objective": self.config.objective,
                "seed": self.config.seed,
                "num_epochs": self.config.num_epochs,
            },
            calibration=(row_scores, self._lengths_if_whole(row_scores)),
            held_out=self.validation.prompts,
            reads_notes=self.reads_notes,
        )
