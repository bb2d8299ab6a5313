"""A run directory: the files of a run by name, its lock, and whether it is this experiment's."""

import contextlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import filelock

from minigpt_jax import display
from minigpt_jax.config import Experiment, code, dumps, flag_name, flatten, from_json, options, to_json
from minigpt_jax.errors import UserError

Resume = Literal["auto", "always", "never"]

SEMANTICS = 2
"""What an experiment means, by number, as config.json records it; 1 where it records none.

2: dropout draws other masks.
"""
_NAME_BYTES, _PATH_BYTES = 255, 3800  # of Linux and macOS; a path leaves room for what a checkpoint holds
_PARTIAL = ".partial"
_LEFT_SECONDS = 3600


class RunDir:
    """The files of a run, by name. A `~` in front of the path is the home folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(os.path.expanduser(path))
        self.config = path / "config.json"
        self.experiment_file = path / "experiment.py"
        self.code = path / "code"
        self.tokenizer = path / "tokenizer"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples"
        self.tensorboard = path / "tensorboard"

    def sample(self, step: int) -> Path:
        """The texts sampled after so many steps."""
        return self.samples / f"step-{step:08}.txt"

    def rows(self, split: str) -> Path:
        """A split's tokenised rows, so that evaluation needs nothing else."""
        return self.path / "data" / f"{split}.npz"

    def description(self) -> dict[str, Any]:
        """What config.json holds. Raises UserError where there is none, or something leads out of the directory."""
        try:
            self.config.lstat()  # before anything is read of a folder that is no run
            check_contents(self.path)
            value = json.loads(self.config.read_text("utf-8", "surrogateescape"))
        except FileNotFoundError as error:
            raise UserError(f"{self.path} is not a run directory: {self._instead()}") from error
        except NotADirectoryError as error:
            raise UserError(f"{self.path} is not a run directory: it is a file; name one that training made") from error
        except OSError as error:
            raise UserError(f"{self.config} cannot be read: {error.strerror}; name another run directory") from error
        except ValueError as error:
            raise UserError(f"{self.config} is damaged ({error}); restore it or train anew") from error
        if not isinstance(value, dict):
            raise UserError(f"{self.config} is damaged (it holds no object); restore it or train anew")
        return value

    def _instead(self) -> str:
        """Why there is no config.json, and which folders to name instead."""
        if not self.path.is_dir():
            return "there is no such folder; name one that training made"
        parent = self.path / "trials" if (self.path / "sweep.json").exists() else self.path
        runs = sorted(str(path.parent) for path in parent.glob("*/config.json"))
        if not runs:
            return "it holds no config.json; name one that training made"
        more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
        return f"it holds runs; name one of them: {', '.join(runs[:3])}{more}"

    def experiment(self) -> Experiment:
        """The experiment that made this run."""
        description = self.description()
        if "experiment" not in description:
            raise UserError(f"{self.config} describes no experiment; name a run directory that training made")
        return from_json(description["experiment"])


def check_contents(folder: Path) -> None:
    """Raises UserError where a link in the folder leads out of it, or something is neither a file nor a folder.

    The folder may come from someone else: reading and writing in it must not reach beyond it. The folder may itself be
    a link, as to a larger disk.
    """
    root = os.path.realpath(folder)
    for parent, folders, files in os.walk(root):
        for path in (os.path.join(parent, name) for name in (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):  # training removes files meanwhile
                mode = os.lstat(path).st_mode
                if stat.S_ISLNK(mode):
                    target = os.path.realpath(path)
                    if os.path.commonpath([root, target]) != root:
                        raise UserError(
                            f"{path} links to {target}, outside of {folder}, and is not followed; remove the link, or "
                            "put the file itself in its place"
                        )
                elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise UserError(f"{path} is neither a file nor a folder; remove it")


def lock(run_dir: RunDir) -> contextlib.AbstractContextManager[object]:
    """Makes the folder and takes it for this process, until the returned context or the process ends.

    Raises UserError if another process has it, or if the path holds something that is not a run.
    """
    check_place(run_dir)
    if run_dir.path.is_dir() and not run_dir.config.exists():
        foreign = sorted(
            path.name for path in run_dir.path.iterdir() if path.name != ".lock" and path.suffix != _PARTIAL
        )
        if foreign:
            raise UserError(
                f"--run-dir {run_dir.path}: holds {foreign[0]} but no run of this program; name an empty or a new one"
            )
    run_dir.path.mkdir(parents=True, exist_ok=True)
    check_contents(run_dir.path)
    try:
        held = filelock.FileLock(run_dir.path / ".lock").acquire(blocking=False)
    except filelock.Timeout as error:
        raise UserError(
            f"--run-dir {run_dir.path}: another process is training in it; wait for it or name another folder"
        ) from error
    _remove_partial(run_dir.path)
    return held


def _remove_partial(folder: Path) -> None:
    """Removes what killed processes have left half written, and not what a report is writing at this moment."""
    for path in folder.rglob(f".*{_PARTIAL}"):
        if time.time() - path.lstat().st_mtime > _LEFT_SECONDS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_place(run_dir: RunDir) -> None:
    """Raises UserError if the path can hold no run."""
    path = run_dir.path.absolute()
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in path.parts) or len(os.fsencode(path)) > _PATH_BYTES:
        raise UserError(f"--run-dir {str(run_dir.path)[:60]}…: the name is too long; choose a shorter one")
    if magic := next((character for character in "[*?\\" if character in str(path)), None):
        raise UserError(
            f"--run-dir {path}: checkpoints cannot be saved under a path with {magic} in it; name a folder without any "
            "of [ * ? \\"
        )
    if not os.path.lexists(path):
        return
    if not path.exists():
        raise UserError(f"--run-dir {run_dir.path}: links to {path.resolve()}, which is not there; make that folder")
    if not path.is_dir():
        kind = "a file" if path.is_file() else "a device, a pipe or a socket"
        raise UserError(f"--run-dir {run_dir.path}: is {kind}; name a folder")


