"""A lane: one trial of a stack, with its run directory open."""

import contextlib
import dataclasses
import math
from typing import Any

from minigpt_jax import generate
from minigpt_jax.data.store import Prepared
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_dir import drop_records_after, lock, write_whole
from minigpt_jax.storage.trackers import Recorder
from minigpt_jax.sweep.plan import Trial
from minigpt_jax.train import optim
from minigpt_jax.train.metrics import Sums
from minigpt_jax.train.state import Progress, TrainState
from minigpt_jax.trial.run import describe, sample


class _NoBar:
    """Stands in for a run's own bar, of which a stack would have too many."""

    def advance(self, step: int) -> None: ...
    def line(self, step: int, loss: float, tokens_a_second: float) -> None: ...


class Lane:
    """A trial in training: what it has counted, and its run directory, which is like any run's.

    Raises UserError if another process has the run directory.
    """

    def __init__(self, trial: Trial, prepared: Prepared, fingerprints: dict[str, str], total_steps: int) -> None:
        self.trial, self.files, self.prepared = trial, trial.files, prepared
        self.experiment, self.total_steps = trial.experiment, total_steps
        self.progress = Progress()
        self.valid: Sums | None = None
        self.ended = False
        self._seconds_logged = 0.0
        self._recorder: Recorder | None = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock(self.files))
            describe(self.files, self.experiment, prepared, fingerprints)
            self.checkpoints = Checkpoints(self.files.checkpoints, self.experiment.train.keep)
            stack.callback(self.checkpoints.close)
            self._open = stack.pop_all()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step that there is a checkpoint of."""
        state, self.progress = self.checkpoints.restore(like, step)
        return state

    def start(self) -> None:
        """Opens the metrics, from the step that training goes on from."""
        self._seconds_logged = self.progress.seconds
        self.checkpoints.drop_after(self.progress.step)
        drop_records_after(self.files, self.progress.step)
        bar: Any = _NoBar()
        hyper = optim.hyperparameters(self.experiment.optimizer, self.total_steps)
        recorder = Recorder(self.files, self.experiment, hyper, bar, self.progress, self.total_steps)
        self._recorder = self._open.enter_context(recorder)

    def count(self, sums: Sums, seconds: float) -> None:
        """Takes note of one step."""
        progress = self.progress
        progress.step += 1
        progress.seconds += seconds
        progress.tokens += sums.tokens
        progress.since_log = progress.since_log.plus(sums)

    def log(self, learning_rate: float, grad_norm: float) -> Sums:
        """Writes a training line, the mean since the line before; returns what it is the mean of."""
        assert self._recorder is not None
        progress = self.progress
        sums, progress.since_log = progress.since_log, Sums()
        rate = sums.tokens / max(progress.seconds - self._seconds_logged, 1e-9)
        self._seconds_logged = progress.seconds
        extra = {"learning_rate": learning_rate, "grad_norm": grad_norm, "tokens_per_second": rate}
        self._recorder.write(progress, "train", sums, extra)
        return sums

    def evaluated(self, sums: Sums) -> None:
        """Writes a validation line."""
        assert self._recorder is not None
        self.valid = sums
        self._recorder.write(self.progress, "valid", sums)

    def save(self, state: TrainState, evaluated: bool) -> None:
        """Starts a checkpoint of this step, unless there is one."""
        if self.checkpoints.last_saved != self.progress.step:
            loss = self.valid.loss if evaluated and self.valid is not None else None
            self.checkpoints.save(state, self.progress, loss if loss is None or math.isfinite(loss) else None)

    def sample(self, weights: Any) -> None:
        """Writes the texts that a run samples at its evaluations."""
        # Dropout has no part in sampling, and without it all trials of a shape share the compiled programs.
        plain = dataclasses.replace(self.experiment, model=dataclasses.replace(self.experiment.model, dropout=0.0))
        texts = sample(plain, generate.LanguageModel(plain, self.prepared.tokenizer, weights))
        write_whole(self.files.samples / f"step-{self.progress.step:08}.txt", "\n\n".join(texts) + "\n")

    def close(self) -> None:
        """Waits for what was saved, and frees the run directory."""
        self.ended = True
        self._open.close()
