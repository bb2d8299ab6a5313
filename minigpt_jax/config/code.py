"""Code of the user's own, which an experiment names as `FILE.py:Name`.

`load` runs the files and replaces each name by a `Code`: the same string, with the function or class that it names. A
run directory keeps copies of the files (`storage.run_code`), so a file cannot import modules beside it.
"""

import dataclasses
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

from minigpt_jax.config.experiment import Experiment
from minigpt_jax.config.options import flag_name, names_code, nearest, options
from minigpt_jax.errors import UserError, place_of, reason_of

_modules: dict[tuple[Path, str], ModuleType] = {}
"""Files that were run, by path and SHA-256: each version of a file runs once."""


class Code(str):
    """A name of code, `FILE.py:Name`, whose file was run.

    It is equal to the string. It is equal to another `Code` only if their files have the same contents, so that
    programs and caches of different code are separate.

    Attributes:
        path: the file.
        source: its contents.
        sha256: the SHA-256 of the contents, in hexadecimal.
        value: the function or the class of this name.
    """

    path: Path
    source: bytes
    sha256: str
    value: Any

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True and (not isinstance(other, Code) or self.sha256 == other.sha256)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def load(experiment: Experiment, folders: Sequence[Path]) -> Experiment:
    """The experiment with a `Code` for each name of code in it.

    Args:
        folders: the folders in which a relative path is looked up, in this order.

    Raises:
        UserError: a file is missing or cannot be run, it lacks the name, or two different files share a name.
    """
    experiment = _changed(experiment, lambda option, value: load_value(option, value, folders))
    files(experiment)
    return experiment


def replaced(experiment: Experiment, file: str, path: Path) -> Experiment:
    """The experiment with all names of code in `file`, in whatever folder, loaded from `path`.

    Raises:
        UserError: as `load` does.
    """

    def of_path(option: str, value: str) -> str:
        return _load(option, value, path) if _file_name(value) == file and not isinstance(value, Code) else value

    return _changed(experiment, of_path)


def load_value(option: str, value: Any, folders: Sequence[Path]) -> Any:
    """The `Code` that a field's value names, or the value itself if it names none. Raises UserError as `load` does.

    Args:
        option: the field's dotted name; or what the user calls the value, such as METHOD, if it is no field's.
    """
    if isinstance(value, Code) or not names_code(value):
        return value
    places = [folder / Path(value.rpartition(":")[0]).expanduser() for folder in folders]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        where = " or ".join(dict.fromkeys(str(place.parent.resolve()) for place in places))
        raise UserError(f"{_label(option)} {value}: there is no {_file_name(value)} in {where}; check the path")
    return _load(option, value, path)


def _label(option: str) -> str:
    return option if option.isupper() else f"--{flag_name(option)}"


def _load(option: str, value: str, path: Path) -> Code:
    flag, name = f"{_label(option)} {value}", value.rpartition(":")[2]
    module, source, sha256 = _run(path, flag)
    if not callable(found := vars(module).get(name)):
        own = [known for known, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
        hint = nearest(name, own) or f"; it defines {', '.join(own) or 'none'}"
        raise UserError(f"{flag}: {path} defines no function or class {name}{hint}")
    code = Code(value)
    code.path, code.source, code.sha256, code.value = path, source, sha256, found
    return code


def _changed(experiment: Experiment, change: Callable[[str, str], str]) -> Experiment:
    """The experiment with `change(field, name)` in place of each name of code."""
    for option in options(experiment):
        if option.facts.code:
            value = option.value
            several = value if isinstance(value, tuple) else (value,)
            changed = tuple(change(option.name, one) if names_code(one) else one for one in several)
            section, _, field = option.name.rpartition(".")
            value = changed if isinstance(value, tuple) else changed[0]
            part = dataclasses.replace(getattr(experiment, section), **{field: value})
            experiment = dataclasses.replace(experiment, **{section: part})
    return experiment


def loaded(value: str) -> Any:
    """The function or class that a name of code stands for. Raises UserError if its file has not been run."""
    if isinstance(value, Code):
        return value.value
    raise UserError(
        f"{value}: the run needs this custom code, which does not run by default; give --trust-code or --code FILE.py "
        "(in Python, trust_code=True or code=[FILE])"
    )


def named(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """The names of code in an experiment, each after its field's dotted name."""
    for option in options(experiment):
        if option.facts.code:
            values = option.value if isinstance(option.value, tuple) else (option.value,)
            yield from ((option.name, value) for value in values if names_code(value))


def files(experiment: Experiment) -> dict[str, Code]:
    """One `Code` for each loaded file, by the file's name. Raises UserError if two different files share a name."""
    found: dict[str, Code] = {}
    for option, code in named(experiment):
        if isinstance(code, Code):
            other = found.setdefault(code.path.name, code)
            if other.sha256 != code.sha256:
                raise UserError(
                    f"--{flag_name(option)} {code}: {other.path} is another file of that name, and a run keeps a copy "
                    "of both; rename one"
                )
    return found


def sums(experiment: Experiment) -> Iterator[tuple[str, Path, str]]:
    """The field, the file and the file's SHA-256 for each name of code that was loaded."""
    return ((option, code.path, code.sha256) for option, code in named(experiment) if isinstance(code, Code))


def without_folder(value: Any) -> Any:
    """A field's value with names of code without their folder, so that it is the same wherever the files are."""
    if isinstance(value, tuple | list):
        return [without_folder(item) for item in value]
    return PurePath(value).name if names_code(value) else value


def _file_name(value: str) -> str:
    return PurePath(value.rpartition(":")[0]).name


def check_call(function: Callable[..., Any], arguments: str, label: str) -> None:
    """Checks that a function of the user's can be called with these arguments, before it is.

    Args:
        arguments: the names of the positional arguments, for one `"step, split, figures"`.
        label: what the function is, for the message.

    Raises:
        UserError: it takes other arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return
    try:
        signature.bind(*(name for name in arguments.split(", ") if name))
    except TypeError as error:
        raise UserError(f"{label} is called with ({arguments}), but its signature is {signature}; fix it") from error


def blame(error: Exception) -> str | None:
    """A one-line message for an error that was raised in code of the user's own; None for other errors."""
    place = place_of(error, {str(path) for path, _ in _modules})
    return None if place is None else f"{place}: {reason_of(error)}; fix the file"


def _run(path: Path, flag: str) -> tuple[ModuleType, bytes, str]:
    """Runs a file. Returns its module, its source and its SHA-256."""
    path = path.resolve()
    source = path.read_bytes()
    sha256 = hashlib.sha256(source).hexdigest()
    if (path, sha256) not in _modules:
        # It is in sys.modules, because dataclasses and pickle look it up there.
        name = f"minigpt_code_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{sha256[:12]}"
        spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
        assert spec is not None, path
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        module.__file__ = str(path)
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except UserError:
            raise
        except Exception as error:
            place = place_of(error, {str(path)}) or f"{path} cannot be run"
            raise UserError(f"{flag}: {place}: {reason_of(error)}; fix the file") from error
        _modules[path, sha256] = module
    return _modules[path, sha256], source, sha256
