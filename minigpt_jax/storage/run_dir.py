"""A run directory: the names of its files, its lock, and how they are read and written."""

import contextlib
import filecmp
import json
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from minigpt_jax.config import Experiment, code, dumps, from_json, to_json
from minigpt_jax.errors import UserError

SEMANTICS = 2
"""The version of the semantics of experiments, which config.json records. A run without a version has 1.
Version 2 draws other dropout masks than version 1."""
_NAME_BYTES, _PATH_BYTES = 255, 3800  # limits of Linux and macOS, minus the length of the paths in a checkpoint
_PARTIAL = ".partial"
_LOCK = ".lock"
_COUNTED_CHECKPOINTS = 10
_ABANDONED_SECONDS = 3600  # a partial file that is older was left by a killed process


class InUseError(UserError):
    """Another process holds the lock of a run directory."""


class RunDir:
    """The paths of a run's files. A leading `~` of `path` is the home folder."""

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
        """The file of the texts that are sampled after `step` steps."""
        return self.samples / f"step-{step:08}.txt"

    def rows(self, split: str) -> Path:
        """The file of a split's tokenised rows, with which evaluation does not need the corpus."""
        return self.path / "data" / f"{split}.npz"

    def description(self) -> dict[str, Any]:
        """Reads config.json. Raises UserError if it is missing or damaged, or if a link leads out of the directory."""
        try:
            self.config.lstat()  # fails early if the folder is not a run directory
            check_contents(self.path)
            value = json.loads(self.config.read_text("utf-8", "surrogateescape"))
        except FileNotFoundError as error:
            raise UserError(f"{self.path} is not a run directory: {self._instead()}") from error
        except NotADirectoryError as error:
            raise UserError(f"{self.path} is not a run directory: it is a file; name one that training made") from error
        except OSError as error:
            raise UserError(f"{self.config} cannot be read: {error.strerror}; name another run directory") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.config} is damaged ({error}); restore it or train from scratch") from error
        if not isinstance(value, dict):
            raise UserError(f"{self.config} is damaged (it holds no object); restore it or train from scratch")
        return value

    def _instead(self) -> str:
        """The reason why there is no config.json, and the folders that the user may have meant."""
        if not self.path.is_dir():
            return "there is no such folder; name one that training made"
        parent = self.path / "trials" if (self.path / "sweep.json").exists() else self.path
        runs = sorted(str(path.parent) for path in parent.glob("*/config.json"))
        if not runs:
            return "it holds no config.json; name one that training made"
        more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
        return f"it holds runs; name one of them: {', '.join(runs[:3])}{more}"

    def experiment(self) -> Experiment:
        """Reads the experiment of this run. Raises UserError as `description`, or if the experiment is invalid."""
        description = self.description()
        if "experiment" not in description:
            raise UserError(f"{self.config} describes no experiment; name a run directory that training made")
        return from_json(description["experiment"])


def check_contents(folder: Path) -> None:
    """Checks that the folder holds only files, folders, and links that do not lead out of it.

    The folder may come from someone else, so reading and writing in it must not reach other files. The folder itself
    may be a link, to a larger disk for example. What is in the folder `wandb` of a run, or of the trials of a sweep, is
    not looked at: Weights & Biases links to its logs there. This project follows no link in it.

    Raises:
        UserError: the folder holds something else.
    """
    root = os.path.realpath(folder)
    for parent, folders, files in os.walk(root):
        if parent == root or os.path.dirname(parent) == os.path.join(root, "trials"):
            files, folders[:] = [*files, *folders], [name for name in folders if name != "wandb"]
        for path in (os.path.join(parent, name) for name in {*folders, *files}):
            with contextlib.suppress(FileNotFoundError):  # a running training may have removed the file
                mode = os.lstat(path).st_mode
                if stat.S_ISLNK(mode):
                    target = os.path.realpath(path)
                    if os.path.commonpath([root, target]) != root:
                        raise UserError(
                            f"{path} links to {target}, outside of {folder}, which is not allowed; remove the link, or "
                            "replace it by the file itself"
                        )
                elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise UserError(f"{path} is neither a file nor a folder; remove it")


