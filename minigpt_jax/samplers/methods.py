"""The methods of choosing the next token, as frozen dataclasses that are pytrees.

Their settings are leaves, so that a jitted program takes them as arguments and changing one compiles nothing. Only the
width of a beam and the candidates of contrastive search are shapes too, and those are bucketed.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from minigpt_jax.errors import UserError
from minigpt_jax.samplers import beam, choose, contrastive, loop, processors


@dataclass(frozen=True)
class Sampler:
    """What all methods share."""

    name: ClassVar[str]
    """What the command line calls the method."""
    driver: ClassVar[ModuleType] = loop
    """The module whose start, advance and result run the method."""
    width: int = field(default=1, init=False, repr=False)
    """Rows of the model's step for each row of the request: the one thing about a method that is a shape."""

    def validate(self, vocabulary_size: int) -> None:
        """Check the settings, before anything is compiled.

        Raises:
          UserError: a setting that cannot be; the text names the command line's flag for it.
        """


@dataclass(frozen=True)
class Greedy(Sampler):
    """The most probable token."""

    def pick(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        """One token a row, from logits that penalties, bias and bans have been through."""
        return choose.argmax(logits)


class Drawn(Sampler):
    """A token drawn from softmax(logits / temperature), of which a method may keep the better part only.

    Temperature 0 is the limit, greedy.
    """

    temperature: float

    def draw(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        """One token a row, from logits that are divided by the temperature already."""
        return choose.draw(logits, key)

    def pick(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        """One token a row, from logits that penalties, bias and bans have been through, by that row's key."""

        def drawn(logits: Array) -> Array:
            scaled = (logits - logits.max(axis=1, keepdims=True)) / self.temperature
            return self.draw(scaled, key)

        return lax.cond(self.temperature > 0, drawn, choose.argmax, logits)

    def validate(self, vocabulary_size: int) -> None:
        # Outside these bounds logits divided by the temperature leave the range of float32.
        if self.temperature != 0 and not 1e-6 <= self.temperature <= 1e6:
            raise UserError(
                f"--temperature {self.temperature} cannot be: give 0 (greedy), or a number from 0.000001 to 1,000,000"
            )


@dataclass(frozen=True)
class Random(Drawn):
    """Any token, as probable as it is."""

    temperature: float = 1.0


@dataclass(frozen=True)
class TopK(Drawn):
    """One of the k most probable tokens."""

    k: int = 10
    temperature: float = 1.0

    def draw(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        return choose.draw(logits, key, lambda logits: processors.top_k(logits, self.k))

    def validate(self, vocabulary_size: int) -> None:
        super().validate(vocabulary_size)
        _check_count("--k", self.k, vocabulary_size)


@dataclass(frozen=True)
class TopP(Drawn):
    """One of the fewest tokens whose probabilities reach p."""

    p: float = 0.9
    temperature: float = 1.0

    def draw(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        return choose.draw(logits, key, lambda logits: processors.top_p(logits, self.p))

    def validate(self, vocabulary_size: int) -> None:
        super().validate(vocabulary_size)
        _check_share("--p", self.p)


@dataclass(frozen=True)
class MinP(Drawn):
    """One of the tokens at least p times as probable as the most probable one."""

    p: float = 0.1
    temperature: float = 1.0

    def draw(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        return choose.draw(processors.min_p(logits, self.p), key)

    def validate(self, vocabulary_size: int) -> None:
        super().validate(vocabulary_size)
        _check_share("--p", self.p)


@dataclass(frozen=True)
class Typical(Drawn):
    """One of the fewest tokens, those of most nearly the expected surprise first, whose probabilities reach p."""

    p: float = 0.95
    temperature: float = 1.0

    def draw(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        return choose.draw(logits, key, lambda logits: processors.typical(logits, self.p))

    def validate(self, vocabulary_size: int) -> None:
        super().validate(vocabulary_size)
        _check_share("--p", self.p)


@dataclass(frozen=True)
class Beam(Sampler):
    """The most probable texts that a search with `num_beams` hypotheses finds.

    They are ranked by log-probability / ((5 + length) / 6)^length_penalty: more of a penalty makes longer texts.
    """

    driver: ClassVar[ModuleType] = beam
    num_beams: int = 10
    length_penalty: float = 0.6

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", bucket(self.num_beams))

    def validate(self, vocabulary_size: int) -> None:
        _check_count("--num-beams", self.num_beams, None)
        if not 0 <= self.length_penalty < math.inf:
            raise UserError(f"--length-penalty {self.length_penalty} cannot be: give a number from 0 (none) up")


@dataclass(frozen=True)
class Contrastive(Sampler):
    """Of the k most probable tokens, the one that is probable but unlike what has been said (Su et al. 2022).

    `alpha` weighs likeness against probability.
    """

    driver: ClassVar[ModuleType] = contrastive
    k: int = 4
    alpha: float = 0.6

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", bucket(self.k))

    def validate(self, vocabulary_size: int) -> None:
        _check_count("--k", self.k, vocabulary_size)
        if not 0 <= self.alpha <= 1:
            raise UserError(f"--alpha {self.alpha} is outside [0, 1]: give 0 (greedy) to 1")


METHODS: dict[str, type[Sampler]] = {
    "greedy": Greedy,
    "beam": Beam,
    "random": Random,
    "top_k": TopK,
    "top_p": TopP,
    "min_p": MinP,
    "typical": Typical,
    "contrastive": Contrastive,
}


def create(name: str, **settings: Any) -> Sampler:
    """The method of this name (dashes are fine) with these settings, its own defaults for the rest or for None.

    Raises:
      UserError: there is no such method, or it does not take a setting.
    """
    method = METHODS.get(name.replace("-", "_").lower())
    if method is None:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"--sampler {name} is not known: {hint}give one of {', '.join(METHODS)}")
    settings = {key: value for key, value in settings.items() if value is not None}
    taken = _settings(method)
    for key in settings:
        if key not in taken:
            flags = ", ".join("--" + name.replace("_", "-") for name in taken) or "no settings"
            raise UserError(f"--{key.replace('_', '-')} is not a setting of --sampler {name}: it takes {flags}")
    return method(**settings)


def create_all(**settings: Any) -> list[Sampler]:
    """Every method, in the order of `METHODS`, each with those of the settings that it takes.

    Where a setting means different things to methods that share its name, their own ranges are checked by `validate`.
    """
    return [
        create(name, **{key: value for key, value in settings.items() if key in _settings(method)})
        for name, method in METHODS.items()
    ]


def bucket(n: int) -> int:
    """n rounded up, so that nearby numbers share a program: 1, 2, 4, 6 .. 16, 20, 24 .. 32, 40, 48 .."""
    grain = 1 if n <= 2 else 1 << max(1, (n - 1).bit_length() - 3)
    return max(1, -(-n // grain) * grain)


def _settings(method: type[Sampler]) -> dict[str, type]:
    return {field.name: field.type for field in dataclasses.fields(method) if field.init}  # type: ignore[misc]


def _check_count(flag: str, count: int, most: int | None) -> None:
    if count != int(count) or count < 1 or (most is not None and count > most):
        upper = "up" if most is None else f"to {most}, the vocabulary's size"
        raise UserError(f"{flag} {count} cannot be: give a whole number from 1 {upper}")


def _check_share(flag: str, share: float) -> None:
    if not 0 < share <= 1:
        raise UserError(f"{flag} {share} is outside (0, 1]: give a probability above 0, and 1 at most")


def _register(method: type[Sampler]) -> None:
    """Make a method a pytree: its settings are leaves, its width is part of the structure.

    Settings become arrays of one type each, since JAX compiles anew for a 1 in place of a 1.0.
    """
    types = {int: np.int32, float: np.float32}
    settings = {name: types[kind] for name, kind in _settings(method).items()}

    def flatten(sampler: Sampler) -> tuple[list[Any], int]:
        values = [(getattr(sampler, name), kind) for name, kind in settings.items()]
        return [kind(v) if isinstance(v, int | float | np.number) else v for v, kind in values], sampler.width

    def unflatten(width: int, values: Any) -> Sampler:
        sampler = object.__new__(method)
        for name, value in [*zip(settings, values, strict=True), ("width", width)]:
            object.__setattr__(sampler, name, value)
        return sampler

    jax.tree_util.register_pytree_node(method, flatten, unflatten)


for _name, _method in METHODS.items():
    _method.name = _name
    _register(_method)
