"""Whether a run directory can be resumed with an experiment."""

from typing import Literal

from minigpt_jax import display
from minigpt_jax.config import Experiment, code, flag_name, flatten, options
from minigpt_jax.errors import UserError
from minigpt_jax.storage.run_dir import SEMANTICS, RunDir, has_checkpoint

Resume = Literal["auto", "always", "never"]


def check_same(run_dir: RunDir, experiment: Experiment, fingerprints: dict[str, str] | None = None) -> None:
    """Checks that the run in this directory, if there is one, belongs to the experiment.

    Only the fields that cannot change on resume are compared, and the user's code.

    Args:
        fingerprints: hashes of corpus and tokenizer, by name, if they are to be compared as well.

    Raises:
        UserError: the run is of another experiment, or of a newer version. The message lists all differences.
    """
    if not run_dir.config.exists():
        return
    theirs, ours = flatten(run_dir.experiment()), flatten(experiment)
    unknown = [option.name for option in options(experiment) if option.facts.of_tokenizer]
    fixed = [option.name for option in options(experiment) if not option.facts.resumable]
    differences = [
        f"--{flag_name(name)} is {ours[name]} here and {theirs[name]} there"
        for name in fixed
        if code.without_folder(ours[name]) != code.without_folder(theirs[name])
        and not (name in unknown and None in (ours[name], theirs[name]))
    ]
    recorded = run_dir.description().get("code", {})
    differences += [
        f"{path} differs from the copy in {run_dir.code}; --{flag_name(name)} may name that copy"
        for name, path, sha256 in code.sums(experiment)
        if name in fixed and sha256 != recorded.get(path.name)
    ]
    if fingerprints is not None and not differences:
        recorded = run_dir.description().get("fingerprints", {})
        differences = [
            f"the {name}'s contents differ" for name in fingerprints if fingerprints[name] != recorded.get(name)
        ]
    if differences:
        raise UserError(
            f"--run-dir {run_dir.path} belongs to another experiment: {'; '.join(differences)}; "
            "name another --run-dir, or remove that folder"
        )
    if fingerprints is not None:
        _check_semantics(run_dir, experiment)


def _check_semantics(run_dir: RunDir, experiment: Experiment) -> None:
    """Warns if an earlier version, which trained the same experiment differently, began this run."""
    recorded = run_dir.description().get("semantics", 1)
    if recorded > SEMANTICS:
        raise UserError(
            f"--run-dir {run_dir.path} was made by a newer minigpt_jax, which trains differently; update to resume it"
        )
    if recorded < 2 and experiment.model.dropout and has_checkpoint(run_dir):
        display.warn(
            f"{run_dir.path} was begun by an earlier version, which drew other dropout masks. It resumes, but its "
            "result cannot be reproduced by either version; for a reproducible run, train from scratch in another "
            "--run-dir"
        )


def check_resume(run_dir: RunDir, resume: Resume) -> None:
    """Raises UserError if `resume` is always and there is no checkpoint, or if it is never and there is one."""
    saved = has_checkpoint(run_dir)
    if resume == "always" and not saved:
        raise UserError(f"--resume always: {run_dir.path} holds no checkpoint to resume; check --run-dir")
    if resume == "never" and saved:
        raise UserError(
            f"--resume never: {run_dir.path} already holds checkpoints; name another --run-dir, or remove that folder"
        )