def lock(run_dir: RunDir) -> contextlib.AbstractContextManager[object]:
    """Makes the folder and locks it for this process, until the returned context or the process ends.

    Raises:
        InUseError: another process holds the lock.
        UserError: the path cannot hold a run, or the folder holds other files.
    """
    check_place(run_dir)
    _check_not_foreign(run_dir)
    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--run-dir {run_dir.path}: this folder cannot be made ({error.strerror}); name another one"
        ) from error
    check_contents(run_dir.path)
    held = _locked(run_dir)
    _remove_partial(run_dir.path)
    return held


def check_free(run_dir: RunDir) -> None:
    """Raises the errors of `lock` that can be known without making the folder."""
    _check_not_foreign(run_dir)
    if (run_dir.path / _LOCK).exists():
        _locked(run_dir).__exit__(None, None, None)


def _locked(run_dir: RunDir) -> contextlib.AbstractContextManager[object]:
    try:
        return filelock.FileLock(run_dir.path / _LOCK).acquire(blocking=False)
    except filelock.Timeout as error:
        raise InUseError(
            f"--run-dir {run_dir.path}: another process is training in it; wait for it or name another folder"
        ) from error


def _check_not_foreign(run_dir: RunDir) -> None:
    """Raises UserError if the folder holds other files and no run."""
    if run_dir.path.is_dir() and not run_dir.config.exists():
        foreign = sorted(path.name for path in run_dir.path.iterdir() if path.name != _LOCK and path.suffix != _PARTIAL)
        if foreign:
            raise UserError(
                f"--run-dir {run_dir.path}: holds {foreign[0]} but no run of this program; name an empty or a new one"
            )


def _remove_partial(folder: Path) -> None:
    """Removes the partial files of killed processes. Recent ones are left, because a report may be writing them."""
    for path in folder.rglob(f".*{_PARTIAL}"):
        if time.time() - path.lstat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_place(run_dir: RunDir, flag: str = "--run-dir") -> None:
    """Raises UserError if the path has a name that is too long or not allowed by Orbax, or is not a folder."""
    path = run_dir.path.absolute()
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in path.parts) or len(os.fsencode(path)) > _PATH_BYTES:
        raise UserError(f"{flag} {str(run_dir.path)[:60]}…: the name is too long; choose a shorter one")
    if special := next((character for character in "[*?\\" if character in str(path)), None):
        raise UserError(
            f"{flag} {path}: checkpoints cannot be saved under a path with {special} in it; name a folder without "
            "the characters [ * ? \\"
        )
    if not os.path.lexists(path):
        return
    if not path.exists():
        raise UserError(f"{flag} {run_dir.path}: links to {path.resolve()}, which does not exist; make that folder")
    if not path.is_dir():
        kind = "a file" if path.is_file() else "a device, a pipe or a socket"
        raise UserError(f"{flag} {run_dir.path}: is {kind}; name a folder")


