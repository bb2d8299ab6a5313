"""LossSums of a folder's files, so that a flipped or a missing byte is noticed: Orbax restores it silently wrong."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from minigpt_jax import files

NAME = "manifest.json"


def seal(folder: Path) -> None:
    """Writes SHA-256 sums of the files in `folder`'s subfolders into its manifest, once all of them are on the disk.

    Files of the folder itself are left out: Orbax's own bookkeeping, which it still writes to.
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
    """What is wrong with a sealed folder, naming the file; None if it is whole."""
    path = folder / NAME
    try:
        sums: dict[str, str] = json.loads(path.read_text())["sha256"]
        for name, expected in sums.items():
            path = folder / name
            if files.sha256(path) != expected:
                return f"{path} is not what was written"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{path} is not what was written"
    return None


def _files(folder: Path) -> Iterator[Path]:
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from sorted(path for path in subfolder.rglob("*") if path.is_file())