def check_room(run_dir: RunDir, needed: int) -> None:
    """Raises UserError if the path can hold no run or not be written, or its disk has less than `needed` bytes free."""
    check_place(run_dir)
    existing = next(path for path in (run_dir.path, *run_dir.path.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--run-dir {run_dir.path}: {existing} is a file; name another folder")
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
        if code.without_folder(ours[name]) != code.without_folder(theirs[name])
    ]
    recorded = run_dir.description().get("code", {})
    differences += [
        f"{path} has other contents than the copy in {run_dir.code}, which --{flag_name(name)} may name"
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
    """Warns where what has been trained and what is to come mean different things by the same experiment."""
    recorded = run_dir.description().get("semantics", 1)
    if recorded > SEMANTICS:
        raise UserError(
            f"--run-dir {run_dir.path} is of a newer minigpt_jax, and would not end as it would there; update this one"
        )
    if recorded < 2 and experiment.model.dropout and has_checkpoint(run_dir):
        display.warn(
            f"{run_dir.path} was begun by an earlier version, which drew other dropout masks: it resumes, and ends "
            "otherwise than in one go; for a run that can be repeated, train anew in another --run-dir"
        )


def has_checkpoint(run_dir: RunDir) -> bool:
    """Whether there is a checkpoint, damaged or not."""
    return run_dir.checkpoints.is_dir() and any(path.name.isdecimal() for path in run_dir.checkpoints.iterdir())


def check_resume(run_dir: RunDir, resume: Resume) -> None:
    """Raises UserError where there is nothing to resume and there should be, or the other way round."""
    there = has_checkpoint(run_dir)
    if resume == "always" and not there:
        raise UserError(f"--resume always: {run_dir.path} holds no checkpoint to resume; check --run-dir")
    if resume == "never" and there:
        raise UserError(
            f"--resume never: {run_dir.path} holds checkpoints already; name another --run-dir, or remove that folder"
        )


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which gets its name once all of it is on the disk; whatever had the name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("xb") as file:  # a new file, whatever stands there: never through a link
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(path: Path) -> Path:
    """A name beside `path` that nobody can foresee."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}")


def write_atomic(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def write_description(
    run_dir: RunDir,
    experiment: Experiment,
    fingerprints: dict[str, str],
    versions: dict[str, str],
    experiment_file: Path | None = None,
) -> None:
    """Writes config.json (the whole experiment, and what else its result depends on) and copies of the user's code.

    Args:
        experiment_file: the file that the experiment was defined in; its copy is for people to read, and never run.
    """
    description: dict[str, Any] = {
        "experiment": to_json(experiment),
        "fingerprints": fingerprints,
        "versions": versions,
        "semantics": SEMANTICS,
    }
    if files := code.files(experiment):
        description["code"] = {name: found.sha256 for name, found in files.items()}
    copies = {run_dir.code / name: found.source for name, found in files.items()}
    if experiment_file is not None and experiment_file.is_file():
        copies[run_dir.experiment_file] = experiment_file.read_bytes()
    for path, source in copies.items():
        with whole_file(path) as file:
            file.write(source)
    write_atomic(run_dir.config, dumps(description))


def write_tokenizer(run_dir: RunDir, save: Callable[[Path], None]) -> None:
    """Puts what `save(folder)` writes in the run directory, whole or not at all."""
    partial = _partial(run_dir.tokenizer)
    partial.mkdir()
    save(partial)
    shutil.rmtree(run_dir.tokenizer, ignore_errors=True)
    partial.rename(run_dir.tokenizer)


def read_metrics(run_dir: RunDir) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a crash cut short is left out."""
    lines = []
    text = run_dir.metrics.read_text("utf-8", "replace") if run_dir.metrics.exists() else ""
    for one in text.splitlines():
        try:
            line = json.loads(one)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def drop_records_after(run_dir: RunDir, step: int) -> None:
    """Takes out the lines and samples past `step`, which a resumed run is about to write again."""
    for path in run_dir.samples.glob("step-*.txt"):
        number = path.stem.removeprefix("step-")
        if number.isdecimal() and int(number) > step:
            path.unlink()
    lines = [line for line in read_metrics(run_dir) if line["step"] <= step]
    write_atomic(run_dir.metrics, "".join(json.dumps(line) + "\n" for line in lines))