def check_room(run_dir: RunDir, needed: int, flag: str = "--run-dir") -> None:
    """Checks that a run can be written to the path.

    Args:
        needed: the number of bytes that the run needs, roughly.
        flag: the flag that chooses the path, for the message.

    Raises:
        UserError: the path cannot hold a run, cannot be written, or its disk has less free space.
    """
    check_place(run_dir, flag)
    existing = next(path for path in (run_dir.path, *run_dir.path.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{flag} {run_dir.path}: {existing} is a file; name another folder")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{flag} {run_dir.path}: {existing} cannot be written; name another folder")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{flag} {run_dir.path}: its disk has {free // 1_000_000:,} MB free and about "
            f"{math.ceil(needed / 1e6):,} MB are needed; free some space or name another folder"
        )


def bytes_needed(weights: int, keep_checkpoints: int) -> int:
    """Roughly the bytes that a run writes.

    Args:
        weights: the bytes of the model's weights. A checkpoint has them three times, with the optimiser's state.
        keep_checkpoints: the number of latest checkpoints to keep, which a run may not reach.
    """
    return 3 * weights * (2 + min(keep_checkpoints, _COUNTED_CHECKPOINTS))


def has_checkpoint(run_dir: RunDir) -> bool:
    """Whether the run directory has a checkpoint, which may be damaged."""
    return run_dir.checkpoints.is_dir() and any(path.name.isdecimal() for path in run_dir.checkpoints.iterdir())


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file for writing, which atomically replaces `path` once all its contents are on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("xb") as file:  # a new file, so that no link is followed
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _partial(path: Path) -> Path:
    """A path in the same folder, with a name that cannot be predicted."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}")


def write_atomic(path: Path, text: str) -> None:
    """Writes a file atomically: readers find the old contents or the new ones, also after a crash."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def write_description(
    run_dir: RunDir,
    experiment: Experiment,
    fingerprints: dict[str, str],
    versions: dict[str, str],
    experiment_file: Path | None = None,
    **more: Any,
) -> None:
    """Writes config.json, and copies of the user's code.

    Args:
        fingerprints: hashes of corpus and tokenizer, by name.
        versions: versions of packages, by name.
        experiment_file: the file that defines the experiment; its copy is for people to read, and is never run.
        more: further entries of config.json. Those that are None are left out.
    """
    # The checkpoints of a run that an earlier version began stay those of its semantics.
    semantics = run_dir.description().get("semantics", 1) if has_checkpoint(run_dir) else SEMANTICS
    description = {"experiment": to_json(experiment), "fingerprints": fingerprints, "versions": versions}
    description |= {"semantics": semantics, **{name: value for name, value in more.items() if value is not None}}
    if files := code.files(experiment):
        description["code"] = {name: found.sha256 for name, found in files.items()}
    write_atomic(run_dir.config, dumps(description))  # first, as it makes the folder that of a run
    copies = {run_dir.code / name: found.source for name, found in files.items()}
    if experiment_file is not None and experiment_file.is_file():
        copies[run_dir.experiment_file] = experiment_file.read_bytes()
    for path, source in copies.items():
        with whole_file(path) as file:
            file.write(source)


def write_tokenizer(run_dir: RunDir, save: Callable[[Path], None]) -> None:
    """Writes the tokenizer into the run directory by `save(folder)`, unless it is there already.

    The new folder is complete when it takes the place of the old one, which is removed just before.
    """
    partial = _partial(run_dir.tokenizer)
    partial.mkdir()
    save(partial)
    if run_dir.tokenizer.is_dir() and _same_files(partial, run_dir.tokenizer):
        shutil.rmtree(partial)
        return
    shutil.rmtree(run_dir.tokenizer, ignore_errors=True)
    partial.rename(run_dir.tokenizer)


def _same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold files of the same names and contents, and nothing else."""
    names = sorted(path.name for path in one.iterdir())
    same, _, _ = filecmp.cmpfiles(one, other, names, shallow=False)
    return same == names == sorted(path.name for path in other.iterdir())


def read_metrics(run_dir: RunDir) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl, without a line that a crash left incomplete."""
    lines = []
    text = run_dir.metrics.read_text("utf-8", "replace") if run_dir.metrics.exists() else ""
    for one in text.split("\n"):
        try:
            line = json.loads(one)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def drop_records_after(run_dir: RunDir, step: int) -> None:
    """Removes the metrics and samples after `step`, which a run that resumes there writes again."""
    for path in run_dir.samples.glob("step-*.txt"):
        number = path.stem.removeprefix("step-")
        if number.isdecimal() and int(number) > step:
            path.unlink()
    lines = [line for line in read_metrics(run_dir) if line["step"] <= step]
    write_atomic(run_dir.metrics, "".join(json.dumps(line) + "\n" for line in lines))
