"""An open run directory, in which a trial trains."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from minigpt_jax import generate, samplers
from minigpt_jax.config import Experiment
from minigpt_jax.parallel import devices, processes
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.resume import check_same
from minigpt_jax.storage.run_dir import (
    RunDir,
    drop_records_after,
    has_checkpoint,
    lock,
    read_metrics,
    whole_file,
    write_atomic,
    write_description,
    write_tokenizer,
)
from minigpt_jax.storage.trackers import Trackers, open_trackers
from minigpt_jax.storage.versions import versions
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.state import Progress, TrainState
from minigpt_jax.trial.environment import Corpus
from minigpt_jax.trial.initial import ORIGIN


@runtime_checkable
class ProgressListener(Protocol):
    """Is notified of the progress of a trial, to display it."""

    def advanced(self, step: int) -> None:
        """Called when the metrics of all steps up to this one are known."""
        ...

    def logged(self, step: int, sums: LossSums, tokens_per_second: float) -> None:
        """Called after a training line, with the sums since the previous line."""
        ...

    def evaluated(self, step: int, sums: LossSums) -> None:
        """Called after a validation line."""
        ...


class Silent:
    """A ProgressListener that shows nothing."""

    def advanced(self, step: int) -> None: ...
    def logged(self, step: int, sums: LossSums, tokens_per_second: float) -> None: ...
    def evaluated(self, step: int, sums: LossSums) -> None: ...


class OpenRun:
    """The open run directory of a trial: its lock, progress, trackers and checkpoints.

    The calls come in this order: the constructor; `restore` if there is a checkpoint to resume from; `start`; any
    number of `log`, `evaluated`, `save` and `sample`; and `close`. If there are several processes, each of them makes
    all calls, and only the first one writes.

    Attributes:
        experiment: the experiment, with the settings that follow from the tokenizer.
        progress: the counts of steps, tokens and seconds, which `train.loop.fit` updates.
        losses: the validation loss of each evaluated step since the start of the run; inf if it was not finite.
        valid: the sums of the latest evaluation, or None before the first one in this process.
        ended: whether the trial is closed.
        planned_steps: the number of steps that the run was planned for until now, or None if it has no checkpoint.

    Raises:
        InUseError: another process has locked the run directory.
        UserError: the run directory belongs to another experiment, or the path cannot hold a run.
    """

    def __init__(
        self,
        experiment: Experiment,
        files: RunDir,
        corpus: Corpus,
        experiment_file: Path | None = None,
        origin: dict[str, Any] | None = None,
    ) -> None:
        self.experiment = experiment = corpus.settled(experiment)
        self.files, self.corpus = files, corpus
        self.total_steps = corpus.total_steps(experiment)
        self.progress = Progress()
        self.losses: dict[int, float] = {}
        self.valid: LossSums | None = None
        self.ended = False
        self.planned_steps: int | None = None
        self.listener: ProgressListener = Silent()
        self._trackers = Trackers()
        with contextlib.ExitStack() as stack:
            if processes.is_first():
                stack.enter_context(lock(files))
                self._describe(experiment_file, origin)
            self.checkpoints = Checkpoints(files.checkpoints, experiment.train.keep_checkpoints)
            stack.callback(self.checkpoints.close)
            self._open = stack.pop_all()

    def _describe(self, experiment_file: Path | None, origin: dict[str, Any] | None) -> None:
        """Writes the files of the run directory that do not depend on training."""
        files, prepared = self.files, self.corpus.prepared
        if has_checkpoint(files):
            self.planned_steps = self.corpus.total_steps(files.experiment())
        check_same(files, self.experiment, self.corpus.fingerprints)
        fingerprints = self.corpus.fingerprints
        write_description(files, self.experiment, fingerprints, versions(), experiment_file, **{ORIGIN: origin})
        write_tokenizer(files, prepared.tokenizer.save)
        for split in ("valid", "test"):
            with whole_file(files.rows(split)) as file:
                prepared.splits[split].save(file)

    def restore(self, like: TrainState, step: int) -> TrainState:
        """Restores the state and the progress of a step. Returns the state.

        Args:
            like: a state with the expected shapes and types.
        """
        state, self.progress = self.checkpoints.restore(like, step)
        return state

    def start(self, listener: ProgressListener | None = None) -> None:
        """Opens the trackers at the step where training starts or resumes, and removes the records of later steps."""
        self.listener = listener or Silent()
        step = self.progress.step

        def drop_later_records() -> list[tuple[int, float]]:
            self.checkpoints.drop_after(step)
            drop_records_after(self.files, step)
            lines = [line for line in read_metrics(self.files) if line.get("split") == "valid"]
            return [(line["step"], math.inf if line.get("loss") is None else line["loss"]) for line in lines]

        self.losses = dict(processes.from_first(drop_later_records))
        names = self.experiment.train.trackers
        self._trackers = open_trackers(names, self.files, self.experiment, self.progress)
        self._open.callback(self._trackers.close)

    def advanced(self) -> None:
        """Notifies the listener that the metrics of further steps are known."""
        self.listener.advanced(self.progress.step)

    def log(self, learning_rate: float, grad_norm: float) -> None:
        """Records a training line, with the mean loss since the previous line."""
        progress = self.progress
        sums, progress.since_log = progress.since_log, LossSums()
        rate = sums.tokens / max(progress.seconds_since_log, 1e-9)
        progress.seconds_since_log = 0.0
        extra = {"learning_rate": learning_rate, "grad_norm": grad_norm, "tokens_per_second": rate}
        self._record("train", sums, extra)
        self.listener.logged(progress.step, sums, rate)

    def evaluated(self, sums: LossSums) -> None:
        """Records a validation line, with the sums of an evaluation."""
        self.valid = sums
        self.losses[self.progress.step] = sums.loss if math.isfinite(sums.loss) else math.inf
        self._record("valid", sums, {})
        self.listener.evaluated(self.progress.step, sums)

    def save(self, state: TrainState) -> None:
        """Starts to save a checkpoint of this step with its validation loss, if known, unless the checkpoint exists."""
        step = self.progress.step
        if self.checkpoints.last_saved != step:
            self._trackers.sync()  # else a crash could lose lines before the checkpoint
            loss = self.losses.get(step)
            self.checkpoints.save(state, self.progress, loss if loss is None or math.isfinite(loss) else None)

    def save_loss(self) -> None:
        """Adds the validation loss of this step to its checkpoint, which was saved before the evaluation."""
        if processes.is_first():
            self.checkpoints.add_loss(self.progress.step, self.losses[self.progress.step])

    def sample(self, weights: Any) -> list[str]:
        """Samples the texts of an evaluation, writes them to a file and returns them, in the first process only."""
        if not processes.is_first():
            return []
        # Sampling uses no dropout. With its rate at 0, trials that differ only in it share the compiled programs.
        plain = dataclasses.replace(self.experiment, model=dataclasses.replace(self.experiment.model, dropout=0.0))
        tokenizer = self.corpus.prepared.tokenizer
        texts = sample(plain, generate.LanguageModel(plain, tokenizer, devices.local_copy(weights)))
        write_atomic(self.files.sample(self.progress.step), "\n\n".join(texts) + "\n")
        return texts

    def close(self) -> None:
        """Waits for the last save, closes the trackers and unlocks the run directory."""
        self.ended = True
        self._open.close()

    def _record(self, split: str, sums: LossSums, extra: dict[str, float]) -> None:
        progress = self.progress
        counts = {"tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
        self._trackers.log(progress.step, split, {**sums.summary(), **extra, **counts})


def sample(experiment: Experiment, lm: generate.LanguageModel) -> list[str]:
    """The texts, prompts included, that the experiment samples at each evaluation."""
    settings = experiment.sample
    outputs = lm.generate(
        list(settings.prompts),
        sampler=samplers.TopK(k=min(settings.k, len(lm.tokenizer)), temperature=settings.temperature),
        max_new_tokens=settings.max_new_tokens,
        seed=experiment.seed,
        stop=lm.end_ids if experiment.data.layout != "lines" else [],  # as the tutorial, which never stops at an end
    )
    return [output.full_text.strip() for output in outputs]
