"""Cross-entropy, perplexity and bits per byte, accumulated as sums so that every token weighs the same."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer


class LossSums(NamedTuple):
    """What has been measured over some labels; sums of two parts are the sums of the whole.

    Attributes:
        nats: total negative log-likelihood of the labels.
        tokens: labels counted, those that are not [PAD].
        bytes: UTF-8 bytes of the original text that the counted labels stand for.
    """

    nats: Any = 0.0
    tokens: Any = 0
    bytes: Any = 0

    def plus(self, other: "LossSums") -> "LossSums":
        return LossSums(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, in nats a token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(total negative log-likelihood / labels); inf where that is beyond a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf if self.loss == self.loss else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Total nats / ln 2 / bytes of the text they stand for."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def summary(self) -> dict[str, float]:
        """The three figures that metrics.jsonl and `evaluate` report."""
        return {"loss": self.loss, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}


def cross_entropy(logits_BTV: Float[Array, "B T V"], labels_BT: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Negative log-likelihood of each label, in nats, computed in float32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    label_BT = jnp.take_along_axis(logits_BTV, labels_BT[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, axis=-1) - label_BT


def token_sums(
    nats_BT: Float[Array, "B T"], counted_BT: Bool[Array, "B T"], bytes_B: Integer[Array | np.ndarray, "B"]
) -> LossSums:
    """LossSums over the labels that count; the reported figures count those that are not [PAD]."""
    return LossSums(
        nats=jnp.sum(nats_BT, where=counted_BT),
        tokens=jnp.sum(counted_BT),
        bytes=jnp.sum(bytes_B.astype(jnp.int32)),
    )


def repeated_ngrams(tokens: Sequence[int], size: int = 4) -> float:
    """The share of a text's n-grams that it has had before: 0 where each is new (rep-n of Welleck et al. 2020).

    >>> repeated_ngrams([1, 2, 1, 2, 1], size=2)  # of four pairs, two are new
    0.5
    """
    total = len(tokens) - size + 1
    return 1 - len(_ngrams(tokens, size)) / total if total > 0 else 0.0


def distinct_ngrams(tokens: Sequence[int], size: int = 2) -> float:
    """Distinct n-grams by all n-grams of a text (distinct-n of Li et al. 2016); 1 for a text too short for one."""
    return 1 - repeated_ngrams(tokens, size)


def _ngrams(tokens: Sequence[int], size: int) -> set[tuple[int, ...]]:
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
