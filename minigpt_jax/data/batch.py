"""The batch: what travels from the data to the train and evaluation steps."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int


class Batch(NamedTuple):
    """Rows of T + 1 ids, whose first T are the features and last T the labels.

    Attributes:
        rows: [B, T+1] token ids, of the smallest unsigned type that holds them. A row of zeros fills a batch up: all of
            it is [PAD], so it weighs nothing.
        bytes: [B] UTF-8 bytes of the original text that each row's labels stand for, int32.
    """

    rows: Any
    bytes: Any

    @property
    def features(self) -> Int[Array, "B T"]:
        return self.rows[:, :-1].astype(jnp.int32)

    @property
    def labels(self) -> Int[Array, "B T"]:
        return self.rows[:, 1:].astype(jnp.int32)
