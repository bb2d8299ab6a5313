"""The copies that a run directory keeps of the code of the user's own that its experiment names, and when they run.

Run directories are passed around, so nothing in one runs unasked.
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
    """The experiment of a run directory, with the code that its model needs run.

    Args:
        trust_code: run the copies of the run directory.
        code_files: files of the user's own to run in their place: of the copy's name, or any if there is but one copy.

    Raises:
        UserError: the model needs code that may not be run, or whose file is missing or damaged.
    """
    experiment = run_dir.experiment()
    of_model = {
        Path(value.rpartition(":")[0]).name: (option, value)
        for option, value in code.named(experiment)
        if option.startswith("model.")
    }
    given = {Path(file).name: Path(file).expanduser() for file in code_files}
    if len(given) == len(of_model) == 1:
        given = dict(zip(of_model, given.values(), strict=True))
    if unknown := [str(given[name]) for name in given if name not in of_model]:
        raise UserError(f"--code {unknown[0]}: the model of {run_dir.path} takes code of {_listed(of_model)} alone")
    recorded = _recorded(run_dir)
    for file, (option, value) in of_model.items():
        flag = f"--{flag_name(option)} {value}"
        if file not in given and not trust_code:
            raise UserError(
                f"{run_dir.path} needs code of its own ({flag}), which is not run unasked: --trust-code runs the copy "
                f"in {run_dir.code}, --code {file} a file of yours"
            )
        path = given.get(file, run_dir.code / file)
        try:
            same = hashlib.sha256(path.read_bytes()).hexdigest() == recorded.get(file)
        except OSError as error:
            raise UserError(f"{flag}: {path} cannot be read ({error.strerror}); give the file by --code") from error
        if not same and file in given:
            display.warn(f"--code {path} has other contents than the file that {run_dir.path} was trained with")
        elif not same:
            raise UserError(f"{flag}: {path} is not what the run was trained with; give the file by --code")
        experiment = code.replaced(experiment, file, path)
    return experiment


def _recorded(run_dir: RunDir) -> dict[str, Any]:
    recorded = run_dir.description().get("code")
    return recorded if isinstance(recorded, dict) else {}


def _listed(names: dict[str, Any]) -> str:
    return ", ".join(names) or "no file"
