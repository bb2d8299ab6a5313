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

Judge = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(tokens [R, S], count [R], numpy or jax.numpy) -> logits [R, V], hidden [R, D] after the first `count` tokens."""


def encode(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


def decode(tokens: Any) -> str:
    return "".join(LETTERS[token] for token in np.asarray(tokens))


class FakeModel:
    """A judge with a cache of `slots` tokens."""

    def __init__(self, judge: Judge, slots: int) -> None:
        self.judge = judge
        self.slots = slots

    def prefill(self, tokens_BT: Any, length_B: Any) -> tuple[Any, Any, Any]:
        rows, width = tokens_BT.shape
        # Padding must not matter, so it is made to look like anything but what it is.
        read_BT = jnp.where(jnp.arange(width)[None] < length_B[:, None], tokens_BT, 7)
        read_BS = jnp.pad(read_BT, ((0, 0), (0, self.slots - width)), constant_values=5)
        _, hidden = self.judge(jnp.repeat(read_BS, width, axis=0), jnp.tile(jnp.arange(width) + 1, rows), jnp)
        return self.judge(read_BS, length_B, jnp)[0], hidden.reshape(rows, width, -1), {"read": read_BS}

    def step(self, tokens_R: Any, cache: Any, position_R: Any) -> tuple[Any, Any, Any]:
        read_RS = cache["read"].at[jnp.arange(len(tokens_R)), position_R].set(tokens_R)
        return *self.judge(read_RS, position_R + 1, jnp), {"read": read_RS}

    def logits(self, text: Sequence[int]) -> np.ndarray:
        return self._alone(text)[0]

    def hidden(self, text: Sequence[int]) -> np.ndarray:
        return self._alone(text)[1]

    def _alone(self, text: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        tokens = np.zeros((1, self.slots), np.int32)
        tokens[0, : len(text)] = text
        with np.errstate(over="ignore"):
            logits, hidden = self.judge(tokens, np.array([len(text)]), np)
        return np.asarray(logits[0], np.float64), np.asarray(hidden[0], np.float64)


def counting(vocabulary_size: int, width: int) -> Judge:
    """The next token is the last plus one, round and round, all but surely; hidden states say little."""

    def judge(tokens_RS: Any, count_R: Any, xp: Any) -> tuple[Any, Any]:
        last_R = xp.take_along_axis(tokens_RS, count_R[:, None] - 1, axis=1)[:, 0]
        next_RV = (last_R[:, None] + 1) % vocabulary_size == xp.arange(vocabulary_size)[None]
        place_RD = count_R[:, None] % width == xp.arange(width)[None]
        return 30.0 * next_RV.astype(xp.float32), place_RD.astype(xp.float32)

    return judge


def reciting(lines: Sequence[str], slots: int, width: int) -> Judge:
    """Whoever begins one of the lines, which all begin differently, hears it to its end, then padding for ever."""
    table_LN = np.array([encode(line.ljust(slots + 1, LETTERS[0])) for line in lines])

    def judge(tokens_RS: Any, count_R: Any, xp: Any) -> tuple[Any, Any]:
        table = xp.asarray(table_LN)
        line_R = xp.argmax(tokens_RS[:, :1] == table[:, 0][None], axis=1)
        next_RV = table[line_R, count_R][:, None] == xp.arange(len(LETTERS))[None]
        place_RD = count_R[:, None] % width == xp.arange(width)[None]
        return 30.0 * next_RV.astype(xp.float32), place_RD.astype(xp.float32)

    return judge


def hashing(vocabulary_size: int, slots: int, width: int, spread: float = 3.0, seed: int = 0) -> Judge:
    """Logits, from -spread to spread, and hidden states are arbitrary, and depend on every token and its place."""
    weights_S = np.random.default_rng(seed).integers(0, 2**32, slots, np.uint32) | 1

    def noise(text_R: Any, columns: int, salt: int, xp: Any) -> Any:
        salts = (np.arange(columns) + salt).astype(np.uint32) * np.uint32(2246822519)
        z = text_R[:, None] * xp.uint32(2654435761) + xp.asarray(salts)[None]
        for shift, factor in ((15, 2246822507), (13, 3266489909), (16, 668265263)):
            z = (z ^ (z >> xp.uint32(shift))) * xp.uint32(factor)
        # Multiples of 2^-24 are exact in float32, so that NumPy and JAX see the same numbers.
        return (z >> xp.uint32(8)).astype(xp.float32) / 2**24 - 0.5

    def judge(tokens_RS: Any, count_R: Any, xp: Any) -> tuple[Any, Any]:
        weighed_RS = (tokens_RS.astype(xp.uint32) + xp.uint32(1)) * xp.asarray(weights_S)[None]
        read_RS = xp.arange(slots)[None] < count_R[:, None]
        text_R = xp.where(read_RS, weighed_RS, xp.uint32(0)).sum(axis=1, dtype=xp.uint32)
        return 2 * spread * noise(text_R, vocabulary_size, 0, xp), noise(text_R, width, 1000, xp)

    return judge


def by_first_token(choices: dict[int, Judge], otherwise: Judge) -> Judge:
    """Texts that begin with one of these tokens are for that judge, who does not see it; so one batch can hold all."""

    def judge(tokens_RS: Any, count_R: Any, xp: Any) -> tuple[Any, Any]:
        logits, hidden = otherwise(tokens_RS, count_R, xp)
        rest_RS = xp.roll(tokens_RS, -1, axis=1)
        for token, other in choices.items():
            chosen_R1 = tokens_RS[:, :1] == token
            its_logits, its_hidden = other(rest_RS, xp.maximum(count_R - 1, 1), xp)
            logits, hidden = xp.where(chosen_R1, its_logits, logits), xp.where(chosen_R1, its_hidden, hidden)
        return logits, hidden

    return judge
