"""`minigpt sweep FILE.py AXIS …`: trials over the fields of an experiment."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from minigpt_jax import cli, config
from minigpt_jax.cli import jax_setup, parser
from minigpt_jax.cli.train import inheriting, initial_experiment, initial_model, load_experiment, with_own_size
from minigpt_jax.config import Experiment
from minigpt_jax.errors import UserError, without_password
from minigpt_jax.parallel import devices
from minigpt_jax.report import objective


@dataclass(frozen=True)
class Arguments:
    """Train trials of an experiment over one or several axes, many of them in one program.

    An axis is optimizer.learning_rate=1e-3,3e-3 (values) or optimizer.learning_rate=1e-4..1e-2:log (a range), for any
    field of the experiment. Seeds are replicates: seed=0,1,2 trains every configuration three times. Flags of the
    experiment follow after --. The same command again resumes the sweep. If it is started several times, on machines
    that share the folder (or the --storage), these workers divide the trials among them.
    """

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE.py")]
    """The experiment's file."""
    axes: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="AXIS …"), parser.SEVERAL]
    """A field and its values."""
    search: Literal["grid", "random", "tpe"] = "grid"
    """All combinations, random ones, or those that a tree-structured Parzen estimator finds promising."""
    trials: int | None = None
    """Number of configurations to try; by default all of a grid, and 20 of a search."""
    storage: str | None = None
    """A database that workers share, such as postgresql+psycopg://user@host/database; by default a journal in the
    folder. Give the password by $PGPASSWORD. A password in the address is never stored, but replaced by ***."""
    name: str | None = None
    """Names the folder, runs/sweeps/NAME; the experiment's name by default."""
    init_from: Path | None = None
    """A run directory or a Hugging Face folder, from whose weights every trial starts, at step 0. The model, the
    tokenizer and, unless a flag sets it, the sequence length are taken from there, so no axis may change the model's
    form or the tokenizer."""
    prune: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help_behavior_hint="")] = False
    """Stop the worse half of the configurations at a quarter and at half of the steps, as searches do by default."""
    no_prune: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help_behavior_hint="")] = False
    """Train all configurations to the end, as a grid does by default."""
    stack: int | None = None
    """Maximum number of trials in one program; by default as many as make it faster and fit into memory."""
    lease: float = 60.0
    """Seconds without a heartbeat after which a worker's trials go to another one."""


@dataclass(frozen=True)
class Flags:
    """Flags of the experiment, the same for all trials."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(arguments: list[str]) -> int:
    """Sweeps. Returns the exit status."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    flags = arguments[cut + 1 :]
    # Nothing that is printed or stored may contain a password, so the parser gets words without it.
    own = [without_password(word) for word in arguments[:cut]]
    whole = {
        without_password(word).removeprefix("--storage="): word.removeprefix("--storage=") for word in arguments[:cut]
    }
    _check_place_of_flags(own)
    chosen: Arguments = parser.parse(Arguments, own, "minigpt sweep")
    if chosen.prune and chosen.no_prune:
        raise UserError("--prune and --no-prune: give one of the two, or none for the search's own default")
    defined = load_experiment(chosen.file)
    prog = f"minigpt sweep {chosen.file} … --"

    def parse(default: Experiment) -> Experiment:
        return parser.parse(Flags, config.current_flags(flags), prog, Flags(default)).experiment

    experiment, start, initial = parse(defined), chosen.init_from, None
    jax_setup.prepare()
    if start is None:
        experiment = with_own_size(experiment, flags)
    else:
        experiment = inheriting(start, initial_experiment(start), experiment, parse)
        initial = initial_model(start, config.code.load(experiment, [Path.cwd(), Path(chosen.file).parent]))
    from minigpt_jax import report, sweep
    from minigpt_jax.sweep import axes

    devices.use_all_cores()
    plan = sweep.make(
        experiment,
        axes.parse([whole[axis] for axis in chosen.axes]),
        chosen.search,
        chosen.trials,
        chosen.name,
        True if chosen.prune else False if chosen.no_prune else None,
        init_from=initial,
        file=chosen.file,
        flags=tuple(flags),
        command=shlex.join(["./launch.sh", "sweep", *own, *arguments[cut:]]),
    )
    if plan.experiment.train.patience is not None:
        print("--train.patience has no effect in a sweep, whose trials make all of their steps")
    storage = None if chosen.storage is None else whole[chosen.storage]
    outcome = sweep.sweep(plan, storage=storage, lease=chosen.lease, max_trials=chosen.stack)
    if outcome.interrupted:
        print(f"stopped after {len(outcome.rows)} trials, saved; the same command again resumes the sweep")
        return cli.INTERRUPTED
    page = report.sweep(plan.folder)
    if (best := report.results.read(plan.folder).best) is not None:
        row = min(best.complete, key=lambda row: row[plan.figure])
        mean = f", a mean over {len(best.complete)} seeds" if len(best.complete) > 1 else ""
        print(
            f"best: {row['trial']}, validation {objective.NAMES[plan.figure]} {best.mean:.4f}{mean}, "
            f"in {plan.folder / row['run_dir']}"
        )
    complete = sum(row["status"] == "complete" for row in outcome.rows)
    print(f"done: {len(outcome.rows)} trials, {complete} complete; the results are in {plan.folder}")
    print(f"report: {page}")
    return 0


def _check_place_of_flags(words: list[str]) -> None:
    """Raises UserError for a flag of the experiment that is given before the --."""
    fields = set(config.flatten(Experiment(name=""))) - {"name"}
    for word in words:
        if word.startswith("--"):
            section, _, leaf = config.current_flags([word])[0][2:].partition("=")[0].replace("-", "_").rpartition(".")
            if {f"{section}.{leaf}".lstrip("."), f"{section}.{leaf.removeprefix('no_')}".lstrip(".")} & fields:
                raise UserError(
                    f"{word} is a flag of the experiment: put it after --, as in ./launch.sh sweep FILE.py AXIS … -- "
                    f"{word}; to vary that field, write it without the dashes"
                )
