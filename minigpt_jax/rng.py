"""Random keys: one seed, a named stream of typed threefry keys for each purpose, and a key for each use of a stream.

Keys are never stored or passed on. The key for a step, a row or a position is a pure function of (seed, name, indices).
A resumed run therefore draws the same numbers as an uninterrupted one, and a row the same ones in any batch.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from minigpt_jax.errors import UserError

_WORD = 0xFFFFFFFF


def words(seed: int) -> np.ndarray:
    """A seed of up to 64 bits as uint32 [high, low], in the form that compiled programs take for any seed.

    Raises:
        UserError: the seed does not fit in 64 bits.
    """
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"--seed {seed} has more than 64 bits: give an integer from {-(2**63)} to {2**64 - 1}")
    return np.array([(seed >> 32) & _WORD, seed & _WORD], np.uint32)


def stream(seed: int | np.integer | Array | np.ndarray, name: str) -> Key[Array, ""]:
    """The key of the stream `name` for a seed.

    The seed is a Python integer, an integer scalar, which may be traced, or the pair that `words` returns. Equal
    numbers give equal keys in all three forms. The key is that of `jax.random.key(seed)` with a hash of the name folded
    in.

    >>> bool(stream(7, "data") == stream(words(7), "data"))
    True
    >>> bool(stream(7, "data") == stream(7, "dropout"))
    False
    """
    if isinstance(seed, int | np.integer):
        pair = jnp.asarray(words(int(seed)))
    elif seed.ndim == 1:
        pair = jnp.asarray(seed, jnp.uint32)
    else:
        low = jnp.asarray(seed)
        high = low >> 32 if low.dtype.itemsize > 4 else jnp.where(low < 0, jnp.uint32(_WORD), jnp.uint32(0))
        pair = jnp.stack([high.astype(jnp.uint32), low.astype(jnp.uint32)])
    # CRC-32 is used because Python's hash() differs from process to process.
    key = jax.random.wrap_key_data(pair, impl="threefry2x32")
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def at(key: Key[Array, "*A"], *indices: Any) -> Key[Array, "*B"]:
    """Folds `indices` (such as a step, a row and a position) into the keys, one after the other. Arrays broadcast.

    >>> key = stream(0, "sample")
    >>> keys = at(key, jnp.arange(3), 7)  # rows 0 to 2, each at position 7
    >>> keys.shape
    (3,)
    >>> bool(keys[2] == at(key, 2, 7))
    True
    """
    fold = jnp.vectorize(jax.random.fold_in)
    for index in indices:
        key = fold(key, jnp.asarray(index).astype(jnp.uint32))
    return key
