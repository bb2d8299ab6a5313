"""The cache that runs share: a folder of trained tokenizers, token stores, downloads and compiled programs."""

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
    """The folder of the cache: $MINIGPT_CACHE, or else one under ~/.cache. Raises UserError if it is a file."""
    folder = Path(os.path.expanduser(os.environ.get("MINIGPT_CACHE") or "~/.cache/minigpt_jax"))
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"the cache {folder} cannot be created: {path} is a file; set MINIGPT_CACHE to a folder")
    return folder


def keep_compiled_programs() -> None:
    """Makes JAX keep compiled programs in the cache for later processes, unless the user chose a folder for them."""
    import jax  # imported late, as it takes seconds and few users of this module need it

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the lock for creating a folder in the cache. On a read-only disk it does nothing, so that reading works.

    Raises:
        UserError: a file is in the place of a folder or a folder in that of a file, or the folder cannot be made, on a
            full disk for example.
    """
    held = filelock.FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(
            f"the cache has a file in the place of a folder, or a folder in that of a file: {error.filename}; remove "
            "it, or set MINIGPT_CACHE to another folder"
        ) from error
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise _unwritable(error, folder) from error
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder to fill. At the end it is flushed to disk and takes the place of `folder`.

    The caller has to hold the `lock` of the folder.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        _remove(partial)  # left by a process that was killed
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
    """Removes a file, a link or a folder, if it exists and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _unwritable(error: OSError, folder: Path) -> UserError:
    return UserError(
        f"the cache {folder.parent.parent} cannot be written: {error.strerror}; free some space, or set MINIGPT_CACHE "
        "to a folder on another disk"
    )
