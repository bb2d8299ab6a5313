"""Selection from rows of logits without sorting them: the best token, the best few, or one drawn at random.

On CPU, XLA sorts whole rows, for `lax.top_k` too. With 5,000 tokens this takes longer than a step of a small model. The
functions here divide a row into about sqrt(V) blocks instead, and search one block at a time. Letters: B rows, V
vocabulary, K candidates, R x W a row of V (padded) as blocks.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from minigpt_jax import rng
from minigpt_jax.ops import reduce


class TokenFilter(NamedTuple):
    """Keeps a row's first tokens, in the order of descending score, until their weights reach a total.

    Tokens of equal score are ordered by their indices. A token is kept if the tokens before it weigh less than the
    total, so the first one is always kept.
    """

    score: Float[Array, "B V"]
    weight: Float[Array, "B V"]
    total: Float[Array, "B"]
    bar: Float[Array, "B"]
    """A lower bound on the scores of the kept tokens. It need not be tight."""

    def before(self, score: Float[Array, "B"], index: Int[Array, "B"]) -> Bool[Array, "B V"]:
        """Which tokens come before the one of this score and index."""
        earlier_BV = jnp.arange(self.score.shape[1])[None] < index[:, None]
        return (self.score > score[:, None]) | ((self.score == score[:, None]) & earlier_BV)

    def has(self, score: Float[Array, "B"], index: Int[Array, "B"]) -> Bool[Array, "B"]:
        """Whether the token of this score and index is kept; True if the comparison involves NaN."""
        return ~(reduce.sum(jnp.where(self.before(score, index), self.weight, 0.0)) >= self.total)

    def mask(self) -> Bool[Array, "B V"]:
        """Which tokens are kept. This takes 32 + log2(V) sums over the row, which is faster than sorting it.

        The last kept token is found by bisection: first its score, then its index among the tokens of that score.
        """
        rows, size = self.score.shape

        def halve_scores(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low_B, high_B = bounds
            middle_B = (low_B >> 1) + (high_B >> 1) + (low_B & high_B & 1)  # their sum may overflow
            kept_B = self.has(_float_of(middle_B), jnp.zeros(rows, jnp.int32))
            return jnp.where(kept_B, low_B, middle_B + 1), jnp.where(kept_B, middle_B, high_B)

        def halve_indices(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low_B, high_B = bounds
            middle_B = (low_B + high_B + 1) // 2
            kept_B = self.has(last_B, middle_B)
            return jnp.where(kept_B, middle_B, low_B), jnp.where(kept_B, high_B, middle_B - 1)

        bounds = _order_of(self.bar), _order_of(reduce.max(self.score))
        last_B = _float_of(lax.fori_loop(0, 32, halve_scores, bounds)[1])
        bounds = jnp.zeros(rows, jnp.int32), jnp.full(rows, size - 1, jnp.int32)
        index_B = lax.fori_loop(0, (size - 1).bit_length(), halve_indices, bounds)[0]
        return self.before(last_B, index_B + 1)


Truncation = Callable[[Float[Array, "B V"]], tuple[Float[Array, "B V"], TokenFilter | None]]
"""Logits -> logits with -inf for some removed tokens, and a filter for the remaining ones or None.

The last filter need not be evaluated for all tokens, because `draw` evaluates it only for those that it draws.
"""


def argmax(x: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The index of each row's greatest entry, or the lowest such index."""
    # On CPU, jnp.argmax, which reduces pairs, takes several times as long.
    return _first(x == reduce.max(x)[:, None])


def top(x: Float[Array, "B V"], k: int) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """Each row's k greatest entries and their indices, best first. Equal entries are ordered by their indices.

    It is `lax.top_k`, except that the indices of entries equal to -inf are arbitrary.
    """
    return lax.platform_dependent(x, cpu=lambda x: _top_by_extraction(x, k), default=lambda x: tuple(lax.top_k(x, k)))


def draw(logits: Float[Array, "B V"], key: Key[Array, "B"], truncate: Truncation | None = None) -> Int[Array, "B"]:
    """Draws one token per row from softmax(logits), by the row's key, among the tokens that `truncate` keeps.

    First it draws a block by its total probability, then a token of the block. This is exact, and takes about 2 sqrt(V)
    random numbers per row instead of V. If the filter rejects the token, another one is drawn from the tokens before
    it. These are fewer each time and include all that the filter keeps, so the accepted token is drawn from exactly
    those.
    """
    rows, logits_BRW = jnp.arange(logits.shape[0]), blocks(logits, -jnp.inf)
    height, width = logits_BRW.shape[1:]
    logits_BV = logits_BRW.reshape(rows.size, -1)
    logits_BV, kept = (logits_BV, None) if truncate is None else truncate(logits_BV)
    weight_BV = jnp.exp(logits_BV - reduce.max(logits_BV)[:, None])
    if kept is None:
        return jnp.minimum(_draw(weight_BV.reshape(logits_BRW.shape), rng.at(key, 0)), logits.shape[1] - 1)

    def undecided(state: tuple[Array, ...]) -> Array:
        turn, *_, accepted_B = state
        return ~accepted_B.all() & (turn < height * width)

    def again(state: tuple[Array, ...]) -> tuple[Array, ...]:
        turn, score_B, token_B, accepted_B = state
        left_BV = kept.before(score_B, token_B)
        drawn_B = _draw(jnp.where(left_BV, weight_BV, 0.0).reshape(logits_BRW.shape), rng.at(key, turn))
        token_B = jnp.where(accepted_B, token_B, drawn_B)
        score_B = jnp.where(accepted_B, score_B, kept.score[rows, drawn_B])
        return turn + 1, score_B, token_B, accepted_B | kept.has(score_B, token_B)

    state = (jnp.int32(0), kept.bar, jnp.full(rows.size, height * width), jnp.zeros(rows.size, bool))
    # Only a row of NaN can have drawn padding.
    return jnp.minimum(lax.while_loop(undecided, again, state)[2], logits.shape[1] - 1)


