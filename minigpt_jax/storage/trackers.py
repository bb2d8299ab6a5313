"""Where a run's figures go: metrics.jsonl always, and the trackers that the experiment names.

A tracker is an object with the three methods of `Tracker`. It is made with the run directory, the experiment and the
step that training starts or resumes from, in the first process alone.
"""

import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from minigpt_jax.config import Experiment, code, flatten
from minigpt_jax.errors import UserError
from minigpt_jax.parallel import processes
from minigpt_jax.storage.run_dir import RunDir
from minigpt_jax.train.state import Progress

Figures = Mapping[str, float]


@runtime_checkable
class Tracker(Protocol):
    """Keeps the figures of one run."""

    def log(self, step: int, split: str, figures: Figures) -> None:
        """Takes the figures of a split (`train`, `valid`, `test`) after `step` steps.

        They are `loss`, `perplexity`, `bits_per_byte`, `tokens` and `seconds`, of training also `learning_rate`,
        `grad_norm` and `tokens_per_second`; some may be infinite or NaN.
        """
        ...

    def sync(self) -> None:
        """Brings what was logged to where a crash cannot take it; called before each checkpoint."""
        ...

    def close(self) -> None:
        """Ends the record; called once, however the run ends."""
        ...


class MetricsFile:
    """metrics.jsonl: a JSON object per line, with null for what is not finite."""

    def __init__(self, run_dir: Path, experiment: Experiment, step: int) -> None:
        del experiment, step  # what a resumed run writes again is taken out beforehand, by `drop_records_after`
        self._file = RunDir(run_dir).metrics.open("a")

    def log(self, step: int, split: str, figures: Figures) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard summaries in the run directory, in which a resumed run replaces what it writes again."""

    def __init__(self, run_dir: Path, experiment: Experiment, step: int) -> None:
        del experiment
        import tensorboardX  # it imports PyTorch where that is installed

        self._board: Any = tensorboardX.SummaryWriter(str(RunDir(run_dir).tensorboard), purge_step=step + 1)

    def log(self, step: int, split: str, figures: Figures) -> None:
        for name, value in figures.items():
            if name not in ("tokens", "seconds"):  # these tell where a run is, not how good it is
                self._board.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class WandB:
    """Weights & Biases; its environment variables choose the account, the project and the mode (offline, online).

    The run's id is kept in the run directory, so that a resumed run goes on in the same one.
    """

    def __init__(self, run_dir: Path, experiment: Experiment, step: int) -> None:
        wandb = _installed("wandb")
        folder = run_dir / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "run-id"
        known = file.read_text().strip() if file.exists() and step else None
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "minigpt_jax"),
            name=_run_name(run_dir, experiment),
            dir=str(run_dir),
            id=known,
            resume="allow",
            reinit="create_new",  # the trials of a sweep are open at the same time
            config=flatten(experiment),
        )
        file.write_text(f"{self._run.id}\n")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, split: str, figures: Figures) -> None:
        # W&B's own step must never go back, as it does where a run resumes from an earlier checkpoint.
        self._run.log({"step": step} | {f"{split}/{name}": value for name, value in figures.items()})

    def sync(self) -> None:
        pass  # it writes in a process of its own

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio, Hugging Face's local tracker; `trackio show` opens its page."""

    def __init__(self, run_dir: Path, experiment: Experiment, step: int) -> None:
        del step
        trackio = _installed("trackio")
        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "minigpt_jax"),
            name=_run_name(run_dir, experiment),  # which is what identifies a run
            config=flatten(experiment),
            resume="allow",
        )

    def log(self, step: int, split: str, figures: Figures) -> None:
        self._run.log({f"{split}/{name}": value for name, value in figures.items()}, step=step)

    def sync(self) -> None:
        pass  # it writes in a thread of its own

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Experiment, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


class Trackers(list[Tracker]):
    """Several trackers as one."""

    def log(self, step: int, split: str, figures: Figures) -> None:
        for tracker in self:
            tracker.log(step, split, figures)

    def sync(self) -> None:
        for tracker in self:
            tracker.sync()

    def close(self) -> None:
        """Closes all of them, and then raises what one of them raised."""
        errors: list[Exception] = []
        for tracker in self:
            try:
                tracker.close()
            except Exception as error:
                errors.append(error)
        self.clear()
        if errors:
            raise errors[0]


def check_trackers(names: Iterable[str]) -> None:
    """Raises UserError for a tracker whose package is not installed, or of the user's own that lacks a method."""
    for name in names:
        if name in ("wandb", "trackio"):
            _installed(name)
        elif name not in TRACKERS:
            made = code.loaded(name)
            lacking = [method for method in ("log", "sync", "close") if not callable(getattr(made, method, None))]
            if isinstance(made, type) and lacking:
                raise UserError(
                    f"--train.trackers {name}: it has no method {lacking[0]}; a tracker needs log, sync and close"
                )


def open_trackers(names: Iterable[str], files: RunDir, experiment: Experiment, progress: Progress) -> Trackers:
    """The trackers of a run that starts or resumes at `progress`, after metrics.jsonl; the first process alone has any.

    Raises:
        UserError: a tracker's package is not installed.
    """
    trackers = Trackers()
    if not processes.is_first():
        return trackers
    try:
        for make in (MetricsFile, *(TRACKERS.get(name) or code.loaded(name) for name in names)):
            trackers.append(make(files.path, experiment, progress.step))
    except BaseException:
        trackers.close()
        raise
    return trackers


def _run_name(run_dir: Path, experiment: Experiment) -> str:
    """The experiment's name, and the folder's where that is another one, as a trial's is."""
    return experiment.name if run_dir.name == experiment.name else f"{experiment.name} {run_dir.name}"


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--train.trackers {name}: the package {name} is not installed; pip install 'minigpt_jax[{name}]'"
        ) from error
