"""The batch: the data that the train step and the evaluation step are given."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer


class Batch(NamedTuple):
    """Rows of T + 1 ids. The first T ids are the features and the last T are the labels.

    The arrays are NumPy's on the host and JAX's on a device.

    Attributes:
        rows: token ids, of the smallest unsigned type that holds them.
        bytes: the number of UTF-8 bytes of the original text that each row's labels stand for.
        length: the number of ids at the start of each row that are of the text. Those after them are padding. An
            incomplete batch is padded with rows of length 0, which have no weight.
    """

    rows: Integer[Array | np.ndarray, "B T+1"]
    bytes: Integer[Array | np.ndarray, "B"]
    length: Integer[Array | np.ndarray, "B"]

    @property
    def features(self) -> Int[Array, "B T"]:
        return jnp.asarray(self.rows[:, :-1], jnp.int32)

    @property
    def labels(self) -> Int[Array, "B T"]:
        return jnp.asarray(self.rows[:, 1:], jnp.int32)

    @property
    def is_feature(self) -> Bool[Array, "B T"]:
        """True where the feature is of the text. The last of these may have padding for its label."""
        return self._before(jnp.asarray(self.length))

    @property
    def is_label(self) -> Bool[Array, "B T"]:
        """True where the label is of the text."""
        return self._before(jnp.asarray(self.length) - 1)

    def _before(self, length_B: Int[Array, "B"]) -> Bool[Array, "B T"]:
        return jnp.arange(self.rows.shape[1] - 1)[None] < length_B[:, None]
