"""Attention of one new token per row to the keys and values of a cache.

On CPU it is bound by memory, so it reads as few slots as it can. Letters as in `kv_cache`: B rows, N key-value heads, G
query heads per key-value head, S slots, H head width, W width of the values, P prompts of K branches each. L is a
number of neighbouring slots.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from minigpt_jax.ops.kv_cache import Layer
from minigpt_jax.ops.platform import on_cpu

# If a layer's keys take more bytes than the processor's cache holds, quarters that are still empty are not read.
_PARTS, _MIN_BYTES_TO_SKIP = 4, 1 << 20
# Each branch of a prompt reads a window of its own, of 1/8, 1/4, 1/2 or all of the slots.
_WINDOWS = (8, 4, 2, 1)
Result = TypeVar("Result")


def attend(query: Float[Array, "B 1 M H"], layer: Layer, mask: Bool[Array, "B S"]) -> Float[Array, "B 1 M H"]:
    """Attention of one query per row to the slots where `mask` is true; M = N * G query heads.

    Scores are divided by sqrt(H). They and the softmax are computed in float32.
    """
    query_BNGH = query.reshape(len(query), layer.keys.shape[1], -1, query.shape[-1])
    mixed_BNGH = (_to_branches if layer.forked else _to_rows)(query_BNGH, layer._replace(recent=()), mask)
    return mixed_BNGH.reshape(query.shape).astype(query.dtype)


def _to_rows(query_BNGH: Array, layer: Layer, mask_BS: Array) -> Array:
    """`attend` where each row stores all that it reads."""

    def attention(count: int, query_BNGH: Array, layer: Layer, mask_BS: Array) -> Array:
        keys, values = layer.keys[:, :, :count], layer.values[:, :, :count]
        weights = jax.nn.softmax(_scores(query_BNGH, keys, mask_BS[:, None, None, :count]))
        return jnp.einsum("bngl,bnlw->bngw", weights.astype(values.dtype), values)

    return _to_slots_in_use(attention, query_BNGH, layer, mask_BS)


def _to_branches(query_BNGH: Array, layer: Layer, mask_BS: Array) -> Array:
    """`attend` in a forked layer.

    The branches of a prompt mostly differ in their latest tokens alone. A key and value that all of them share is read
    once, and multiplied with the queries of all branches. Only in a window of slots, from the first one on that
    differs, does each branch read its own; the window is as wide as the prompt with the most such slots needs.
    """
    source_PKS = layer.source
    assert source_PKS is not None
    prompts, branches, slots = source_PKS.shape
    heads, groups = query_BNGH.shape[1:3]
    mask_PKS = mask_BS.reshape(source_PKS.shape)
    shared_PS = jnp.all(source_PKS == source_PKS[:, :1], axis=1)
    slot_1S = jnp.arange(slots)[None]
    first_P = jnp.min(jnp.where(shared_PS, slots, slot_1S), axis=1)
    last_P = jnp.max(jnp.where(shared_PS, 0, slot_1S), axis=1)

    def of_shared(count: int, query_BNGH: Array, layer: Layer, mask_PKS: Array) -> _Part:
        keys, values = _stored(layer, source_PKS[:, :1, :count], slot_1S[:, None, :count])
        query_PKNGH = query_BNGH.reshape(prompts, branches, *query_BNGH.shape[1:])
        query_PNQH = query_PKNGH.swapaxes(1, 2).reshape(prompts, heads, branches * groups, -1)
        mask_PQL = jnp.repeat(mask_PKS[:, :, :count], groups, axis=1)
        part = _part(query_PNQH, keys, values, mask_PQL[:, None])
        by_row = lambda x: x.reshape(prompts, heads, branches, groups, -1).swapaxes(1, 2)  # noqa: E731
        return _Part(*(by_row(x).reshape(*query_BNGH.shape[:3], -1) for x in part))

    def of_own(window: int, query_BNGH: Array, layer: Layer, mask_PKS: Array) -> _Part:
        slot_P1L = jnp.minimum(first_P, slots - window)[:, None, None] + jnp.arange(window)[None, None]
        slot_PKL = jnp.broadcast_to(slot_P1L, (prompts, branches, window))
        source_PKL, mask_PKL = (jnp.take_along_axis(x, slot_PKL, axis=2) for x in (source_PKS, mask_PKS))
        keys, values = _stored(layer, source_PKL, slot_P1L)
        return _part(query_BNGH, keys, values, mask_PKL.reshape(-1, 1, 1, window))

    shared = _to_slots_in_use(of_shared, query_BNGH, layer, mask_PKS & shared_PS[:, None])
    windows = [-(-slots // fraction) for fraction in _WINDOWS]
    choice = jnp.sum(jnp.max(last_P - first_P + 1) > jnp.array(windows[:-1]))
    choices = [functools.partial(of_own, window) for window in windows]
    own = lax.switch(choice, choices, query_BNGH, layer, mask_PKS & ~shared_PS[:, None])
    return _merged(shared, own)


def _to_slots_in_use(
    attention: Callable[..., Result], query_BNGH: Array, layer: Layer, mask: Bool[Array, "*B S"]
) -> Result:
    """`attention(count, …)` for the first `count` slots: in quarters, as many as hold all where the mask is true."""
    slots, parts = layer.keys.shape[2], _PARTS
    if not on_cpu() or layer.keys.nbytes < _MIN_BYTES_TO_SKIP or slots % parts:
        parts = 1
    part = slots // parts
    last = jnp.max(jnp.where(mask.reshape(-1, slots).any(axis=0), jnp.arange(slots), 0))
    choices = [functools.partial(attention, part * (i + 1)) for i in range(parts)]
    return lax.switch(last // part, choices, query_BNGH, layer, mask)


def _stored(
    layer: Layer, branch: Int[Array, "P J L"], slot: Int[Array, "#P #J L"]
) -> tuple[Float[Array, "P*J N L H"], Num[Array, "P*J N L W"]]:
    """The keys and values that J branches of each prompt store in these slots."""
    assert layer.source is not None
    prompts, branches, slots = layer.source.shape
    heads = layer.keys.shape[1]
    row_PJ1L = (jnp.arange(prompts)[:, None, None] * branches + branch)[:, :, None]
    index_PJNL = (row_PJ1L * heads + jnp.arange(heads)[None, None, :, None]) * slots + slot[:, :, None]
    index_BNL = index_PJNL.reshape(-1, *index_PJNL.shape[2:])
    # As rows of a matrix: with three indices for each token, this takes a tenth longer.
    matrices = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (layer.keys, layer.values))
    keys, values = (matrix.at[index_BNL].get(mode="promise_in_bounds") for matrix in matrices)
    return keys, values


def _scores(query_BNGH: Array, keys_BNLH: Array, mask: Array) -> Array:
    scores_BNGL = jnp.einsum("bngh,bnlh->bngl", query_BNGH, keys_BNLH, preferred_element_type=jnp.float32)
    return jnp.where(mask, scores_BNGL * query_BNGH.shape[-1] ** -0.5, -jnp.inf)


class _Part(NamedTuple):
    """Attention to a part of the slots, before the softmax divides by the sum over all parts."""

    max_score: Float[Array, "B N G 1"]
    """The greatest score, or the lowest float32 if all are masked."""
    total_weight: Float[Array, "B N G 1"]
    """The sum of the weights, which are exp(score - max_score)."""
    weighted_values: Float[Array, "B N G W"]
    """The sum of the values, each times its weight."""


def _part(query_BNGH: Array, keys_BNLH: Array, values_BNLW: Array, mask: Array) -> _Part:
    """Attention to these L slots; the mask is broadcast to [B N G L]."""
    scores_BNGL = _scores(query_BNGH, keys_BNLH, mask)
    most = jnp.max(scores_BNGL, axis=-1, keepdims=True, initial=jnp.finfo(jnp.float32).min)
    weights_BNGL = jnp.exp(scores_BNGL - most)
    mixed = jnp.einsum("bngl,bnlw->bngw", weights_BNGL.astype(values_BNLW.dtype), values_BNLW)
    return _Part(most, jnp.sum(weights_BNGL, axis=-1, keepdims=True), mixed.astype(jnp.float32))


def _merged(one: _Part, other: _Part) -> Float[Array, "B N G W"]:
    """Attention to both parts."""
    most = jnp.maximum(one.max_score, other.max_score)
    one_factor, other_factor = jnp.exp(one.max_score - most), jnp.exp(other.max_score - most)
    total = one.total_weight * one_factor + other.total_weight * other_factor
    return one.weighted_values * (one_factor / total) + other.weighted_values * (other_factor / total)
