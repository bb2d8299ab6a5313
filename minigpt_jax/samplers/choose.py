"""Picking from rows of logits without sorting them: the best token, the best few, or one drawn at random.

XLA sorts whole rows on CPU, for `lax.top_k` too, which at 5,000 tokens costs more than a small model's step. All three
functions here cut a row into about sqrt(V) blocks and look closely at one block at a time instead. Letters: B rows,
V vocabulary, K candidates, R x W a row of V (padded) as blocks.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from minigpt_jax import rng
from minigpt_jax.samplers.processors import Kept


def argmax(x: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The index of each row's greatest entry, the lowest of equals."""
    # Plain float minima and maxima vectorise on CPU, the pairs that jnp.argmax reduces do not: a sixth of the time.
    index_V = jnp.arange(x.shape[1], dtype=jnp.float32)[None]
    return jnp.where(x == x.max(axis=1, keepdims=True), index_V, jnp.inf).min(axis=1).astype(jnp.int32)


def top(x: Float[Array, "B V"], k: int) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """Each row's k greatest entries and their indices, best first, of equals the lowest index first.

    As `lax.top_k`, except that the indices of entries equal to -inf mean nothing.
    """
    return lax.platform_dependent(x, cpu=lambda x: _top_by_extraction(x, k), default=lambda x: tuple(lax.top_k(x, k)))


def draw(logits: Float[Array, "B V"], key: Key[Array, "B"], kept: Kept | None = None) -> Int[Array, "B"]:
    """One token a row from softmax(logits), by that row's key; from the tokens kept only, if that is given.

    A token that turns out not to be kept is drawn again, from those that come before it. These are fewer each time and
    hold all that is kept, so that the one which stays is drawn from just that; two or three times do as a rule.
    """
    weight_BV = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    if kept is None:
        return _draw(weight_BV, rng.at(key, 0))
    score_BV = kept.score

    def unsettled(state: tuple[Array, ...]) -> Array:
        turn, _, _, settled_B = state
        return ~settled_B.all() & (turn < logits.shape[1])

    def again(state: tuple[Array, ...]) -> tuple[Array, ...]:
        turn, token_B, bar_B, settled_B = state
        left_BV = kept.before(bar_B, token_B)
        drawn_B = _draw(jnp.where(left_BV, weight_BV, 0.0), rng.at(key, turn))
        token_B = jnp.where(settled_B, token_B, drawn_B)
        bar_B = jnp.take_along_axis(score_BV, token_B[:, None], axis=1)[:, 0]
        return turn + 1, token_B, bar_B, settled_B | kept.has(token_B)

    rows = logits.shape[0]
    state = (0, jnp.full(rows, logits.shape[1]), jnp.full(rows, -jnp.inf), jnp.zeros(rows, bool))
    return lax.while_loop(unsettled, again, state)[1]


def _draw(weight_BV: Array, key_B: Array) -> Array:
    """One index a row, in proportion to weight.

    First a block by its total weight, then an entry of it: exact, for about 2 sqrt(V) random numbers a row in place of
    V. Both choices are races (the Gumbel-max trick): unlike the place where a running sum crosses a random number, a
    race's winner hardly ever changes with the last bits of the weights, which depend on the batch size.
    """
    weight_BRW = _blocks(weight_BV, 0.0)
    # Blocks are the columns here: sums over the middle axis are the ones that vectorise.
    column_B = _race(weight_BRW.sum(axis=1), rng.at(key_B, 0))
    row_B = _race(_take(weight_BRW.swapaxes(1, 2), column_B), rng.at(key_B, 1))
    return row_B * weight_BRW.shape[2] + column_B


def _race(weight_BN: Array, key_B: Array) -> Array:
    """Index drawn in proportion to weight: that of the first of exponential clocks with these rates to ring."""
    tiny = jnp.finfo(jnp.float32).tiny
    uniform_BN = jax.vmap(lambda key: jax.random.uniform(key, weight_BN.shape[1:], minval=tiny))(key_B)
    return jnp.argmax(weight_BN / -jnp.log(uniform_BN), axis=1)


def _top_by_extraction(x_BV: Array, k: int) -> Any:
    """Take the best entry k times over, each time looking at the blocks' maxima and into one block.

    Nothing is erased, which would copy x: in a fixed order, the last entry taken from a block tells which are left.
    """
    x_BRW = _blocks(x_BV, -jnp.inf)
    rows, places_1W = jnp.arange(x_BRW.shape[0]), jnp.arange(x_BRW.shape[2])[None]

    def take(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        # best: the greatest entry left in a block; after: where among its equals the ones that are left begin.
        best_BR, after_BR, values_BK, indices_BK = carry
        block_B = jnp.argmax(best_BR, axis=1)
        best_B1 = best_BR[rows, block_B][:, None]
        block_BW = _take(x_BRW, block_B)
        equal_BW = (block_BW == best_B1) & (places_1W >= after_BR[rows, block_B][:, None])
        place_B1 = jnp.argmax(equal_BW, axis=1, keepdims=True)
        left_BW = (block_BW < best_B1) | (equal_BW & (places_1W > place_B1))
        next_B1 = jnp.max(block_BW, axis=1, keepdims=True, where=left_BW, initial=-jnp.inf)
        after_B1 = jnp.where(next_B1 == best_B1, place_B1 + 1, 0)
        return (
            best_BR.at[rows, block_B].set(next_B1[:, 0]),
            after_BR.at[rows, block_B].set(after_B1[:, 0]),
            values_BK.at[:, i].set(best_B1[:, 0]),
            indices_BK.at[:, i].set(block_B * places_1W.size + place_B1[:, 0]),
        )

    best_BR = x_BRW.max(axis=2)
    out = (jnp.zeros((rows.size, k), x_BV.dtype), jnp.zeros((rows.size, k), jnp.int32))
    return lax.fori_loop(0, k, take, (best_BR, jnp.zeros(best_BR.shape, jnp.int32), *out))[2:]


def _blocks(x_BV: Array, fill: float) -> Array:
    """[B, V] as [B, R, W], in order, with R and W near sqrt(V) and the end filled up."""
    size = x_BV.shape[1]
    width = 2 ** round(math.log2(size) / 2)
    return jnp.pad(x_BV, ((0, 0), (0, -size % width)), constant_values=fill).reshape(x_BV.shape[0], -1, width)


def _take(x_BRW: Array, block_B: Array) -> Array:
    """Row b of the result is x[b, block[b]]."""
    return x_BRW.at[jnp.arange(x_BRW.shape[0]), block_B].get(mode="promise_in_bounds")
