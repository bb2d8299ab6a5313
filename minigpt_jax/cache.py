"""What runs share on disk: entries that are made once, by one process, and appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import filelock

from minigpt_jax.errors import UserError

T = TypeVar("T")


def made_once(folder: Path, look: Callable[[], T | None], make: Callable[[Path], None]) -> T:
    """What `look` finds in a folder of the cache, which `make` fills first where it finds nothing.

    Nothing is written where the entry is there, so that a filled cache may lie on a read-only disk. Processes that
    start together wait for the first.

    Args:
        look: gives None where the entry is missing or damaged.
        make: fills the folder that it is given; it takes the place of what was there once all of it is on disk.

    Raises:
        UserError: the cache cannot be read or written.
    """
    with usable(folder):
        if (found := look()) is not None:
            return found
        with lock(folder.with_name(folder.name + ".lock")):
            if (found := look()) is None:
                with _written_whole(folder) as partial:
                    make(partial)
                found = look()
    assert found is not None, f"what was just written to {folder} is damaged"
    return found


@contextlib.contextmanager
def lock(file: Path) -> Iterator[None]:
    """Holds a lock on a file, which is made with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(file):
        yield


@contextlib.contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turns what goes wrong with the cache's disk into one line that names the way out."""
    try:
        yield
    except BrokenPipeError:  # of the terminal's, as `| head` leaves it
        raise
    except (OSError, NotImplementedError) as error:  # the latter from a file system without locks
        reason = getattr(error, "strerror", None) or str(error)
        where = getattr(error, "filename", None) or folder
        raise UserError(
            f"cannot use the cache {where}: {reason}; mend it or free some room, or set MINIGPT_CACHE to another folder"
        ) from error


@contextlib.contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """A folder that takes its name, and the place of what was there, once all of it is on disk."""
    partial = folder.with_name(folder.name + ".partial")
    _remove(partial)  # of a process that was killed; the lock is ours
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _remove(folder)
        partial.rename(folder)
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    """Removes a file or a folder, if it is there and can be."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()
