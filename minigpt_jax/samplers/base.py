"""The base class of every method of sampling, and how its settings become traced values.

A method is a frozen dataclass and a JAX pytree. Its fields are leaves. A compiled program takes them as arguments, so a
new value does not recompile. Its class and its static fields are the tree's structure, and each structure has a
compiled program of its own.
"""

import dataclasses
import functools
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from minigpt_jax.errors import UserError
from minigpt_jax.samplers import loop


@dataclass(frozen=True)
class Sampler:
    """A method of choosing the next token. Extend it, in any file, to make one of your own:

    >>> import minigpt_jax
    >>> @dataclass(frozen=True)
    ... class Noisy(minigpt_jax.Sampler):
    ...     temperature: float = 1.0
    ...
    ...     def pick(self, logits, key):
    ...         return jax.vmap(jax.random.categorical)(key, logits / self.temperature)

    Nothing has to be registered. Every field is a traced value: inside `pick` it is a JAX scalar (or an array, if you
    give one), and a new value does not recompile. Two kinds of values are compiled in, so each new one recompiles:
    None, and a field declared by `dataclasses.field(metadata={"static": True})`, such as a string or a size.

    Class attributes state what the rest of the code needs to know about a method.
    """

    name: ClassVar[str] = "sampler"
    """The name of the method in errors and tables; by default the name of the class."""
    streams: ClassVar[bool] = True
    """Whether a row's tokens are final as soon as they are picked, so that its text can be streamed."""
    draws: ClassVar[bool] = True
    """Whether the method uses its key, so that several texts of one prompt differ."""
    ranks: ClassVar[bool] = False
    """Whether a row's output is several hypotheses, best first."""
    driver: ClassVar[ModuleType] = loop
    """The module whose functions `start`, `advance` and `result` run the method."""
    width: ClassVar[int] = 1
    """Rows of the model's step for each row of the request."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "name" not in vars(cls):
            cls.name = cls.__name__
        jax.tree_util.register_pytree_node(cls, _flatten, functools.partial(_unflatten, cls))

    def pick(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        """Picks one token per row.

        Args:
            logits: the model's, after penalties, bias and processors; -inf where a token is banned. A method that has
                a temperature divides by it here. (KerasHub divides before it calls a sampler, even a greedy one.)
            key: a key for each row. It depends on the seed, the row and the position, so a row's draws are independent
                of its batch.

        Returns:
            The ids of the picked tokens. If `pick` returns a token whose logit is -inf, that row's text ends without
            it.
        """
        raise UserError(f"the sampler {self.name} picks no token: give its class a method pick(self, logits, key)")

    def distribution(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"] | None:
        """The log-probability by which `pick` draws each token; -inf for a token that it never draws.

        It explains a method, as in `inspection`, and sampling does not need it. None means that the method does not
        say.
        """
        return None

    def validate(self, vocabulary_size: int) -> None:
        """Checks the settings before anything is compiled.

        Raises:
            UserError: a setting is not allowed. The message names the flag of the command line, if there is one.
        """


@functools.cache
def _fields(method: type[Sampler]) -> tuple[dict[str, type | None], list[str]]:
    """The dtypes of the traced fields by name, or None where the annotation names none; and the static fields."""
    fields = dataclasses.fields(method)
    static = [field.name for field in fields if field.metadata.get("static")]
    return {field.name: _dtype(field.type) for field in fields if field.name not in static}, static


def _dtype(annotation: Any) -> type | None:
    # Read as text, because an annotation may be a string whose names are unknown here.
    words = re.findall(r"\w+", annotation if isinstance(annotation, str) else str(annotation))
    kinds = {"float": np.float32, "int": np.int32, "bool": np.bool_}
    return next((dtype for word, dtype in kinds.items() if word in words), None)


def _flatten(sampler: Sampler) -> tuple[list[Any], tuple[Any, ...]]:
    traced, static = _fields(type(sampler))
    leaves = [_leaf(sampler, name, dtype) for name, dtype in traced.items()]
    return leaves, tuple(getattr(sampler, name) for name in static)


def _unflatten(method: type[Sampler], static: tuple[Any, ...], leaves: Any) -> Sampler:
    traced, names = _fields(method)
    sampler = object.__new__(method)
    for name, value in zip([*traced, *names], [*leaves, *static], strict=True):
        object.__setattr__(sampler, name, value)
    return sampler


def _leaf(sampler: Sampler, name: str, dtype: type | None) -> Any:
    """A field's value as an array of a fixed type, because JAX compiles another program for 1 than for 1.0."""
    value = getattr(sampler, name)
    if isinstance(value, str):
        raise UserError(
            f"{sampler.name}: {name}={value!r} is a string, which cannot be traced; declare the field static, as "
            'dataclasses.field(metadata={"static": True}) does'
        )
    if not isinstance(value, bool | int | float | np.number | np.bool_):
        return value  # an array, None, or a placeholder that JAX puts there
    if dtype is np.int32 and not isinstance(value, int) and value != np.floor(value):
        raise UserError(f"{sampler.name}: {name}={value} must be a whole number, as its annotation says")
    try:
        return (dtype or {bool: np.bool_, int: np.int32}.get(type(value), np.float32))(value)
    except OverflowError:
        raise UserError(f"{sampler.name}: {name}={value} is too large for a number of 32 bits") from None
