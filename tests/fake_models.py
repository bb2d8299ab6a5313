"""Models without weights, in the form that samplers drive, and what they say about any text, in NumPy.

Each keeps the tokens that it has read in its cache and looks at nothing else, so that a sampler which loses, mixes up
or misplaces a row of the cache gets other logits than the text deserves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

LETTERS = "·abcdefghijklmnopqrstuvwxyz ."
"""An alphabet for readable tests: a token is an index, 0 is padding."""


def encode(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


def decode(tokens: Any) -> str:
    return "".join(LETTERS[token] for token in np.asarray(tokens))


class FakeModel:
    """`judge(tokens_RS, count_R, xp)` gives logits [R, V] and hidden states [R, D] after the first `count` tokens."""

    def __init__(self, judge: Callable[[Any, Any, Any], tuple[Any, Any]], slots: int) -> None:
        self.judge = judge
        self.slots = slots

    def prefill(self, tokens_BT: Any, length_B: Any) -> tuple[Any, Any, Any]:
        width = tokens_BT.shape[1]
        # Padding must not matter, so it is made to look like anything but what it is.
        read_BT = jnp.where(jnp.arange(width)[None] < length_B[:, None], tokens_BT, 7)
        cache = {"read": jnp.pad(read_BT, ((0, 0), (0, self.slots - width)), constant_values=5)}
        hidden = [self.judge(cache["read"], jnp.full_like(length_B, t + 1), jnp)[1] for t in range(width)]
        return self.judge(cache["read"], length_B, jnp)[0], jnp.stack(hidden, axis=1), cache

    def step(self, tokens_R: Any, cache: Any, position_R: Any) -> tuple[Any, Any, Any]:
        read_RS = cache["read"].at[jnp.arange(len(tokens_R)), position_R].set(tokens_R)
        return *self.judge(read_RS, position_R + 1, jnp), {"read": read_RS}

    def logits(self, text: Sequence[int]) -> np.ndarray:
        return self._alone(text)[0]

    def hidden(self, text: Sequence[int]) -> np.ndarray:
        return self._alone(text)[1]

    def _alone(self, text: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(over="ignore"):
            logits, hidden = self.judge(np.asarray([text], np.int32), np.array([len(text)]), np)
        return np.asarray(logits[0], np.float64), np.asarray(hidden[0], np.float64)


def counting(vocabulary_size: int, slots: int = 64) -> FakeModel:
    """The next token is the last plus one, round and round; a token's hidden state is its direction."""

    def judge(tokens_RS: Any, count_R: Any, xp: Any) -> tuple[Any, Any]:
        last_R = xp.take_along_axis(tokens_RS, count_R[:, None] - 1, axis=1)[:, 0]
        next_RV = (last_R[:, None] + 1) % vocabulary_size == xp.arange(vocabulary_size)[None]
        return 10.0 * next_RV.astype(xp.float32), (last_R[:, None] == xp.arange(8)[None]).astype(xp.float32)

    return FakeModel(judge, slots)


def reciting(lines: Sequence[str], slots: int = 64) -> FakeModel:
    """Whoever begins one of the lines, which all begin differently, hears it to its end, then padding for ever."""
    longest = max(map(len, lines))
    table_LN = np.array([encode(line.ljust(longest, LETTERS[0])) + [0] * slots for line in lines])

    def judge(tokens_RS: Any, count_R: Any, xp: Any) -> tuple[Any, Any]:
        table = xp.asarray(table_LN)
        line_R = xp.argmax(tokens_RS[:, :1] == table[:, 0][None], axis=1)
        next_RV = table[line_R, count_R][:, None] == xp.arange(len(LETTERS))[None]
        return 10.0 * next_RV.astype(xp.float32), xp.zeros((len(tokens_RS), 1), xp.float32)

    return FakeModel(judge, slots)


def hashing(vocabulary_size: int, slots: int = 16, width: int = 6, spread: float = 3.0, seed: int = 0) -> FakeModel:
    """Logits and hidden states are arbitrary, and depend on every token read and its place."""
    weights_S = np.random.default_rng(seed).integers(0, 2**32, slots, np.uint32) | 1

    def noise(text_R: Any, columns: int, salt: int, xp: Any) -> Any:
        z = text_R[:, None] * xp.uint32(2654435761) + (xp.arange(columns) + salt).astype(xp.uint32)[None] * xp.uint32(
            2246822519
        )
        for shift, factor in ((15, 2246822507), (13, 3266489909), (16, 668265263)):
            z = (z ^ (z >> xp.uint32(shift))) * xp.uint32(factor)
        # 2^24 steps are exact in float32, so that NumPy and JAX see the same numbers.
        return (z >> xp.uint32(8)).astype(xp.float32) / 2**24 - 0.5

    def judge(tokens_RS: Any, count_R: Any, xp: Any) -> tuple[Any, Any]:
        weighed_RS = (tokens_RS.astype(xp.uint32) + xp.uint32(1)) * xp.asarray(weights_S)[None, : tokens_RS.shape[1]]
        read_RS = xp.arange(tokens_RS.shape[1])[None] < count_R[:, None]
        text_R = xp.where(read_RS, weighed_RS, xp.uint32(0)).sum(axis=1, dtype=xp.uint32)
        logits_RV = 2 * spread * noise(text_R, vocabulary_size, 0, xp)
        return logits_RV, noise(text_R, width, 1000, xp)

    return FakeModel(judge, slots)
