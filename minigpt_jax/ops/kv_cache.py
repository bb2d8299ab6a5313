"""The static key-value cache: a pytree of fixed shape, with rows as the first axis of every leaf but `Layer.source`.

A cache is a tuple with one `Layer` for each layer of the model (a pointer counts as a layer), so that the arrays of
different layers are never stacked. Letters: B rows, N key-value heads, G query heads per key-value head, S slots, H
head width, T prompt positions. A convolution or a pointer also needs its latest inputs: C positions of D features. W is
the width of the values, which differs from H only in a pointer. Where rows are branches of a prompt, as the hypotheses
of beam search are, B = P * K: P prompts of K branches each, side by side.

Position p of a row is stored in slot p mod S. While positions stay below S, the slot is the position itself. Past S the
cache rolls: a new token overwrites the one S positions before it, and attention sees a window of the last S tokens.
(Keys must then encode their position themselves, as rotary ones do.) Slots that are empty, or that hold the padding of
a ragged prompt, are masked by `visible` and never cleared.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from minigpt_jax.ops.platform import on_cpu


class Layer(NamedTuple):
    """Keys and values of one layer, and the latest inputs of its convolutions if it has any.

    A pointer's values are the tokens themselves, and its input is the last hidden state.

    Heads come before slots, so that a decode step's attention multiplies contiguous [S, H] blocks. On CPU this takes a
    quarter of the time of the other order. Only `cached_attention` depends on the order too.

    Rows that `fork` has made of one row are branches of it. Then `source[p, k, s]` is the number of the branch of
    prompt p that stores the key and value that branch k has in slot s. A branch can thus continue another one without
    copying the other's tokens. Only `cached_attention` reads `source`. A layer that may be forked has a `source` of no
    slots before `fork`; None means that it may not.
    """

    keys: Float[Array, "B N S H"]
    values: Num[Array, "B N S W"]
    recent: tuple[Float[Array, "B C D"], ...] = ()
    source: Int[Array, "P K S"] | None = None

    @property
    def forked(self) -> bool:
        """Whether `fork` has left tokens of a row's branches in other rows."""
        return self.source is not None and self.source.shape[2] > 0


Cache = tuple[Layer, ...]

_BLOCK = 16  # slots that are reordered at a time


