"""`minigpt sweep FILE.py AXIS …`: trials over the fields of an experiment."""

import shlex
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from minigpt_jax import cli
from minigpt_jax.cli import jax_setup
from minigpt_jax.cli.train import load_file
from minigpt_jax.config import Experiment
from minigpt_jax.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Trains an experiment's trials over one or several axes, many of them in one program.

    An axis is optimizer.learning_rate=1e-3,3e-3 (values) or optimizer.learning_rate=1e-4..1e-2:log (a range); any field
    of the experiment will do. Seeds are replicates: seed=0,1,2 trains every configuration three times. What follows --
    are flags of the experiment. The same command again goes on where the sweep stopped; started several times, on any
    machines that share the folder (or the --storage), it shares out the work.
    """

    file: tyro.conf.Positional[str]
    """The experiment's file."""
    axes: tyro.conf.Positional[tuple[str, ...]]
    """What varies."""
    search: Literal["grid", "random", "tpe"] = "grid"
    """All combinations, random ones, or those that a tree-structured Parzen estimator finds promising."""
    trials: int | None = None
    """Configurations to try; all of a grid, 20 of a search by default."""
    storage: str | None = None
    """A database to share, such as postgresql+psycopg://user@host/database; by default a journal in the folder."""
    name: str | None = None
    """Names the folder, runs/sweeps/NAME; the experiment's name by default."""
    prune: bool | None = None
    """Stop the worse half of the configurations at a quarter and at half of the steps; by default unless a grid."""
    stack: int | None = None
    """Trials in one program, at most; as many as are worth it and fit into memory by default."""
    lease: float = 60.0
    """Seconds without a sign of life after which a worker's trials are handed to another."""


@dataclass(frozen=True)
class Flags:
    """Flags of the experiment, the same for all trials."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(arguments: list[str]) -> int:
    """Sweeps; returns the exit status."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    own, flags = arguments[:cut], arguments[cut + 1 :]
    chosen = tyro.cli(Arguments, args=own, prog="minigpt sweep")
    defined = load_file(chosen.file)
    if not isinstance(defined, Experiment):
        raise UserError(f"{chosen.file} defines a main() and no experiment; run it as it is, or name another file")
    prog = f"minigpt sweep {chosen.file} … --"
    experiment = tyro.cli(Flags, args=flags, prog=prog, default=Flags(defined)).experiment

    jax_setup.prepare()
    from minigpt_jax import parallel, report, sweep
    from minigpt_jax.sweep import axes

    parallel.use_all_cores()
    plan = sweep.make(
        experiment,
        axes.parse(chosen.axes),
        chosen.search,
        chosen.trials,
        chosen.name,
        chosen.prune,
        file=chosen.file,
        flags=tuple(flags),
        command=shlex.join(["./launch.sh", "sweep", *arguments]),
    )
    outcome = sweep.sweep(plan, storage=chosen.storage, lease=chosen.lease, most=chosen.stack)
    if outcome.interrupted:
        print(f"stopped after {len(outcome.rows)} trials, saved; the same command again goes on from there")
        return cli.INTERRUPTED
    page = report.sweep(plan.folder)
    ends = [row for row in outcome.rows if row["status"] == "complete"]
    best = min(ends, key=lambda row: row["loss"], default=None)
    if best is not None:
        print(f"best: {best['trial']}, validation loss {best['loss']:.4f}, in {plan.folder / best['run_dir']}")
    print(f"done: {len(outcome.rows)} trials, {len(ends)} complete; the results are in {plan.folder}")
    print(f"report: {page}")
    return 0
