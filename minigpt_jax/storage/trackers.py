"""Trackers, which record the figures of a run: metrics.jsonl, and those that the experiment names.

A tracker is an object with the three methods of `Tracker`. It is made from the run directory, the experiment and the
step at which training starts or resumes, in the first process only.
"""

import importlib
import inspect
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from minigpt_jax.config import Experiment, code, flatten
from minigpt_jax.errors import UserError, reason_of
from minigpt_jax.parallel import processes
from minigpt_jax.storage.run_dir import RunDir
from minigpt_jax.train.state import Progress

Figures = Mapping[str, float]


@runtime_checkable
class Tracker(Protocol):
    """Records the figures of one run."""

    def log(self, step: int, split: str, figures: Figures) -> None:
        """Records the figures of a split (`train` or `valid`) after `step` steps.

        The figures are `loss` (nats per token), `perplexity`, `bits_per_byte`, `tokens` (labels counted since the
        start) and `seconds` (of training since the start). Those of training include `learning_rate`, `grad_norm` and
        `tokens_per_second`. Some may be infinite or NaN.
        """
        ...

    def sync(self) -> None:
        """Makes the figures logged so far safe from a crash. Called before each checkpoint."""
        ...

    def close(self) -> None:
        """Ends the record. Called once, even if the run fails."""
        ...


class MetricsFile:
    """metrics.jsonl: a JSON object per line, with null for figures that are infinite or NaN."""

    def __init__(self, run_dir: Path, experiment: Experiment, step: int) -> None:
        del experiment, step  # `drop_records_after` has removed the lines that a resumed run writes again
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
    """TensorBoard summaries in the run directory. A resumed run replaces those of the steps that it repeats."""

    def __init__(self, run_dir: Path, experiment: Experiment, step: int) -> None:
        del experiment
        import tensorboardX  # imported late, because it imports PyTorch if that is installed

        self._board: Any = tensorboardX.SummaryWriter(str(RunDir(run_dir).tensorboard), purge_step=step + 1)

    def log(self, step: int, split: str, figures: Figures) -> None:
        for name, value in figures.items():
            if name not in ("tokens", "seconds"):  # these do not measure the quality of the model
                self._board.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class WandB:
    """Weights & Biases. Its environment variables choose the account, the project and the mode (offline or online).

    The id of the run is stored in the run directory, so that resumed training continues the same run.
    """

    def __init__(self, run_dir: Path, experiment: Experiment, step: int) -> None:
        wandb = _installed("wandb")
        file, earlier = run_dir / "wandb-run-id", run_dir / "wandb" / "run-id"  # where earlier versions stored it
        stored = next((path for path in (file, earlier) if path.is_file() and not path.is_symlink()), None)
        known = stored.read_text().strip() if stored is not None and step else None
        self._run: Any = _begun(
            "wandb",
            wandb.init,
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
        # The step is logged as a figure, because W&B's step cannot decrease when a run resumes.
        self._run.log({"step": step} | {f"{split}/{name}": value for name, value in figures.items()})

    def sync(self) -> None:
        pass  # W&B writes in a separate process

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio, the local tracker of Hugging Face. `trackio show` opens its page."""

    def __init__(self, run_dir: Path, experiment: Experiment, step: int) -> None:
        del step
        trackio = _installed("trackio")
        self._run: Any = _begun(
            "trackio",
            trackio.init,
            project=os.environ.get("TRACKIO_PROJECT", "minigpt_jax"),
            name=_run_name(run_dir, experiment),  # trackio identifies runs by their names
            config=flatten(experiment),
            resume="allow",
        )

    def log(self, step: int, split: str, figures: Figures) -> None:
        self._run.log({f"{split}/{name}": value for name, value in figures.items()}, step=step)

    def sync(self) -> None:
        pass  # trackio writes in a separate thread

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Experiment, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


class Trackers(list[Tracker]):
    """A list of trackers that is a tracker itself."""

    def log(self, step: int, split: str, figures: Figures) -> None:
        for tracker in self:
            tracker.log(step, split, figures)

    def sync(self) -> None:
        for tracker in self:
            tracker.sync()

    def close(self) -> None:
        """Closes all trackers, and then raises the first exception of theirs."""
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
    """Checks that the trackers can be used.

    Raises:
        UserError: the package of a tracker is not installed, Weights & Biases has no API key, or a user's tracker lacks
            a method or cannot be called.
    """
    for name in names:
        if name == "wandb":
            _check_login()
        elif name == "trackio":
            _installed(name)
        elif name not in TRACKERS:
            make = code.loaded(name)
            if isinstance(make, type):
                _check_methods(name, make)
            code.check_call(make, "run_dir, experiment, step", f"--train.trackers {name}: it")


def _check_methods(name: str, tracker: Any) -> None:
    """Raises UserError if a user's tracker, or a class of them, lacks a method or has one with other arguments."""
    for method, arguments in {"log": "step, split, figures", "sync": "", "close": ""}.items():
        found = getattr(tracker, method, None)
        if not callable(found):
            what = "it" if isinstance(tracker, type) else f"it returned {type(tracker).__name__}, which"
            raise UserError(
                f"--train.trackers {name}: {what} has no method {method}; a tracker needs log, sync and close"
            )
        if isinstance(tracker, type) and inspect.isfunction(inspect.getattr_static(tracker, method)):
            arguments = f"self, {arguments}".removesuffix(", ")
        code.check_call(found, arguments, f"--train.trackers {name}: its {method}")


def open_trackers(names: Iterable[str], files: RunDir, experiment: Experiment, progress: Progress) -> Trackers:
    """Opens metrics.jsonl and the named trackers, for a run that starts or resumes at `progress`.

    Only the first process has trackers. In other processes the list is empty.

    Raises:
        UserError: a tracker's package is not installed, a tracker cannot begin a run, or a user's function has made no
            tracker.
    """
    trackers = Trackers()
    if not processes.is_first():
        return trackers
    try:
        trackers.append(MetricsFile(files.path, experiment, progress.step))
        for name in names:
            tracker = (TRACKERS.get(name) or code.loaded(name))(files.path, experiment, progress.step)
            if name not in TRACKERS:
                _check_methods(name, tracker)
            trackers.append(tracker)
    except BaseException:
        trackers.close()
        raise
    return trackers


def _run_name(run_dir: Path, experiment: Experiment) -> str:
    """The name of the experiment, followed by that of the folder if it differs, as for the trials of a sweep."""
    return experiment.name if run_dir.name == experiment.name else f"{experiment.name} {run_dir.name}"


def _begun(tracker: str, init: Callable[..., Any], **settings: Any) -> Any:
    """What a package's `init` returns. Raises UserError if it fails, without a connection for example."""
    try:
        return init(**settings)
    except Exception as error:  # each package has exceptions of its own
        raise UserError(
            f"--train.trackers {tracker}: it cannot begin a run ({reason_of(error)}); mend that, or leave it out"
        ) from error


def _check_login() -> None:
    """Raises UserError if Weights & Biases has no API key and no terminal at which to ask for one."""
    wandb = _installed("wandb")
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return

    def login() -> None:
        try:
            wandb.login()
        except Exception as error:  # its exceptions differ between versions
            raise UserError(
                f"--train.trackers wandb: it cannot log in ({reason_of(error)}); run `wandb login` or set "
                "WANDB_API_KEY, or set WANDB_MODE=offline to record without an account"
            ) from error

    processes.from_first(login)  # the others would wait for one that has failed


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--train.trackers {name}: the package {name} is not installed; pip install 'minigpt_jax[{name}]'"
        ) from error
