"""The plan of a sweep: its experiment, axes, search and budget. All workers of the sweep agree on it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from minigpt_jax import config
from minigpt_jax.config import Experiment, dumps
from minigpt_jax.errors import UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.report import objective
from minigpt_jax.report.objective import Figure
from minigpt_jax.storage.run_dir import RunDir, write_atomic
from minigpt_jax.sweep import axes as axes_
from minigpt_jax.sweep.axes import SEED, Axis
from minigpt_jax.trial import initial

Search = Literal["grid", "random", "tpe"]
TRIALS = 20
"""Configurations that a random or TPE search tries by default."""


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        axes: the fields that vary, without the seed.
        seeds: each configuration is trained once with each seed.
        trials: the number of configurations to try.
        prune: whether the worse half of the configurations is stopped at each rung.
        init_from: a trained model, from whose weights every trial starts.
        file, flags, command: the user's command, which sweep.json records.
        root: the folder that holds the folders of sweeps.
    """

    name: str
    experiment: Experiment
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    search: Search
    trials: int
    prune: bool
    init_from: LanguageModel | None = None
    file: str = ""
    flags: tuple[str, ...] = ()
    command: str = ""
    root: Path = Path("runs") / "sweeps"

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def figure(self) -> Figure:
        """The figure that ranks configurations: loss, or bits per byte if an axis changes the tokens or the text."""
        return objective.figure_of(axis.field for axis in self.axes)

    @property
    def caveats(self) -> list[str]:
        """Reasons why the figure may still mislead, as lines to show."""
        return objective.caveats([axes_.apply(self.experiment, values) for values in axes_.corners(self.axes)])

    def trial(self, configuration: int, values: Mapping[str, Any], seed: int) -> "Trial":
        """The trial of a configuration with one seed."""
        experiment = axes_.apply(self.experiment, {**values, SEED: seed})
        return Trial(configuration, seed, dict(values), experiment, self.folder)

    def identity(self) -> dict[str, Any]:
        """The parts that must be equal for two commands to work on the same sweep. The number of trials may differ."""
        tokenizer = self.experiment.tokenizer
        tokenizer = replace(tokenizer, vocabulary_size=tokenizer.size)  # as earlier versions recorded it
        identity = {
            "experiment": config.to_json(replace(self.experiment, tokenizer=tokenizer)),
            "axes": [axis.to_json() for axis in self.axes],
            "seeds": list(self.seeds),
            "search": self.search,
            "prune": self.prune,
        }
        axes = {axis.field: axis.values for axis in self.axes}
        points = [self.experiment, *(axes_.apply(self.experiment, {field: v}) for field in axes for v in axes[field])]
        if files := {name: code.sha256 for point in points for name, code in config.code.files(point).items()}:
            identity["code"] = files
        if self.init_from is not None:
            identity["init_from"] = initial.origin(self.init_from)["weights"]
        # Sweeps recorded before bits per byte was an objective have no such entry. They were always ranked by loss.
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
    init_from: LanguageModel | None = None,
    **asked: Any,
) -> Plan:
    """Makes a plan, and checks all that can be checked without the corpus.

    Args:
        name: the name of the sweep's folder; by default that of the experiment.
        experiment: gives the values of all fields that no axis varies.
        search: how configurations are chosen.
        trials: the number of configurations. The default is all points of a grid, and TRIALS of other searches.
        prune: the default is False for a grid, of which users want every point, and True for other searches.
        init_from: the model to start from. `config.inherited(experiment, init_from.experiment)` gives an experiment
            that fits.
        asked: the attributes `file`, `flags`, `command` and `root` of the plan.

    Raises:
        UserError: a setting is invalid, a combination of the axes' values is, or the weights to start from depend on
            what an axis varies.
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
                    f"{axis.field}={axis.low}..{axis.high}: a grid needs values, not a range; list them, or use "
                    "--search random or --search tpe"
                )
        # The trials of a stack share one program, so the axes that need another program change slowest.
        varied = tuple(sorted(varied, key=lambda axis: not axis.field.startswith(("data.", "tokenizer.", "model."))))
        points = axes_.points(varied)
        trials = min(trials or points, points)
    name = experiment.name if name is None else name
    if not name or Path(name).name != name or name == "..":
        raise UserError(f"--name {name}: must be the name of a folder under runs/sweeps, without any /")
    axes_.check(axes, experiment)
    if any(axis.field == "train.patience" for axis in axes):
        raise UserError("train.patience: the trials of a sweep make all of their steps; drop this axis")
    if init_from is not None:
        config.check_inherited(experiment, init_from.experiment, "the initial model")
        _check_initial(axes, experiment, init_from)
    prune = search != "grid" if prune is None else prune
    return Plan(name, experiment, varied, seeds, search, trials or TRIALS, prune, init_from, **asked)


def _check_initial(axes: Iterable[Axis], experiment: Experiment, init_from: LanguageModel) -> None:
    """Raises UserError if the weights of a model do not fit some value of an axis."""
    for axis in axes:
        for values in axes_.corners([axis]):
            try:
                config.check_inherited(axes_.apply(experiment, values), init_from.experiment, "the initial model")
            except UserError as error:
                raise UserError(
                    f"{axis.field}={axes_.plain(values[axis.field])}: the weights of --init-from do not fit it; "
                    "drop this axis or this value"
                ) from error
