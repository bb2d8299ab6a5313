"""The batch: the data that the train step and the evaluation step are given."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer


class Batch(NamedTuple):
    """Rows of T + 1 ids. The first T ids are the features and the last T are the labels.

    The arrays are NumPy's on the host and JAX's on a device.

    Attributes:
        rows: token ids, of the smallest unsigned type that holds them. An incomplete batch is padded with rows of
            zeros: these are all [PAD], so they have no weight.
        bytes: the number of UTF-8 bytes of the original text that each row's labels stand for.
    """

    rows: Integer[Array | np.ndarray, "B T+1"]
    bytes: Integer[Array | np.ndarray, "B"]

    @property
    def features(self) -> Int[Array, "B T"]:
        return jnp.asarray(self.rows[:, :-1], jnp.int32)

    @property
    def labels(self) -> Int[Array, "B T"]:
        return jnp.asarray(self.rows[:, 1:], jnp.int32)
