"""What a sweep is: its experiment, axes, search and budget. All of its workers agree on it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minigpt_jax import config
from minigpt_jax.config import Experiment, dumps
from minigpt_jax.errors import UserError
from minigpt_jax.report import objective
from minigpt_jax.report.objective import Figure
from minigpt_jax.storage.run_dir import RunDir, write_atomic
from minigpt_jax.sweep import axes as axes_
from minigpt_jax.sweep.axes import SEED, Axis

Search = Literal["grid", "random", "tpe"]
TRIALS = 20


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        axes: what varies, seeds aside.
        seeds: every configuration is trained once with each.
        trials: configurations to try.
        prune: stop configurations at the rungs that the worse half does not pass.
        file, flags, command: how the user asked for it, for sweep.json.
        root: where the folders of sweeps are.
    """

    name: str
    experiment: Experiment
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    search: Search
    trials: int
    prune: bool
    file: str = ""
    flags: tuple[str, ...] = ()
    command: str = ""
    root: Path = Path("runs") / "sweeps"

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def figure(self) -> Figure:
        """What ranks configurations: loss, or bits per byte where the axes change what a token or the text is."""
        return objective.figure_of(axis.field for axis in self.axes)

    @property
    def caveats(self) -> list[str]:
        """Why even that figure may mislead."""
        return objective.caveats([axes_.apply(self.experiment, values) for values in axes_.corners(self.axes)])

    def trial(self, configuration: int, values: Mapping[str, Any], seed: int) -> "Trial":
        """One configuration with one seed."""
        experiment = axes_.apply(self.experiment, {**values, SEED: seed})
        return Trial(configuration, seed, dict(values), experiment, self.folder)

    def identity(self) -> dict[str, Any]:
        """What must agree for two commands to mean one sweep; more trials may be asked for later."""
        identity = {
            "experiment": config.to_json(self.experiment),
            "axes": [axis.to_json() for axis in self.axes],
            "seeds": list(self.seeds),
            "search": self.search,
            "prune": self.prune,
        }
        axes = {axis.field: axis.values for axis in self.axes}
        points = [self.experiment, *(axes_.apply(self.experiment, {field: v}) for field in axes for v in axes[field])]
        if files := {name: code.sha256 for point in points for name, code in config.code.files(point).items()}:
            identity["code"] = files
        # Sweeps from before there was a choice name none, and what they told their search was always the loss.
        return identity if self.figure == "loss" else {**identity, "objective": self.figure}

    def write(self) -> None:
        """Writes sweep.json."""
        description = {
            "name": self.name,
            "file": self.file,
            "axes": [axis.to_json() for axis in [*self.axes, Axis(SEED, self.seeds)]],
            "search": self.search,
            "trials": self.trials,
            "flags": list(self.flags),
            "objective": f"valid {objective.NAMES[self.figure]}",
            "caveats": self.caveats,
            "command": self.command,
        }
        write_atomic(self.folder / "sweep.json", dumps(description))


@dataclass(frozen=True)
class Trial:
    """One configuration with one seed: a run."""

    configuration: int
    seed: int
    values: dict[str, Any]
    experiment: Experiment
    folder: Path

    @property
    def id(self) -> str:
        return f"{self.configuration:04}-seed-{self.seed}"

    @property
    def files(self) -> RunDir:
        return RunDir(self.folder / "trials" / self.id)


def make(
    experiment: Experiment,
    axes: Iterable[Axis],
    search: Search = "grid",
    trials: int | None = None,
    name: str | None = None,
    prune: bool | None = None,
    **asked: Any,
) -> Plan:
    """A plan, checked as far as it can be without a corpus.

    Args:
        trials: by default all of a grid, TRIALS of a search.
        prune: by default a search does and a grid does not, whose reader wants every point.
        asked: `file`, `flags`, `command` and `root`.

    Raises:
        UserError: for what cannot work.
    """
    folders = [Path.cwd(), Path(asked.get("file", "")).parent]
    experiment = config.code.load(experiment, folders)
    axes = tuple(axis.with_code(folders) for axis in axes)
    seeds = next((axis.values for axis in axes if axis.field == SEED), (experiment.seed,))
    varied = tuple(axis for axis in axes if axis.field != SEED)
    if trials is not None and trials < 1:
        raise UserError(f"--trials {trials}: must be 1 or more")
    if search == "grid":
        for axis in varied:
            if axis.is_range:
                raise UserError(
                    f"{axis.field}={axis.low}..{axis.high}: a grid needs values; list them, or take --search random "
                    "or --search tpe"
                )
        # A stack of trials shares one program, so what makes another program changes slowest.
        varied = tuple(sorted(varied, key=lambda axis: not axis.field.startswith(("data.", "tokenizer.", "model."))))
        points = len(axes_.grid(varied))
        trials = min(trials or points, points)
    name = name or experiment.name
    if not name or Path(name).name != name:
        raise UserError(f"--name {name}: must be the name of a folder, without any /")
    axes_.check(axes, experiment)
    prune = search != "grid" if prune is None else prune
    return Plan(name, experiment, varied, seeds, search, trials or TRIALS, prune, **asked)
