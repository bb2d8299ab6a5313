"""`minigpt train FILE.py`: every field of the file's experiment is a flag."""

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from minigpt_jax import cli, config
from minigpt_jax.cli import jax_setup, parser
from minigpt_jax.config import Experiment
from minigpt_jax.errors import UserError, place_of, reason_of
from minigpt_jax.parallel import cluster
from minigpt_jax.parallel.cluster import Distributed

if TYPE_CHECKING:
    from minigpt_jax.generate import LanguageModel
    from minigpt_jax.storage.run_dir import RunDir


@dataclass(frozen=True)
class Arguments:
    """Train an experiment. The same command again resumes from the run's latest checkpoint."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Folder of the run; runs/NAME by default."""
    init_from: Path | None = None
    """A run directory or a Hugging Face folder, from whose weights training starts, at step 0. The model, the tokenizer
    and, unless a flag sets it, the sequence length are taken from there, everything else from FILE.py and the flags."""
    resume: Literal["auto", "always", "never"] = "auto"
    """auto: resume from a checkpoint if there is one; always: refuse to start from scratch; never: refuse to resume."""
    distributed: Distributed = field(default_factory=Distributed)


def main(arguments: list[str]) -> int:
    """Trains. Returns the exit status."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: minigpt train FILE.py [flags]; minigpt train FILE.py --help lists the flags")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    file, *flags = arguments
    defined = load_file(file)
    if callable(defined):
        jax_setup.prepare()
        return defined(flags)

    def parse(default: Arguments) -> Arguments:
        return parser.parse(Arguments, config.current_flags(flags), f"minigpt train {file}", default)

    chosen = parse(Arguments(defined))
    wanted = with_own_size(chosen.experiment, flags) if chosen.init_from is None else _inheriting(chosen, parse)
    config.validate(wanted)  # `run` does so too, but only after the import of JAX

    jax_setup.prepare()
    from minigpt_jax.trial.run import run

    with cluster.joined(chosen.distributed):
        # Only now, as code that computes with JAX when it is imported would keep the processes from joining.
        experiment = config.code.load(wanted, [Path.cwd(), Path(file).parent])
        initial = None if chosen.init_from is None or _resumes(chosen) else initial_model(chosen.init_from, experiment)
        result = run(experiment, chosen.run_dir, resume=chosen.resume, experiment_file=Path(file), init_from=initial)
    if result.interrupted:
        print(f"stopped at step {result.progress.step:,}, saved; the same command again resumes from there")
        return cli.INTERRUPTED
    early = ""
    if result.best_step is not None:
        early = (
            f", as validation has not improved on step {result.best_step:,} for "
            f"{chosen.experiment.train.patience} evaluations (--train.patience)"
        )
    print(f"done: {result.progress.step:,} steps{early}; the run is in {result.run_dir}")
    return 0


def _inheriting(chosen: Arguments, parse: Callable[[Arguments], Arguments]) -> Experiment:
    """The experiment of training that starts from the model of `chosen.init_from`.

    Raises:
        UserError: the folder has no model, a flag contradicts it, or the run directory has a run of another origin.
    """
    jax_setup.prepare()
    from minigpt_jax.trial import initial

    path = chosen.init_from
    assert path is not None, "there is nothing to start from"
    run_dir = _run_dir(chosen)
    initial.check_origin(run_dir, Path(os.path.expanduser(path)).absolute())
    # Where the run resumes, the initial folder may be gone.
    trained = run_dir.experiment() if _resumes(chosen) else initial_experiment(path)
    return inheriting(
        path, trained, chosen.experiment, lambda default: parse(replace(chosen, experiment=default)).experiment
    )


def inheriting(
    path: Path, trained: Experiment, experiment: Experiment, parse: Callable[[Experiment], Experiment]
) -> Experiment:
    """The experiment of training that starts from the model of another one.

    Args:
        path: the folder of that model.
        trained: its experiment.
        experiment: gives everything but the model, the tokenizer and the sequence length.
        parse: gives the experiment of the command's flags, from the values of flags that are not given.

    Raises:
        UserError: a flag contradicts the model.
    """
    inherited = config.inherited(experiment, trained)
    # A flag may repeat the model's own value, so values are compared, not whether a flag was given.
    wanted = parse(inherited)
    config.check_inherited(wanted, inherited, f"the model of --init-from {path}")
    return wanted


def initial_experiment(path: Path) -> Experiment:
    """The experiment of a model to start from. Raises UserError if the folder has none."""
    from minigpt_jax.interchange import huggingface
    from minigpt_jax.storage.run_dir import RunDir

    try:
        return huggingface.read_experiment(path) if huggingface.is_folder(path) else RunDir(path).experiment()
    except UserError as error:
        raise UserError(f"--init-from {path}: {error}") from error


def initial_model(path: Path, experiment: Experiment) -> "LanguageModel":
    """The model to start from, with the code that the experiment's model names."""
    from minigpt_jax import generate
    from minigpt_jax.interchange import huggingface

    if huggingface.is_folder(path):
        return huggingface.load_huggingface(path)
    files = {code for option, code, _ in config.code.sums(experiment) if option.startswith("model.")}
    return generate.load(path, code=sorted(files))