def allocate(
    batch: int, num_layers: int, slots: int, heads: int, head_width: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> Cache:
    """An empty cache of `num_layers` layers with `heads` key-value heads each."""
    shape = (batch, heads, slots, head_width)
    return tuple(Layer(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(num_layers))


def from_prefill(
    layers: Sequence[tuple[Array, ...]],
    slots: int,
    length: Int[Array, "B"],
    recent: int = 0,
    *,
    forks: bool = False,
) -> Cache:
    """A cache of `slots` slots that holds the keys and values of right-padded prompts of `length` tokens.

    If a row is longer than the cache, only its last `slots` tokens are stored.

    Args:
        layers: for each layer its keys [B T N H], its values [B T N W], and the inputs [B T D] of each of its
            convolutions, or of the pointer.
        slots: S.
        length: the number of tokens in each row.
        recent: C, the number of latest inputs to store; inputs before a row's first token are 0.
        forks: whether `fork` may leave the tokens of a branch where they are, because only `cached_attention`
            reads them. It does so on CPU, where what all branches share is then read only once.
    """

    def place(x_BTNH: Array) -> Array:
        width = x_BTNH.shape[1]
        if width > slots:
            # The latest position that each slot stores. A slot that stores none gets an arbitrary one, and stays
            # masked.
            last_B1 = length[:, None] - 1
            position_BS = last_B1 - (last_B1 - jnp.arange(slots)[None]) % slots
            x_BTNH = jnp.take_along_axis(x_BTNH, jnp.maximum(position_BS, 0)[:, :, None, None], axis=1)
        x_BNTH = x_BTNH.swapaxes(1, 2)
        return jnp.pad(x_BNTH, ((0, 0), (0, 0), (0, max(slots - width, 0)), (0, 0)))

    def latest(x_BTD: Array) -> Array:
        position_BC = length[:, None] - jnp.arange(recent, 0, -1)[None]
        x_BCD = jnp.take_along_axis(x_BTD, jnp.maximum(position_BC, 0)[:, :, None], axis=1)
        return jnp.where((position_BC >= 0)[:, :, None], x_BCD, 0)

    source = jnp.zeros((len(length), 1, 0), jnp.int32) if forks and on_cpu() else None
    return tuple(Layer(place(k), place(v), tuple(map(latest, inputs)), source) for k, v, *inputs in layers)


def write(
    layer: Layer, keys: Float[Array, "B 1 N H"], values: Num[Array, "B 1 N W"], position: Int[Array, "B"]
) -> Layer:
    """Stores one token per row in the slot of its position. The cache is updated in place inside a loop or if donated.

    It is one scatter of B * N rows. On CPU this is the only form that neither copies the cache nor changes the layout
    that the following attention reads: a vmapped dynamic_update_slice changes the layout, and selecting by a mask
    rewrites the whole cache.
    """
    source = layer.source
    if source is not None and layer.forked:
        _, branches, slots = source.shape
        row = jnp.arange(len(position))
        source = source.at[row // branches, row % branches, position % slots].set(row % branches)
    return layer._replace(
        keys=_put(layer.keys, keys[:, 0], position), values=_put(layer.values, values[:, 0], position), source=source
    )


def of_one_head(layer: Layer) -> tuple[Float[Array, "B S H"], Num[Array, "B S W"]]:
    """The keys and values of a layer that has a single head and is not forked, without the axis of heads."""
    return layer.keys[:, 0], layer.values[:, 0]


def num_slots(cache: Cache) -> int:
    """S, the number of positions that the cache has room for."""
    return cache[0].keys.shape[2]


def visible(position: Int[Array, "B"], slots: int) -> Bool[Array, "B S"]:
    """Which slots the token at `position` may attend to, after it has been written to the cache itself.

    Until the cache is full these are the slots up to that of the token. From then on they are all slots.

    >>> visible(jnp.array([1, 7]), slots=4).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 1, 1]]
    """
    return jnp.arange(slots)[None] <= position[:, None]


def reorder(cache: PyTree, rows: Int[Array, "R"], used: Int[Array, ""] | None = None) -> PyTree:
    """A cache whose row i is row `rows[i]` of the given one. R may differ from B. Takes any pytree with rows first.

    Args:
        cache: the cache to gather from.
        rows: the row to take for each new row. In a forked layer R has to be B, and each row becomes a copy of a branch
            of the row that it is itself a branch of.
        used: a promise that the slots from `used` on are empty in every layer, so that they need not be copied. R has
            to be B then.
    """
    gather = lambda leaf: leaf.at[rows].get(mode="promise_in_bounds")  # noqa: E731

    def take(node: Layer | Array) -> Layer | Array:
        if not isinstance(node, Layer):
            return gather(node)
        if node.forked:
            assert node.source is not None
            assert len(rows) == len(node.keys), "a forked layer keeps its rows"
            branches = node.source.shape[1]
            source = node.source[rows // branches, rows % branches].reshape(node.source.shape)
            return node._replace(recent=jax.tree.map(gather, node.recent), source=source)
        if used is None or not on_cpu() or node.keys.shape[2] % _BLOCK:
            return Layer(*jax.tree.map(gather, tuple(node)))
        keys, values = _reorder_blocks((node.keys, node.values), gather, used)
        return node._replace(keys=keys, values=values, recent=jax.tree.map(gather, node.recent))

    return jax.tree.map(take, cache, is_leaf=_is_layer)


def _reorder_blocks(leaves: tuple[Array, Array], gather: Callable[[Array], Array], used: Array) -> tuple[Array, Array]:
    """Gathers a few slots at a time, in place. A single gather inside a loop would also copy the whole result back."""

    def block(i: Array, leaves: tuple[Array, Array]) -> tuple[Array, Array]:
        keys, values = (gather(lax.dynamic_slice_in_dim(leaf, i * _BLOCK, _BLOCK, axis=2)) for leaf in leaves)
        put = functools.partial(lax.dynamic_update_slice_in_dim, start_index=i * _BLOCK, axis=2)
        return put(leaves[0], keys), put(leaves[1], values)

    blocks = -(-jnp.minimum(used, leaves[0].shape[2]) // _BLOCK)
    return lax.fori_loop(0, blocks, block, leaves)


def repeat(cache: PyTree, times: int) -> PyTree:
    """A cache of B * times rows: each row is repeated `times` times in turn. Takes any pytree with rows first."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), cache)


def fork(cache: PyTree, times: int) -> PyTree:
    """`repeat`, after which `reorder` among the rows that were one costs little in the layers that allow it."""

    def branch(node: Layer | Array) -> Layer | Array:
        if not isinstance(node, Layer) or node.source is None or times == 1:
            return repeat(node, times)
        rows, slots = node.keys.shape[0], node.keys.shape[2]
        # All branches read the tokens so far from the first one.
        source = jnp.zeros((rows, times, slots), jnp.int32)
        return repeat(node._replace(source=None), times)._replace(source=source)

    return jax.tree.map(branch, cache, is_leaf=_is_layer)


def adopt(cache: PyTree, rows: Int[Array, "B"], position: Int[Array, "B"]) -> PyTree:
    """`reorder` for rows that differ only in one token: row i and row `rows[i]` may differ only at `position[i]`.

    Candidates that continue the same context are such rows. It is then enough to copy the keys and values of one slot;
    other leaves are gathered whole.
    """

    def take(node: Layer | Array) -> Layer | Array:
        if not isinstance(node, Layer):
            return reorder(node, rows)
        slots = position % node.keys.shape[2]
        keys, values = (_put(leaf, leaf[rows, :, slots], position) for leaf in (node.keys, node.values))
        return node._replace(keys=keys, values=values, recent=reorder(node.recent, rows))

    return jax.tree.map(take, cache, is_leaf=_is_layer)


def _is_layer(node: Any) -> bool:
    return isinstance(node, Layer)


def _put(leaf_BNSH: Array, new_BNH: Array, position_B: Array) -> Array:
    rows, heads = jnp.arange(leaf_BNSH.shape[0])[:, None], jnp.arange(leaf_BNSH.shape[1])[None, :]
    slots = position_B[:, None] % leaf_BNSH.shape[2]
    return leaf_BNSH.at[rows, heads, slots].set(
        new_BNH.astype(leaf_BNSH.dtype), mode="promise_in_bounds", indices_are_sorted=True, unique_indices=True
    )
