"""The run-time check of the package's signatures that conftest.py installs: beartype, with jaxtyping's shapes."""

from collections.abc import Callable
from typing import Any

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

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


def install() -> None:
    """Checks the arguments and the result of every call of the package's functions, from its first import on."""
    jaxtyping.Array = jax.Array | np.ndarray  # pyright: ignore
    jaxtyping.install_import_hook("minigpt_jax", f"{__name__}.{typechecked.__name__}")


def typechecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The check of one function; the hook adds that the axes of one letter have one length in a call.

    Left out are the constructors of dataclasses, which JAX calls with tracers and placeholders when it unflattens them,
    and functions that refuse wrong types by themselves, in a line for the user, as tests see to.
    """
    leave = function.__name__ == "__init__" or f"{function.__module__}.{function.__qualname__}" in _CHECK_THEMSELVES
    return function if leave else beartype(conf=_CONF)(function)
