"""Runs the user's code that the experiment of a run directory names, from the run directory's copies or other files.

Run directories may come from other people, so the code in them runs only if the user allows it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigpt_jax import display
from minigpt_jax.config import Experiment, code, flag_name
from minigpt_jax.errors import UserError
from minigpt_jax.storage.run_dir import RunDir


def trusted_experiment(
    run_dir: RunDir, *, trust_code: bool = False, code_files: Sequence[str | Path] = ()
) -> Experiment:
    """The experiment of a run directory, after running the code that its model needs.

    Args:
        trust_code: whether the copies in the run directory may run.
        code_files: files to run instead of the copies of the same names. If the model needs a single file, its name may
            differ.

    Raises:
        UserError: the model needs code that may not run, or whose file is missing or damaged; or the model does not
            need one of `code_files`.
    """
    experiment = run_dir.experiment()
    of_model = _of_model(experiment)
    given = {Path(file).name: Path(file).expanduser() for file in code_files}
    if len(given) == len(of_model) == 1:
        given = dict(zip(of_model, given.values(), strict=True))
    if unknown := [str(given[name]) for name in given if name not in of_model]:
        raise UserError(
            f"--code {unknown[0]}: the model of {run_dir.path} does not use this file; it uses {_listed(of_model)}"
        )
    recorded = _recorded(run_dir)
    for file, (option, value) in of_model.items():
        flag = f"--{flag_name(option)} {value}"
        if file not in given and not trust_code:
            raise UserError(
                f"{run_dir.path} needs user code ({flag}), which does not run by default: give --trust-code to run the "
                f"copy in {run_dir.code}, or --code {file} to run a file of yours"
            )
        path = given.get(file, run_dir.code / file)
        try:
            same = hashlib.sha256(path.read_bytes()).hexdigest() == recorded.get(file)
        except OSError as error:
            raise UserError(f"{flag}: {path} cannot be read ({error.strerror}); give the file by --code") from error
        if not same and file in given:
            display.warn(f"--code {path} differs from the file that {run_dir.path} was trained with")
        elif not same:
            raise UserError(
                f"{flag}: {path} differs from the file that the run was trained with; give that file by --code"
            )
        experiment = code.replaced(experiment, file, path)
    return experiment


def code_by_run(run_dirs: Sequence[Path], code_files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """For each of several run directories those of the files that its model names.

    A single run directory gets all files, as the name of the only one that its model needs may differ.

    Raises:
        UserError: a folder holds no run, or no model names one of the files.
    """
    if len(run_dirs) == 1 or not code_files:
        return [tuple(code_files)] * len(run_dirs)
    named = [_of_model(RunDir(path).experiment()) for path in run_dirs]
    for file in code_files:
        if not any(file.name in names for names in named):
            known = _listed(dict.fromkeys(name for names in named for name in names))
            raise UserError(f"--code {file}: none of these models uses a file of this name; they use {known}")
    return [tuple(file for file in code_files if file.name in names) for names in named]


def _of_model(experiment: Experiment) -> dict[str, tuple[str, str]]:
    """The files that the experiment's model names, each with the field and its value."""
    return {
        Path(value.rpartition(":")[0]).name: (option, value)
        for option, value in code.named(experiment)
        if option.startswith("model.")
    }


def _recorded(run_dir: RunDir) -> dict[str, Any]:
    recorded = run_dir.description().get("code")
    return recorded if isinstance(recorded, dict) else {}


def _listed(names: dict[str, Any]) -> str:
    return ", ".join(names) or "no file"
