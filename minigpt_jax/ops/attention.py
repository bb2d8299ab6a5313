"""Attention over a whole sequence. Letters: K key-value heads, each of which serves G = N / K query heads."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from minigpt_jax.ops.matmul import matmul
from minigpt_jax.ops.platform import on_cpu


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Scaled dot-product attention. A query whose mask allows no key attends to all keys equally."""
    if on_cpu():
        return heads_first(q_BTNH, k_BSKH, v_BSKH, mask_BTS)
    return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None])


def heads_first(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """`jax.nn.dot_product_attention` in the layout that is fast on CPU.

    XLA's batched matmul on CPU takes about half the time if all batch axes, heads included, come first.
    """
    batch, length, heads, width = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BKGTH = q_BTNH.transpose(0, 2, 1, 3).reshape(batch, kv_heads, -1, width)  # G and T are merged into one axis
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    scores = matmul(q_BKGTH, k_BKSH.mT, jnp.float32)
    scores_BNTS = scores.reshape(batch, heads, length, -1) * width**-0.5
    lowest = -0.7 * jnp.finfo(jnp.float32).max  # finite, so that a fully masked row gives uniform weights, not NaN
    weights_BNTS = jax.nn.softmax(jnp.where(mask_BTS[:, None], scores_BNTS, lowest)).astype(v_BSKH.dtype)
    weights = weights_BNTS.reshape(scores.shape)
    y_BKGTH = matmul(weights, v_BKSH)
    return y_BKGTH.reshape(batch, heads, length, width).transpose(0, 2, 1, 3)
