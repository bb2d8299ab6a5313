"""Cross-entropy, perplexity and bits per byte, accumulated as sums so that every token weighs the same."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer


class LossSums(NamedTuple):
    """Sums over some labels. The sums of two sets of labels add up to those of both.

    Attributes:
        nats: total negative log-likelihood of the labels.
        tokens: the number of labels that are counted, which are those of the text.
        bytes: the number of UTF-8 bytes of the original text of these labels.
    """

    nats: Any = 0.0
    tokens: Any = 0
    bytes: Any = 0

    def plus(self, other: "LossSums") -> "LossSums":
        return LossSums(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, in nats per token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(total negative log-likelihood / labels), or inf if that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf if self.loss == self.loss else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Negative log-likelihood in bits per UTF-8 byte of the text: nats / ln 2 / bytes."""
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
    """Sums over the labels selected by `counted_BT`, and over the bytes of all rows."""
    return LossSums(
        nats=jnp.sum(nats_BT, where=counted_BT),
        tokens=jnp.sum(counted_BT),
        bytes=jnp.sum(bytes_B.astype(jnp.int32)),
    )
