"""Files on disk: their checksums, and folders to write to."""

import hashlib
import os
import tempfile
from pathlib import Path

from minigpt_jax.errors import UserError


def sha256(path: Path) -> str:
    """The SHA-256 checksum of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: str | Path, flag: str) -> Path:
    """Makes a folder to write to, unless it exists. Returns its path, in which a leading `~` is the home folder.

    Args:
        flag: the flag that names the folder, for errors.

    Raises:
        UserError: the folder cannot be made, or no file can be written in it.
    """
    folder = Path(os.path.expanduser(path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        file = next((above for above in (folder, *folder.parents) if os.path.isfile(above)), None)
        reason = f"{file} is a file" if file else f"it cannot be written ({error.strerror})"
        raise UserError(f"{flag} {path}: {reason}; name another folder") from error
    return folder
