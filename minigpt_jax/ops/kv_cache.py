"""The static key-value cache: a pytree of fixed shape, rows first in every leaf.

A cache is a tuple of one `Layer` a layer of the model, its pointer being one, so that no layer's arrays are ever
restacked. Letters: B rows, N key-value heads, G query heads to a key-value head, S slots, H head width, T prompt
positions, C positions and D features of the inputs that a convolution or pointer still needs; W is H but in a pointer.

The position p of a row lives in slot p mod S. As long as positions stay below S that is the position itself; past it
the cache rolls: a new token takes the slot of the one S positions ago, and attention sees a window of the last S
tokens (keys must then carry their position in themselves, as rotary ones do). Slots that hold nothing yet, or the
padding of a ragged prompt, are hidden by `visible`, never cleared.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, PyTree


class Layer(NamedTuple):
    """Keys and values of one layer, and the latest inputs of its convolutions if it has any.

    A pointer's values are the tokens themselves, and its input is the last hidden state.

    Heads come before slots: a step's attention is then a product of contiguous [S, H] blocks, which on CPU takes a
    quarter of the time that it takes with slots before heads. Nothing outside this module knows of it.
    """

    keys: Float[Array, "B N S H"]
    values: Num[Array, "B N S W"]
    recent: tuple[Float[Array, "B C D"], ...] = ()


Cache = tuple[Layer, ...]

# On CPU attention passes over slots that nothing is in yet, where a layer's keys are more bytes than stay in cache.
_PARTS, _WORTH_A_CHOICE = 4, 1 << 20
_BLOCK = 16  # slots that are reordered at a time


def allocate(
    batch: int, num_layers: int, slots: int, heads: int, head_width: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> Cache:
    """An empty cache of `num_layers` layers for `heads` key-value heads."""
    shape = (batch, heads, slots, head_width)
    return tuple(Layer(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(num_layers))


def from_prefill(
    layers: Sequence[tuple[Array, ...]],
    slots: int,
    length: Int[Array, "B"],
    recent: int = 0,
) -> Cache:
    """A cache of `slots` slots that holds the keys and values of right-padded prompts of `length` tokens.

    Of a row longer than the cache the last `slots` tokens are kept.

    Args:
        layers: keys [B T N H], values [B T N W], and any inputs of convolutions or a pointer, [B T D] each.
        recent: how many of those inputs are kept; those before a row's first token are 0.
    """

    def place(x_BTNH: Array) -> Array:
        width = x_BTNH.shape[1]
        if width > slots:
            # The latest position of the row that lives in each slot; a slot without one gets any, and stays hidden.
            last_B1 = length[:, None] - 1
            position_BS = last_B1 - (last_B1 - jnp.arange(slots)[None]) % slots
            x_BTNH = jnp.take_along_axis(x_BTNH, jnp.maximum(position_BS, 0)[:, :, None, None], axis=1)
        x_BNTH = x_BTNH.swapaxes(1, 2)
        return jnp.pad(x_BNTH, ((0, 0), (0, 0), (0, max(slots - width, 0)), (0, 0)))

    def latest(x_BTD: Array) -> Array:
        position_BC = length[:, None] - jnp.arange(recent, 0, -1)[None]
        x_BCD = jnp.take_along_axis(x_BTD, jnp.maximum(position_BC, 0)[:, :, None], axis=1)
        return jnp.where((position_BC >= 0)[:, :, None], x_BCD, 0)

    return tuple(Layer(place(k), place(v), tuple(map(latest, inputs))) for k, v, *inputs in layers)


def write(
    layer: Layer, keys: Float[Array, "B 1 N H"], values: Num[Array, "B 1 N W"], position: Int[Array, "B"]
) -> Layer:
    """Put one token a row into the slot of its position; in place where the cache is a loop's or a donated buffer.

    One scatter of B * N rows: on CPU the only form that neither copies the cache nor turns its layout round under the
    attention that follows (a vmapped dynamic_update_slice does the latter, and selecting by a mask rewrites it all).
    """
    return layer._replace(
        keys=_put(layer.keys, keys[:, 0], position), values=_put(layer.values, values[:, 0], position)
    )


def attend(
    query: Float[Array, "B 1 M H"], layer: Layer, mask: Bool[Array, "B S"], scale: float | None = None
) -> Float[Array, "B 1 M H"]:
    """Attention of one query a row to the slots where `mask` is true; M = N * G query heads.

    `scale` is 1 / sqrt(H) by default. Scores and softmax are float32.
    """
    slots, parts = layer.keys.shape[2], _PARTS
    if jax.default_backend() != "cpu" or layer.keys.nbytes < _WORTH_A_CHOICE or slots % parts:
        return _attend(query, layer, mask, scale)

    # Memory bounds it: read the slots up to the last one in use, in steps of a part.
    def first(count: int) -> Callable[..., Array]:
        return lambda query, keys, values, mask: _attend(
            query, Layer(keys[:, :, :count], values[:, :, :count]), mask[:, :count], scale
        )

    last = jnp.max(jnp.where(mask, jnp.arange(slots)[None], 0))
    choices = [first(slots * (i + 1) // parts) for i in range(parts)]
    return lax.switch(last // (slots // parts), choices, query, layer.keys, layer.values, mask)


def _attend(query: Array, layer: Layer, mask: Array, scale: float | None) -> Array:
    batch, _, query_heads, width = query.shape
    heads = layer.keys.shape[1]
    query_BNGH = query.reshape(batch, heads, query_heads // heads, width)
    scores_BNGS = jnp.einsum("bngh,bnsh->bngs", query_BNGH, layer.keys, preferred_element_type=jnp.float32)
    scores_BNGS = jnp.where(mask[:, None, None], scores_BNGS * (width**-0.5 if scale is None else scale), -jnp.inf)
    weights_BNGS = jax.nn.softmax(scores_BNGS).astype(layer.values.dtype)
    mixed_BNGH = jnp.einsum("bngs,bnsh->bngh", weights_BNGS, layer.values)
    return mixed_BNGH.reshape(query.shape).astype(query.dtype)


def of_one_head(layer: Layer) -> tuple[Float[Array, "B S H"], Num[Array, "B S W"]]:
    """Keys and values of a layer that has a single head, by slot."""
    return layer.keys[:, 0], layer.values[:, 0]


def num_slots(cache: Cache) -> int:
    """S, the positions that the cache has room for."""
    return cache[0].keys.shape[2]


def visible(position: Int[Array, "B"], slots: int) -> Bool[Array, "B S"]:
    """Which slots the token at `position`, itself just written, may attend to: of the last S positions all there are.

    Before the cache is full these are the slots up to the token's own; from then on all of them.
    """
    return jnp.arange(slots)[None] <= position[:, None]


def reorder(cache: PyTree, rows: Int[Array, "R"], used: Int[Array, ""] | None = None) -> PyTree:
    """A cache whose row i is the given one's row rows[i]; R may differ from B. Takes any pytree with rows first.

    With `used`, R is B, no layer holds anything yet in the slots from there on, and these may stay as they are.
    """
    gather = lambda leaf: leaf.at[rows].get(mode="promise_in_bounds")  # noqa: E731

    def take(node: Layer | Array) -> Layer | Array:
        if not isinstance(node, Layer):
            return gather(node)
        if used is None or jax.default_backend() != "cpu" or node.keys.shape[2] % _BLOCK:
            return Layer(*jax.tree.map(gather, tuple(node)))
        keys, values = _reorder_blocks((node.keys, node.values), gather, used)
        return Layer(keys, values, jax.tree.map(gather, node.recent))

    return jax.tree.map(take, cache, is_leaf=lambda node: isinstance(node, Layer))


def _reorder_blocks(leaves: tuple[Array, Array], gather: Callable[[Array], Array], used: Array) -> tuple[Array, Array]:
    """A few slots at a time, in place: gathered whole, a loop's cache would be copied back to where it was, too."""

    def block(i: Array, leaves: tuple[Array, Array]) -> tuple[Array, Array]:
        keys, values = (gather(lax.dynamic_slice_in_dim(leaf, i * _BLOCK, _BLOCK, axis=2)) for leaf in leaves)
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=i * _BLOCK, axis=2)
        return put(leaves[0], keys), put(leaves[1], values)

    blocks = -(-jnp.minimum(used, leaves[0].shape[2]) // _BLOCK)
    return lax.fori_loop(0, blocks, block, leaves)


def repeat(cache: PyTree, times: int) -> PyTree:
    """A cache of B * times rows, each row `times` over, side by side. Takes any pytree with rows first."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), cache)


def adopt(cache: PyTree, rows: Int[Array, "B"], position: Int[Array, "B"]) -> PyTree:
    """`reorder`, for when row i and row rows[i] differ in nothing but their token at position[i].

    Then it is enough to copy that one slot. That is so for candidates that go on from one context; what is no key or
    value is gathered whole.
    """

    def take(node: Layer | Array) -> Layer | Array:
        if not isinstance(node, Layer):
            return reorder(node, rows)
        slots = position % node.keys.shape[2]
        keys, values = (_put(leaf, leaf[rows, :, slots], position) for leaf in (node.keys, node.values))
        return Layer(keys, values, reorder(node.recent, rows))

    return jax.tree.map(take, cache, is_leaf=lambda node: isinstance(node, Layer))


def _put(leaf_BNSH: Array, new_BNH: Array, position_B: Array) -> Array:
    rows, heads = jnp.arange(leaf_BNSH.shape[0])[:, None], jnp.arange(leaf_BNSH.shape[1])[None, :]
    slots = position_B[:, None] % leaf_BNSH.shape[2]
    return leaf_BNSH.at[rows, heads, slots].set(
        new_BNH.astype(leaf_BNSH.dtype), mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True
    )