def _run_dir(chosen: Arguments) -> "RunDir":
    from minigpt_jax.storage.run_dir import RunDir

    return RunDir(chosen.run_dir or Path("runs") / chosen.experiment.name)


def _resumes(chosen: Arguments) -> bool:
    from minigpt_jax.storage.run_dir import has_checkpoint

    return has_checkpoint(_run_dir(chosen))


def with_own_size(experiment: Experiment, flags: Sequence[str]) -> Experiment:
    """The experiment whose flags name another tokenizer, with the size of its vocabulary, if the tokenizer has its own.

    The size that the experiment's file gives is that of the tokenizer that the file names.
    """
    given = {flag.partition("=")[0].replace("_", "-") for flag in flags}
    others = {"--tokenizer.kind", "--tokenizer.file"} & given
    if not experiment.tokenizer.sizes_itself or not others or "--tokenizer.vocabulary-size" in given:
        return experiment
    return replace(experiment, tokenizer=replace(experiment.tokenizer, vocabulary_size=None))


def load_file(file: str) -> Experiment | Callable[[list[str]], int]:
    """What a Python file defines: an `experiment`, or a `main(arguments)` of its own, as benchmarks do.

    Raises:
        UserError: there is no such file, it cannot be run, it defines neither, or a field has a value that it cannot
            take.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{file}: there is no such experiment file; name one such as experiments/quickstart.py")
    if path.suffix != ".py":
        raise UserError(f"{file} is no .py file that defines an experiment{cli.text_hint(file)}")
    try:
        defined = _run_file(path)
    except Exception as error:
        place = place_of(error, {str(path), str(path.absolute())}) or f"{file} cannot be run"
        reason = str(error) if isinstance(error, UserError) else f"{reason_of(error)}; fix the file"
        raise UserError(f"{place}: {reason}") from error
    experiment = defined.get("experiment")
    if isinstance(experiment, Experiment):
        try:
            config.check_fields(experiment)  # before the flags, which are parsed against these values
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        return experiment
    if "experiment" not in defined and callable(defined.get("main")):
        return defined["main"]
    raise UserError(f"{file} defines no experiment; it needs a line such as experiment = Experiment(name='mine')")


def _run_file(path: Path) -> dict[str, Any]:
    """The names that a file defines. It becomes a module, so that the help can be read from its classes' source."""
    spec = importlib.util.spec_from_file_location("minigpt_experiment", path)
    assert spec is not None and spec.loader is not None, path  # noqa: PT018
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def load_experiment(file: str) -> Experiment:
    """The `experiment` that a Python file defines.

    Raises:
        UserError: as `load_file`, and where the file is a program of its own.
    """
    defined = load_file(file)
    if not isinstance(defined, Experiment):
        raise UserError(f"{file} is a benchmark and defines no experiment; run it alone: ./launch.sh {file}")
    return defined
