"""What runs share: the folder of trained tokenizers, token stores, downloads and compiled programs."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from minigpt_jax.errors import UserError

_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_dir() -> Path:
    """$MINIGPT_CACHE, or a folder under ~/.cache. Raises UserError if it is a file."""
    folder = Path(os.path.expanduser(os.environ.get("MINIGPT_CACHE") or "~/.cache/minigpt_jax"))
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"the cache {folder} cannot be made: {path} is a file; set MINIGPT_CACHE to a folder")
    return folder


def keep_compiled_programs() -> None:
    """Has JAX keep compiled programs in the cache from process to process, unless the user chose a folder for them."""
    import jax  # not above: it takes seconds, and few need it here

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the right to make a folder of the cache. What is there already can be read from a read-only disk too.

    Raises UserError if a file stands where a folder should be, or the disk is full.
    """
    held = filelock.FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            f"the cache has a file where a folder should be, or a folder for a file: {error.filename}; remove it, or "
            "set MINIGPT_CACHE to another folder"
        ) from error
    except OSError as error:
        if error.errno in _FULL:
            raise _unwritable(error, folder) from error
        if error.errno not in _READ_ONLY:
            raise
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name and the place of what was there once all of it is on the disk.

    The caller holds its `lock`. Raises UserError if the disk is full or cannot be written.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        _remove(partial)  # of a process that was killed
        partial.mkdir(parents=True)
        yield partial
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _remove(folder)
        partial.rename(folder)
    except OSError as error:
        _remove(partial)
        if error.errno in _FULL | _READ_ONLY:
            raise _unwritable(error, folder) from error
        raise
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it is there and can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _unwritable(error: OSError, folder: Path) -> UserError:
    return UserError(
        f"the cache {folder.parent.parent} cannot be written: {error.strerror}; free some room, or set MINIGPT_CACHE "
        "to a folder on another disk"
    )
