"""What a run records: metrics.jsonl, TensorBoard, and the figures on the bar."""

import json
import math
import os
from typing import Any

from minigpt_jax import display
from minigpt_jax.config import Experiment
from minigpt_jax.parallel import processes
from minigpt_jax.storage.run_dir import RunDir
from minigpt_jax.train import optim
from minigpt_jax.train.metrics import Sums
from minigpt_jax.train.state import Progress
from minigpt_jax.train.step import StepMetrics


class Recorder:
    """Writes metrics.jsonl and TensorBoard, in the first process alone, and tells the bar."""

    def __init__(
        self,
        files: RunDir,
        experiment: Experiment,
        hyper: optim.Hyperparameters,
        bar: display.TrainingBar,
        progress: Progress,
        total_steps: int,
    ) -> None:
        self._experiment, self._hyper, self._bar, self._total = experiment, hyper, bar, total_steps
        self._file = files.metrics.open("a") if processes.is_first() else None
        self._board: Any = None
        if experiment.train.tensorboard and processes.is_first():
            import tensorboardX  # it imports PyTorch where that is installed

            self._board = tensorboardX.SummaryWriter(str(files.tensorboard), purge_step=progress.step + 1)
        self._seconds = progress.seconds

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def on_step(self, progress: Progress, metrics: StepMetrics) -> None:
        """A training line every `log_every` steps, the mean since the line before."""
        self._bar.advance(progress.step)
        if progress.step % self._experiment.train.log_every and progress.step != self._total:
            return
        sums, progress.since_log = progress.since_log, Sums()
        rate = sums.tokens / max(progress.seconds - self._seconds, 1e-9)
        self._seconds = progress.seconds
        optimizer = self._experiment.optimizer
        factor = optim.schedule(optimizer.schedule, self._hyper, progress.step - 1)
        learning_rate = self._hyper.learning_rate * factor
        extra = {"learning_rate": float(learning_rate), "grad_norm": metrics.grad_norm, "tokens_per_second": rate}
        self.write(progress, "train", sums, extra)
        self._bar.line(progress.step, sums.loss, rate)

    def sync(self) -> None:
        """Brings what was written to the disk: a checkpoint must not outlive the lines before it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def write(self, progress: Progress, split: str, sums: Sums, extra: dict[str, float] | None = None) -> None:
        figures = sums.summary() | (extra or {})
        line = {
            "step": progress.step,
            "split": split,
            **{name: value if math.isfinite(value) else None for name, value in figures.items()},
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
        }
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"{split}/{name}", value, progress.step)
