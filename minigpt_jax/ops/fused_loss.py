"""Cross-entropy fused with the output layer: chunk by chunk, so that the logits of a whole batch are never in memory.

For a small model over thousands of words, logits are by far the largest array of a train step: with their gradient,
half of its memory. Here a chunk's gradient is taken while its logits are still in cache.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Output = Callable[[Any, Any], Any]
"""Parameters and hidden states [M D] to float32 logits [M V]."""

Mixture = tuple[Any, Any]
"""Two logarithms, [B T] both: of the share that the output layer has in each prediction, and of what of the other share
falls to the label."""

# Logits in a chunk: what a CPU's cache holds (20 MB), and what keeps an accelerator busy in one go.
CPU_CHUNK, ACCELERATOR_CHUNK = 5 << 20, 1 << 26


def cross_entropy(
    output: Output,
    params: Any,
    hidden_BTD: Float[Array, "B T D"],
    labels_BT: Int[Array, "B T"],
    weight_BT: Float[Array, "B T"],
    mixture: Mixture | None = None,
    chunk: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """The sum of each label's nats times its weight, and the nats alone; only the sum has a gradient.

    The gradient is that to `params`, `hidden_BTD` and `mixture`. It is found together with the sum, if it is asked for
    at all.

    Args:
        output: the output layer, given `params`, those that it uses and no others.
        mixture: what else than the output layer's softmax a label's probability comes from; by default nothing.
        chunk: hidden states at a time; by default what suits the device.
    """
    hidden_MD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    rows = len(hidden_MD)
    if chunk is None:
        logits = CPU_CHUNK if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK
        chunk = max(1, logits // jax.eval_shape(output, params, hidden_MD).shape[-1])
    chunks = -(-rows // chunk)
    chunk = -(-rows // chunks)

    def cut(x: Any) -> Any:
        # What fills up the last chunk weighs nothing.
        filled = jnp.pad(x, ((0, chunks * chunk - rows),) + ((0, 0),) * (x.ndim - 1))
        return filled.reshape(chunks, chunk, *x.shape[1:])

    shape = labels_BT.shape
    share_BT, other_BT = (jnp.zeros(shape), jnp.full(shape, -jnp.inf)) if mixture is None else mixture
    inputs = cut(hidden_MD), *(cut(x.reshape(-1)) for x in (labels_BT, weight_BT, share_BT, other_BT))
    out: Any = _chunked(output, params, *inputs)
    total, nats = out
    return total, jax.lax.stop_gradient(nats.reshape(-1)[:rows].reshape(labels_BT.shape))


# Letters: C chunks, M hidden states in each.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    output: Output, params: Any, hidden_CMD: Any, labels_CM: Any, weight_CM: Any, share_CM: Any, other_CM: Any
) -> tuple[Array, Array]:
    def one(_: None, inputs: Any) -> tuple[None, Array]:
        hidden_MD, labels_M, share_M, other_M = inputs
        own_M = _nats(output(params, hidden_MD), labels_M)[0]
        return None, -jnp.logaddexp(share_M - own_M, other_M)

    _, nats_CM = _scan(one, None, (hidden_CMD, labels_CM, share_CM, other_CM))
    return jnp.sum(nats_CM * weight_CM), nats_CM


def _forward(
    output: Output, params: Any, hidden_CMD: Any, labels_CM: Any, weight_CM: Any, share_CM: Any, other_CM: Any
) -> Any:
    def one(sums: Any, inputs: Any) -> tuple[Any, tuple[Array, ...]]:
        hidden_MD, labels_M, weight_M, share_M, other_M = inputs
        logits_MV, pull = jax.vjp(output, params, hidden_MD)
        own_M, exp_MV, sum_M = _nats(logits_MV, labels_M)
        nats_M = -jnp.logaddexp(share_M - own_M, other_M)
        # A label's nats have the gradient of the output layer's as far as its probability came from there.
        own_weight_M = weight_M * jnp.exp(share_M - own_M + nats_M)
        hit_MV = labels_M[:, None] == jnp.arange(logits_MV.shape[-1])[None]
        params_grad, hidden_grad_MD = pull(
            exp_MV * (own_weight_M / sum_M)[:, None] - jnp.where(hit_MV, own_weight_M[:, None], 0)
        )
        sums = params_grad if sums is None else jax.tree.map(jnp.add, sums, params_grad)
        return sums, (nats_M, hidden_grad_MD, -own_weight_M, -weight_M * jnp.exp(other_M + nats_M))

    start = None if len(hidden_CMD) == 1 else jax.tree.map(jnp.zeros_like, params)
    params_grad, (nats_CM, *grads) = _scan(one, start, (hidden_CMD, labels_CM, weight_CM, share_CM, other_CM))
    return (jnp.sum(nats_CM * weight_CM), nats_CM), (params_grad, *grads)


def _backward(output: Output, gradient: Any, cotangents: Any) -> Any:
    of_sum, _ = cotangents
    params, hidden, *mixture = jax.tree.map(lambda g: (of_sum * g).astype(g.dtype), gradient)
    return params, hidden, None, None, *mixture


_chunked.defvjp(_forward, _backward)


def _nats(logits_MV: Array, labels_M: Array) -> tuple[Array, Array, Array]:
    """Each label's nats, and what its softmax is made of: exponentials relative to the largest, and their sum."""
    top_M = jnp.max(logits_MV, axis=-1)
    exp_MV = jnp.exp(logits_MV - top_M[:, None])
    sum_M = jnp.sum(exp_MV, axis=-1)
    of_label_M = jnp.take_along_axis(logits_MV, labels_M[:, None], axis=-1)[:, 0]
    return jnp.log(sum_M) + top_M - of_label_M, exp_MV, sum_M


def _scan(one: Any, carry: Any, inputs: Any) -> Any:
    """`lax.scan`, or no loop where there is but one turn."""
    if len(inputs[0]) > 1:
        return jax.lax.scan(one, carry, inputs)
    carry, out = one(carry, jax.tree.map(lambda x: x[0], inputs))
    return carry, jax.tree.map(lambda x: x[None], out)
