"""The methods of choosing the next token. `base.Sampler` says how to add one of your own."""

import dataclasses
import math
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from minigpt_jax.errors import UserError
from minigpt_jax.ops import reduce
from minigpt_jax.samplers import beam, contrastive, selection, truncation
from minigpt_jax.samplers.base import Sampler
from minigpt_jax.samplers.buckets import width_bucket

MAX_BEAMS = 4096
"""Enough to enumerate all texts of a few tokens of a tiny vocabulary, by which beam search is tested."""


@dataclass(frozen=True)
class Greedy(Sampler):
    """The most probable token."""

    name: ClassVar[str] = "greedy"
    draws: ClassVar[bool] = False

    def pick(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        return selection.argmax(logits)

    def distribution(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        best_B1 = selection.argmax(logits)[:, None]
        return jnp.where(jnp.arange(logits.shape[1])[None] == best_B1, 0.0, -jnp.inf)


@dataclass(frozen=True)
class Random(Sampler):
    """Draws a token from softmax(logits / temperature), after filters that remove tokens.

    A filter that is None is off. The others apply in the order below, which is Hugging Face's. Each one sees the
    probabilities of the tokens that the filters before it keep, normalised to a sum of 1.

    Attributes:
        temperature: below 1 makes probable tokens more probable; 0 is greedy search, the limit.
        top_k: keeps the k most probable tokens.
        top_p: keeps the most probable tokens until their probabilities sum to p.
        min_p: keeps tokens that are at least p times as probable as the most probable one.
        typical_p: orders tokens by how close their surprise (-log p) is to the entropy, and keeps them until their
            probabilities sum to this.
    """

    name: ClassVar[str] = "random"
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None

    def pick(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        def truncate(logits: Array) -> tuple[Array, selection.TokenFilter | None]:
            return truncation.truncate(logits, *self._filters)

        def drawn(logits: Array) -> Array:
            return selection.draw(self._scaled(logits), key, truncate)

        return lax.cond(self.temperature > 0, drawn, selection.argmax, logits)

    def distribution(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        def drawn(logits: Array) -> Array:
            return jax.nn.log_softmax(truncation.truncate_all(self._scaled(logits), *self._filters))

        return lax.cond(self.temperature > 0, drawn, Greedy().distribution, logits)

    @property
    def _filters(self) -> tuple[Any, ...]:
        return self.top_k, self.top_p, self.min_p, self.typical_p

    def _scaled(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        return (logits - reduce.max(logits)[:, None]) / self.temperature

    def validate(self, vocabulary_size: int) -> None:
        _check_temperature(self.temperature)
        if self.top_k is not None:
            _check_count("--top-k", self.top_k, vocabulary_size)
        for name in ("top_p", "min_p", "typical_p"):
            if (share := getattr(self, name)) is not None:
                _check_share("--" + name.replace("_", "-"), share)


class _Filtered(Sampler):
    """A shorthand for `Random` with one filter."""

    temperature: float

    def as_random(self) -> Random:
        raise NotImplementedError

    def pick(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        return self.as_random().pick(logits, key)

    def distribution(self, logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        return self.as_random().distribution(logits)


@dataclass(frozen=True)
class TopK(_Filtered):
    """One of the k most probable tokens: `Random(temperature, top_k=k)`."""

    name: ClassVar[str] = "top_k"
    k: int = 10
    temperature: float = 1.0

    def as_random(self) -> Random:
        return Random(self.temperature, top_k=self.k)

    def validate(self, vocabulary_size: int) -> None:
        _check_temperature(self.temperature)
        _check_count("--k", self.k, vocabulary_size)


@dataclass(frozen=True)
class TopP(_Filtered):
    """One of the most probable tokens, whose probabilities sum to p: `Random(temperature, top_p=p)`."""

    name: ClassVar[str] = "top_p"
    p: float = 0.9
    temperature: float = 1.0

    def as_random(self) -> Random:
        return Random(self.temperature, top_p=self.p)

    def validate(self, vocabulary_size: int) -> None:
        _check_temperature(self.temperature)
        _check_share("--p", self.p)


@dataclass(frozen=True)
class MinP(_Filtered):
    """One of the tokens at least p times as probable as the most probable one: `Random(temperature, min_p=p)`."""

    name: ClassVar[str] = "min_p"
    p: float = 0.1
    temperature: float = 1.0

    def as_random(self) -> Random:
        return Random(self.temperature, min_p=self.p)

    def validate(self, vocabulary_size: int) -> None:
        _check_temperature(self.temperature)
        _check_share("--p", self.p)


@dataclass(frozen=True)
class Typical(_Filtered):
    """One of the tokens whose surprise is closest to the entropy: `Random(temperature, typical_p=p)`."""

    name: ClassVar[str] = "typical"
    p: float = 0.95
    temperature: float = 1.0

    def as_random(self) -> Random:
        return Random(self.temperature, typical_p=self.p)

    def validate(self, vocabulary_size: int) -> None:
        _check_temperature(self.temperature)
        _check_share("--p", self.p)


@dataclass(frozen=True)
class Beam(Sampler):
    """The most probable texts that a beam search with `num_beams` hypotheses finds.

    They are ranked by log-probability / ((5 + length) / 6)^length_penalty. A greater penalty favours longer texts.
    """

    name: ClassVar[str] = "beam"
    streams: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    ranks: ClassVar[bool] = True
    driver: ClassVar[ModuleType] = beam
    num_beams: int = 10
    length_penalty: float = 0.6
    width: int = field(default=1, init=False, repr=False, metadata={"static": True})  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", _width(self.num_beams))

    def validate(self, vocabulary_size: int) -> None:
        _check_count("--num-beams", self.num_beams, MAX_BEAMS, "")
        if not 0 <= _number(self.length_penalty) < math.inf:
            raise UserError(
                f"--length-penalty {_shown(self.length_penalty)} is not allowed: give a number from 0 (none) up"
            )


@dataclass(frozen=True)
class Contrastive(Sampler):
    """Of the k most probable tokens, the one that is probable and differs from the text so far (Su et al. 2022).

    `alpha` is the weight of the similarity against that of the probability.
    """

    name: ClassVar[str] = "contrastive"
    draws: ClassVar[bool] = False
    driver: ClassVar[ModuleType] = contrastive
    k: int = 4
    alpha: float = 0.6
    width: int = field(default=1, init=False, repr=False, metadata={"static": True})  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", _width(self.k))

    def validate(self, vocabulary_size: int) -> None:
        _check_count("--k", self.k, vocabulary_size)
        if not 0 <= _number(self.alpha) <= 1:
            raise UserError(f"--alpha {_shown(self.alpha)} is outside [0, 1]: give a number from 0 (greedy) to 1")


METHODS: dict[str, type[Sampler]] = {
    method.name: method for method in (Greedy, Beam, Random, TopK, TopP, MinP, Typical, Contrastive)
}


def create_all(**settings: Any) -> list[Sampler]:
    """All methods, in the order of `METHODS`, each with those of the settings that it takes; None means not given."""
    given = {name: value for name, value in settings.items() if value is not None}
    return [
        method(**{field.name: given[field.name] for field in dataclasses.fields(method) if field.name in given})
        for method in METHODS.values()
    ]


def _check_temperature(temperature: Any) -> None:
    # Outside these bounds, logits divided by the temperature may overflow or underflow float32.
    number = _number(temperature)
    if number != 0 and not 1e-6 <= number <= 1e6:
        raise UserError(
            f"--temperature {_shown(temperature)} is not allowed: give 0 (greedy), or a number from 0.000001 to "
            "1,000,000"
        )


def _check_count(flag: str, count: Any, most: int, of: str = ", the vocabulary's size") -> None:
    number = _number(count)
    if not number.is_integer() or not 1 <= number <= most:
        raise UserError(f"{flag} {_shown(count)} is not allowed: give a whole number from 1 to {most:,}{of}")


def _check_share(flag: str, share: Any) -> None:
    if not 0 < _number(share) <= 1:
        raise UserError(f"{flag} {_shown(share)} is outside (0, 1]: give a number above 0, and 1 at most")


def _number(value: Any) -> float:
    """A setting as a float; NaN, which is within no bounds, if it is no number."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)
    except OverflowError:  # a longer whole number than floats hold
        return math.inf
    except (TypeError, ValueError):
        return math.nan


def _width(count: Any) -> int:
    """The bucket of a width; 1 for what `validate` refuses."""
    number = _number(count)
    return width_bucket(int(number)) if 1 <= number < math.inf else 1


def _shown(value: Any) -> str:
    """A setting for a message; a string in quotes, as a caller who gave one in place of a number may not see why."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