def _draw(weight_BRW: Array, key_B: Array) -> Array:
    """Draws one index per row, in proportion to weight.

    The block, and then its entry, has the greatest product of its weight and exponential noise (the Gumbel-max trick).
    The last bits of the weights depend on the batch size. They hardly ever change this maximum, while they would change
    where a cumulative sum crosses a random number.
    """
    rows, height, width = weight_BRW.shape
    tiny = jnp.finfo(jnp.float32).tiny
    noise_BN = jax.vmap(lambda key: jax.random.uniform(key, (width + height,), minval=tiny))(key_B)
    pace_BN = -1 / jnp.log(noise_BN)
    # Blocks are the columns: sums over the middle axis are the ones that vectorise.
    column_B = argmax(weight_BRW.sum(axis=1) * pace_BN[:, :width])
    entry_B = argmax(weight_BRW[jnp.arange(rows), :, column_B] * pace_BN[:, width:])
    return entry_B * width + column_B


def _first(mask_BN: Array) -> Array:
    """The index of each row's first true entry; the last index if there is none."""
    index_1N = jnp.arange(mask_BN.shape[1], dtype=jnp.float32)[None]
    return reduce.min(jnp.where(mask_BN, index_1N, mask_BN.shape[1] - 1)).astype(jnp.int32)


def _top_by_extraction(x_BV: Array, k: int) -> Any:
    """Takes the best entry k times. Each time it reads the blocks' maxima and the entries of one block.

    It erases no entry, since that would copy x. Entries are taken in a fixed order, so the last one that was taken from
    a block determines which are left.
    """
    x_BRW = blocks(x_BV, -jnp.inf)
    rows, position_1W = jnp.arange(x_BRW.shape[0]), jnp.arange(x_BRW.shape[2])[None]

    def take(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        # best: the greatest entry left in a block; after: the position from which equal entries are left.
        best_BR, after_BR, values_BK, indices_BK = carry
        block_B = argmax(best_BR)
        best_B1 = best_BR[rows, block_B][:, None]
        block_BW = _take(x_BRW, block_B)
        equal_BW = (block_BW == best_B1) & (position_1W >= after_BR[rows, block_B][:, None])
        position_B1 = _first(equal_BW)[:, None]
        left_BW = (block_BW < best_B1) | (equal_BW & (position_1W > position_B1))
        next_B1 = jnp.max(block_BW, axis=1, keepdims=True, where=left_BW, initial=-jnp.inf)
        after_B1 = jnp.where(next_B1 == best_B1, position_B1 + 1, 0)
        return (
            best_BR.at[rows, block_B].set(next_B1[:, 0]),
            after_BR.at[rows, block_B].set(after_B1[:, 0]),
            values_BK.at[:, i].set(best_B1[:, 0]),
            indices_BK.at[:, i].set(block_B * position_1W.size + position_B1[:, 0]),
        )

    best_BR = x_BRW.max(axis=2)
    out = (jnp.zeros((rows.size, k), x_BV.dtype), jnp.zeros((rows.size, k), jnp.int32))
    return lax.fori_loop(0, k, take, (best_BR, jnp.zeros(best_BR.shape, jnp.int32), *out))[2:]


def blocks(x_BV: Array, fill: float) -> Array:
    """Reshapes [B, V] to [B, R, W], in order, with R and W near sqrt(V), padded at the end."""
    size = x_BV.shape[1]
    width = 2 ** round(math.log2(size) / 2)
    return jnp.pad(x_BV, ((0, 0), (0, -size % width)), constant_values=fill).reshape(x_BV.shape[0], -1, width)


def _take(x_BRW: Array, block_B: Array) -> Array:
    """Row b of the result is x[b, block[b]]."""
    return x_BRW.at[jnp.arange(x_BRW.shape[0]), block_B].get(mode="promise_in_bounds")


def _order_of(x: Float[Array, "B"]) -> Int[Array, "B"]:
    """Whole numbers in the order of the floats."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _float_of(order: Int[Array, "B"]) -> Float[Array, "B"]:
    """The inverse of `_order_of`."""
    return lax.bitcast_convert_type(order ^ ((order >> 31) & 0x7FFFFFFF), jnp.float32)
