"""A run directory in use by the trial that trains in it."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from minigpt_jax import generate, samplers
from minigpt_jax.config import Experiment
from minigpt_jax.parallel import devices, processes
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_dir import (
    RunDir,
    check_same,
    drop_records_after,
    lock,
    read_metrics,
    whole_file,
    write_atomic,
    write_description,
    write_tokenizer,
)
from minigpt_jax.storage.trackers import Trackers, open_trackers
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.state import Progress, TrainState
from minigpt_jax.trial.environment import Corpus, versions


@runtime_checkable
class ProgressListener(Protocol):
    """Who is told how a trial gets on, for a person to see."""

    def advanced(self, step: int) -> None:
        """The metrics of all steps up to this one are known."""
        ...

    def logged(self, step: int, sums: LossSums, tokens_per_second: float) -> None:
        """A training line was recorded: the sums since the line before."""
        ...

    def evaluated(self, step: int, sums: LossSums) -> None:
        """A validation line was recorded."""
        ...


class Silent:
    """A ProgressListener that shows nothing."""

    def advanced(self, step: int) -> None: ...
    def logged(self, step: int, sums: LossSums, tokens_per_second: float) -> None: ...
    def evaluated(self, step: int, sums: LossSums) -> None: ...


class OpenRun:
    """A trial's run directory in use: its lock, progress, trackers and checkpoints.

    The order of calls is: the constructor, `restore` where there is a checkpoint to resume from, `start`, any number of
    `log`, `evaluated`, `save` and `sample`, and `close`. Where there are several processes, each of them makes all
    calls; the first one alone writes.

    Attributes:
        progress: what the host counts; `train.loop.fit` updates it.
        losses: validation losses by step, from the start of the run on; inf where one is not a number.
        valid: the latest validation of this process.
        ended: True once the trial is closed.
        planned_steps: where there was a checkpoint, the number of all steps that the run was made for until now.

    Raises:
        UserError: another process has the run directory, or it is another experiment's.
    """

    def __init__(
        self, experiment: Experiment, files: RunDir, corpus: Corpus, experiment_file: Path | None = None
    ) -> None:
        self.experiment, self.files, self.corpus = experiment, files, corpus
        self.total_steps = corpus.total_steps(experiment)
        self.progress = Progress()
        self.losses: dict[int, float] = {}
        self.valid: LossSums | None = None
        self.ended = False
        self.planned_steps: int | None = None
        self.listener: ProgressListener = Silent()
        self._seconds_logged = 0.0
        self._trackers = Trackers()
        with contextlib.ExitStack() as stack:
            if processes.is_first():
                stack.enter_context(lock(files))
                self._describe(experiment_file)
            self.checkpoints = Checkpoints(files.checkpoints, experiment.train.keep_checkpoints)
            stack.callback(self.checkpoints.close)
            self._open = stack.pop_all()

    def _describe(self, experiment_file: Path | None) -> None:
        """Fills the run directory with what training does not write."""
        files, prepared = self.files, self.corpus.prepared
        if files.checkpoints.is_dir() and any(path.name.isdecimal() for path in files.checkpoints.iterdir()):
            self.planned_steps = self.corpus.total_steps(files.experiment())
        check_same(files, self.experiment, self.corpus.fingerprints)
        write_description(files, self.experiment, self.corpus.fingerprints, versions(), experiment_file)
        write_tokenizer(files, prepared.tokenizer.save)
        for split in ("valid", "test"):
            with whole_file(files.rows(split)) as file:
                prepared.splits[split].save(file)

    def restore(self, like: TrainState, step: int) -> TrainState:
        """The state of a step that there is a checkpoint of; `like` gives shapes and types."""
        state, self.progress = self.checkpoints.restore(like, step)
        return state

    def start(self, listener: ProgressListener | None = None) -> None:
        """Opens the trackers, from the step that training starts or resumes from."""
        self.listener = listener or Silent()
        self._seconds_logged = self.progress.seconds
        step = self.progress.step

        def forget_what_comes_again() -> list[tuple[int, float]]:
            self.checkpoints.drop_after(step)
            drop_records_after(self.files, step)
            lines = [line for line in read_metrics(self.files) if line.get("split") == "valid"]
            return [(line["step"], math.inf if line.get("loss") is None else line["loss"]) for line in lines]

        self.losses = dict(processes.from_first(forget_what_comes_again))
        names = self.experiment.train.trackers
        self._trackers = open_trackers(names, self.files, self.experiment, self.progress)
        self._open.callback(self._trackers.close)

    def advanced(self) -> None:
        """Passes on that some steps' metrics are known."""
        self.listener.advanced(self.progress.step)

    def log(self, learning_rate: float, grad_norm: float) -> None:
        """Records a training line: the mean since the line before."""
        progress = self.progress
        sums, progress.since_log = progress.since_log, LossSums()
        rate = sums.tokens / max(progress.seconds - self._seconds_logged, 1e-9)
        self._seconds_logged = progress.seconds
        extra = {"learning_rate": learning_rate, "grad_norm": grad_norm, "tokens_per_second": rate}
        self._record("train", sums, extra)
        self.listener.logged(progress.step, sums, rate)

    def evaluated(self, sums: LossSums) -> None:
        """Records a validation line."""
        self.valid = sums
        self.losses[self.progress.step] = sums.loss if math.isfinite(sums.loss) else math.inf
        self._record("valid", sums, {})
        self.listener.evaluated(self.progress.step, sums)

    def save(self, state: TrainState) -> None:
        """Starts a checkpoint of this step, unless there is one. It carries the loss if this step was evaluated."""
        step = self.progress.step
        if self.checkpoints.last_saved != step:
            self._trackers.sync()  # a checkpoint must not outlive the lines before it
            loss = self.losses.get(step)
            self.checkpoints.save(state, self.progress, loss if loss is None or math.isfinite(loss) else None)

    def sample(self, weights: Any) -> list[str]:
        """Writes and returns the texts that the experiment asks for at each evaluation, in the first process."""
        if not processes.is_first():
            return []
        # Dropout has no part in sampling, and without it all trials of a shape share the compiled programs.
        plain = dataclasses.replace(self.experiment, model=dataclasses.replace(self.experiment.model, dropout=0.0))
        tokenizer = self.corpus.prepared.tokenizer
        texts = sample(plain, generate.LanguageModel(plain, tokenizer, devices.local_copy(weights)))
        write_atomic(self.files.sample(self.progress.step), "\n\n".join(texts) + "\n")
        return texts

    def close(self) -> None:
        """Waits for what was saved, and frees the run directory."""
        self.ended = True
        self._open.close()

    def _record(self, split: str, sums: LossSums, extra: dict[str, float]) -> None:
        progress = self.progress
        counts = {"tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
        self._trackers.log(progress.step, split, {**sums.summary(), **extra, **counts})


def sample(experiment: Experiment, lm: generate.LanguageModel) -> list[str]:
    """The texts that the experiment has sampled at each evaluation, prompts included."""
    settings = experiment.sample
    outputs = lm.generate(
        list(settings.prompts),
        sampler=samplers.TopK(k=min(settings.k, len(lm.tokenizer)), temperature=settings.temperature),
        max_new_tokens=settings.max_new_tokens,
        seed=experiment.seed,
        stop=[lm.end_id] if experiment.data.layout == "packed" else [],  # the tutorial samples past the line's end
    )
    return [output.full_text.strip() for output in outputs]
