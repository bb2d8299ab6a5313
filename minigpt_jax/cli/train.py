"""`minigpt train FILE.py`: every field of the file's experiment is a flag."""

import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from minigpt_jax import cli, distributed
from minigpt_jax.config import Experiment
from minigpt_jax.distributed import Distributed
from minigpt_jax.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Train an experiment. The same command again goes on from the run's latest checkpoint."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Folder of the run; runs/NAME by default."""
    resume: Literal["auto", "always", "never"] = "auto"
    """auto: go on from a checkpoint if there is one; always: refuse to start anew; never: refuse to go on."""
    distributed: Distributed = field(default_factory=Distributed)


def main(arguments: list[str]) -> int:
    """Trains; returns the exit status."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: minigpt train FILE.py [flags]; minigpt train FILE.py --help lists the flags")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    file, *flags = arguments
    default = Arguments(load_experiment(file))
    chosen = tyro.cli(Arguments, args=flags, prog=f"minigpt train {file}", default=default)

    from minigpt_jax.cli import jax_setup  # what follows takes seconds, and a wrong flag is told at once

    jax_setup.prepare()
    from minigpt_jax import run

    with distributed.joined(chosen.distributed):
        result = run.run(chosen.experiment, chosen.run_dir, resume=chosen.resume)
    if result.interrupted:
        print(f"stopped at step {result.progress.step:,}, saved; the same command again goes on from there")
        return cli.INTERRUPTED
    print(f"done: {result.progress.step:,} steps; the run is in {result.run_dir}")
    return 0


def load_experiment(file: str) -> Experiment:
    """The `experiment` that a Python file defines.

    Raises:
        UserError: there is no such file, it cannot be run, or it defines none.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{file}: there is no such experiment file; name one such as experiments/quickstart.py")
    try:
        defined = runpy.run_path(str(path), run_name="minigpt_experiment")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} cannot be run: {type(error).__name__}: {error}; mend the file") from error
    experiment = defined.get("experiment")
    if not isinstance(experiment, Experiment):
        raise UserError(f"{file} defines no experiment; it needs a line such as experiment = Experiment(name='mine')")
    return experiment
