"""Code of the user's own, named `FILE.py:Name`. Naming a file runs it."""

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from minigpt_jax.config import nearest
from minigpt_jax.errors import UserError


def load(name: str, flag: str) -> Any:
    """What `FILE.py:Name` names.

    Raises:
        UserError: there is no such file, it cannot be run, or it defines nothing of that name.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{flag} {name}: there is no file {file}; give FILE.py:Name")
    try:
        module = _run(path.resolve(), path.stat().st_mtime_ns)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{flag} {file} cannot be run: {type(error).__name__}: {error}; mend the file") from error
    if not hasattr(module, attribute):
        names = [one for one in vars(module) if not one.startswith("_")]
        raise UserError(f"{flag} {name}: {file} defines no {attribute!r}{nearest(attribute, names)}")
    return getattr(module, attribute)


@functools.lru_cache(64)
def _run(path: Path, changed: int) -> ModuleType:
    """The file as a module, once for each time it was changed, so that its classes stay the same and compile once."""
    spec = importlib.util.spec_from_file_location(f"minigpt_user_{path.stem}_{changed}", path)
    assert spec is not None and spec.loader is not None, path  # noqa: PT018
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
