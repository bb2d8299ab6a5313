"""The run-time check of the package's signatures that conftest.py installs: beartype, with jaxtyping's shapes."""

import functools
import re
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from typing import Any
from unittest import mock

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import _import_hook

# As users may, tests pass NumPy's arrays and numbers where a signature names JAX's arrays and Python's numbers.
_OVERRIDES: dict[Any, Any] = {int: int | np.integer, float: float | int | np.floating | np.integer}
_CONF = BeartypeConf(hint_overrides=FrozenDict(_OVERRIDES))

_CHECK_THEMSELVES = {
    *(
        f"minigpt_jax.generate.language_model.LanguageModel.{name}"
        for name in ("generate", "stream", "score", "_chunks")
    ),
    "minigpt_jax.generate.language_model._settings",
    "minigpt_jax.interchange.export.export",
    "minigpt_jax.samplers.processors.checked",
    *(f"minigpt_jax.samplers.{name}" for name in ("start", "advance", "decode")),
}


_SHAPED_OR_NAMED = re.compile(r"jaxtyping|Array|ForwardRef|(?<!<class )'\w")
_shaped: Callable[..., Callable[[Any], Any]] = jaxtyping.jaxtyped


def install() -> None:
    """Checks the arguments and the result of every call of the package's functions, from its first import on."""
    jaxtyping.Array = jax.Array | np.ndarray  # pyright: ignore
    jaxtyping.jaxtyped = jaxtyped  # pyright: ignore
    if hasattr(_import_hook, "_JaxtypingLoader") and hasattr(_import_hook, "_optimized_cache_from_source"):
        # These are jaxtyping's own parts, in its versions so far. Without this, the tests only start more slowly.
        _import_hook._JaxtypingLoader.exec_module = SourceFileLoader.exec_module
        _import_hook._JaxtypingLoader.get_code = _get_code  # pyright: ignore
    jaxtyping.install_import_hook("minigpt_jax", f"{__name__}.{typechecked.__name__}")


def _get_code(loader: Any, name: str) -> Any:
    """A module's code, kept as bytecode under jaxtyping's own name.

    jaxtyping itself uses that name as long as the module is being executed, so that TensorFlow and all else that the
    module imports would be compiled from source.
    """
    path = functools.partial(_import_hook._optimized_cache_from_source, loader._typechecker.get_hash())
    with mock.patch("importlib._bootstrap_external.cache_from_source", path):
        return SourceFileLoader.get_code(loader, name)


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """jaxtyping's decorator for functions of arrays, and for those with names that only type checkers see.

    Other functions get the check of types alone, which is ten times as fast. Of a class jaxtyping would check only the
    constructor, which `typechecked` leaves out.
    """

    def decorate(checked: Any) -> Any:
        if isinstance(checked, type):
            return checked
        hints = getattr(checked, "__annotations__", {}).values()
        shaped = any(isinstance(hint, str) or _SHAPED_OR_NAMED.search(str(hint)) for hint in hints)
        return (_shaped(typechecker=typechecker) if shaped else typechecker)(checked)

    return decorate


def typechecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The check of one function; the hook adds that the axes of one letter have one length in a call.

    Left out are the constructors of dataclasses, which JAX calls with tracers and placeholders when it unflattens them,
    and functions that refuse wrong types by themselves, in a line for the user, as tests see to.
    """
    leave = function.__name__ == "__init__" or f"{function.__module__}.{function.__qualname__}" in _CHECK_THEMSELVES
    return function if leave else beartype(conf=_CONF)(function)
