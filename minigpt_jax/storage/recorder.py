"""What a run records on its way, for its trackers and its bar."""

from minigpt_jax import display
from minigpt_jax.config import Experiment
from minigpt_jax.storage.run_dir import RunDir
from minigpt_jax.storage.trackers import open_trackers
from minigpt_jax.train import optim
from minigpt_jax.train.metrics import Sums
from minigpt_jax.train.state import Progress
from minigpt_jax.train.step import StepMetrics


class Recorder:
    """Hands what is measured to the trackers, and tells the bar."""

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
        self._trackers = open_trackers(experiment.train.trackers, files, experiment, progress)
        self._seconds = progress.seconds

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._trackers.close()

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
        self._trackers.sync()

    def write(self, progress: Progress, split: str, sums: Sums, extra: dict[str, float] | None = None) -> None:
        where = {"tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
        self._trackers.log(progress.step, split, sums.summary() | (extra or {}) | where)
