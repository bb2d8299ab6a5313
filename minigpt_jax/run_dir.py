"""A run directory: the files of a run by name, its lock, and whether it is this experiment's."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

from minigpt_jax.config import Experiment, dumps, flag_name, flatten, from_json, options, to_json
from minigpt_jax.errors import UserError

Resume = Literal["auto", "always", "never"]


class RunDir:
    """The files of a run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.tokenizer = path / "tokenizer"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples"
        self.tensorboard = path / "tensorboard"

    def rows(self, split: str) -> Path:
        """A split's tokenised rows, so that evaluation needs nothing else."""
        return self.path / "data" / f"{split}.npz"

    def description(self) -> dict[str, Any]:
        """What config.json holds. Raises UserError where there is none."""
        try:
            description = json.loads(self.config.read_text())
        except FileNotFoundError as error:
            known = "it holds no config.json" if self.path.is_dir() else "there is no such folder"
            raise UserError(f"{self.path} is not a run directory: {known}; name one that training made") from error
        except (ValueError, NotADirectoryError) as error:
            raise UserError(f"{self.config} is damaged ({error}); restore it or train anew") from error
        if not isinstance(description, dict):
            raise UserError(f"{self.config} is damaged (it holds no JSON object); restore it or train anew")
        return description

    def experiment(self) -> Experiment:
        """The experiment that made this run."""
        description = self.description()
        if "experiment" not in description:
            raise UserError(f"{self.config} describes no experiment; name a run directory that training made")
        return from_json(description["experiment"])


def lock(run_dir: RunDir) -> IO[str]:
    """Makes the folder and takes it for this process until the returned file is closed or the process ends.

    Raises UserError if another process has it, or if the path holds something that is not a run.
    """
    if run_dir.path.exists() and not run_dir.path.is_dir():
        raise UserError(f"--run-dir {run_dir.path}: is a file; name a folder")
    if run_dir.path.is_dir() and not run_dir.config.exists():
        foreign = sorted(path.name for path in run_dir.path.iterdir() if path.name != ".lock")
        if foreign:
            raise UserError(
                f"--run-dir {run_dir.path}: holds {foreign[0]} but no run of this program; name an empty or a new one"
            )
    run_dir.path.mkdir(parents=True, exist_ok=True)
    file = (run_dir.path / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"--run-dir {run_dir.path}: another process is training in it; wait for it or name another folder"
        ) from error
    return file


def check_room(run_dir: RunDir, needed: int) -> None:
    """Raises UserError if the folder cannot be written, or its disk has fewer than `needed` bytes free."""
    existing = next(path for path in (run_dir.path, *run_dir.path.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"--run-dir {run_dir.path}: {existing} cannot be written; name another folder")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"--run-dir {run_dir.path}: its disk has {free / 2**20:,.0f} MB free and the run needs about "
            f"{needed / 2**20:,.0f} MB; free some or name another folder"
        )


def check_same(run_dir: RunDir, experiment: Experiment, fingerprints: dict[str, str] | None = None) -> None:
    """Raises UserError, field by field, if the run in this directory is another experiment's."""
    if not run_dir.config.exists():
        return
    theirs, ours = flatten(run_dir.experiment()), flatten(experiment)
    fixed = [option.name for option in options(experiment) if not option.facts.resumable]
    differences = [
        f"--{flag_name(name)} is {ours[name]} here and {theirs[name]} there"
        for name in fixed
        if ours[name] != theirs[name]
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


def check_resume(run_dir: RunDir, resume: Resume) -> None:
    """Raises UserError where there is nothing to go on from and there should be, or the other way round."""
    there = run_dir.checkpoints.is_dir() and any(path.name.isdigit() for path in run_dir.checkpoints.iterdir())
    if resume == "always" and not there:
        raise UserError(f"--resume always: {run_dir.path} holds no checkpoint to go on from; check --run-dir")
    if resume == "never" and there:
        raise UserError(
            f"--resume never: {run_dir.path} holds checkpoints already; name another --run-dir, or remove that folder"
        )


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def write_description(
    run_dir: RunDir, experiment: Experiment, fingerprints: dict[str, str], versions: dict[str, str]
) -> None:
    """Writes config.json: the whole experiment, and what else its result depends on."""
    description = {"experiment": to_json(experiment), "fingerprints": fingerprints, "versions": versions}
    write_whole(run_dir.config, dumps(description))


def write_tokenizer(run_dir: RunDir, save: Callable[[Path], None]) -> None:
    """Puts what `save(folder)` writes in the run directory, whole or not at all."""
    partial = run_dir.tokenizer.with_name("tokenizer.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(partial)
    shutil.rmtree(run_dir.tokenizer, ignore_errors=True)
    partial.rename(run_dir.tokenizer)


def read_metrics(run_dir: RunDir) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a crash cut short is left out."""
    lines = []
    for text in run_dir.metrics.read_text(errors="replace").splitlines() if run_dir.metrics.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def drop_records_after(run_dir: RunDir, step: int) -> None:
    """Takes out the lines and samples past `step`, which a resumed run is about to write again."""
    for path in run_dir.samples.glob("step-*.txt"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    lines = [line for line in read_metrics(run_dir) if line["step"] <= step]
    write_whole(run_dir.metrics, "".join(json.dumps(line) + "\n" for line in lines))
