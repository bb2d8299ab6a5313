"""Hashes of a folder's files, by which damage is found. Orbax restores some damaged files without an error."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from minigpt_jax import files

NAME = "manifest.json"


def seal(folder: Path) -> None:
    """Syncs the files in the subfolders of `folder` to the disk, and writes a manifest with their SHA-256 hashes.

    The files of the folder itself are left out, because Orbax still writes to them.
    """
    sums = {}
    for path in _files(folder):
        sums[path.relative_to(folder).as_posix()] = files.sha256(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    with (folder / NAME).open("w") as file:
        json.dump({"sha256": sums}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def damage(folder: Path) -> str | None:
    """Describes the damage of a sealed folder, naming a damaged file. Returns None if the folder is intact."""
    path = folder / NAME
    try:
        sums: dict[str, str] = json.loads(path.read_text())["sha256"]
        for name, expected in sums.items():
            path = folder / name
            if files.sha256(path) != expected:
                return f"{path} has changed since it was written"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{path} is malformed"
    return None


def _files(folder: Path) -> Iterator[Path]:
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from sorted(path for path in subfolder.rglob("*") if path.is_file())
