"""Cross-entropy fused with the output layer, in chunks: the logits of a whole batch are never in memory at once.

For a small model with a vocabulary of thousands of words, the logits are by far the largest array of a train step. With
their gradient they take half of its memory. Here each chunk's gradient is computed while its logits are still in cache.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from minigpt_jax.ops.platform import on_cpu

Output = Callable[[PyTree, Float[Array, "M D"]], Float[Array, "M V"]]
"""The output layer: maps its parameters and hidden states to float32 logits."""

Mixture = tuple[Float[Array, "B T"], Float[Array, "B T"]]
"""A prediction that mixes the output layer's softmax with another distribution, such as a pointer's. The first array is
the logarithm of the weight of the output layer in each prediction. The second is the logarithm of the probability that
the label gets from the other distribution, its weight included."""

# The number of logits in a chunk: those that fit in a CPU's cache (20 MB), and those that keep an accelerator busy.
CPU_CHUNK, ACCELERATOR_CHUNK = 5 << 20, 1 << 26


def cross_entropy(
    output: Output,
    params: PyTree,
    hidden_BTD: Float[Array, "B T D"],
    labels_BT: Int[Array, "B T"],
    weight_BT: Float[Array, "B T"],
    mixture: Mixture | None = None,
    chunk: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns the weighted sum of the labels' negative log-likelihoods, and each label's, unweighted, both in nats.

    Only the sum is differentiable, with respect to `params`, `hidden_BTD` and `mixture`. If the gradient is needed at
    all, it is computed in the same pass as the sum.

    Args:
        output: the output layer.
        params: the parameters that `output` uses, and no others.
        mixture: the other source of a label's probability, beside the softmax of `output`; by default there is none.
        chunk: hidden states per chunk; by default a number that suits the device.
    """
    hidden_MD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    rows = len(hidden_MD)
    if chunk is None:
        logits = CPU_CHUNK if on_cpu() else ACCELERATOR_CHUNK
        chunk = max(1, logits // jax.eval_shape(output, params, hidden_MD).shape[-1])
    chunks = -(-rows // chunk)
    chunk = -(-rows // chunks)

    def cut(x: Array) -> Array:
        # The padding of the last chunk has weight 0.
        padded = jnp.pad(x, ((0, chunks * chunk - rows),) + ((0, 0),) * (x.ndim - 1))
        return padded.reshape(chunks, chunk, *x.shape[1:])

    shape = labels_BT.shape
    share_BT, other_BT = (jnp.zeros(shape), jnp.full(shape, -jnp.inf)) if mixture is None else mixture
    inputs = cut(hidden_MD), *(cut(x.reshape(-1)) for x in (labels_BT, weight_BT, share_BT, other_BT))
    out: Any = _chunked(output, params, *inputs)
    total, nats = out
    return total, jax.lax.stop_gradient(nats.reshape(-1)[:rows].reshape(labels_BT.shape))


# Letters: C chunks, M hidden states in each.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(
    output: Output,
    params: PyTree,
    hidden_CMD: Float[Array, "C M D"],
    labels_CM: Int[Array, "C M"],
    weight_CM: Float[Array, "C M"],
    share_CM: Float[Array, "C M"],
    other_CM: Float[Array, "C M"],
) -> tuple[Float[Array, ""], Float[Array, "C M"]]:
    def one(_: None, inputs: Any) -> tuple[None, Array]:
        hidden_MD, labels_M, share_M, other_M = inputs
        output_nats_M = _nats(output(params, hidden_MD), labels_M)[0]
        return None, -jnp.logaddexp(share_M - output_nats_M, other_M)

    _, nats_CM = _scan(one, None, (hidden_CMD, labels_CM, share_CM, other_CM))
    return jnp.sum(nats_CM * weight_CM), nats_CM


def _forward(
    output: Output,
    params: PyTree,
    hidden_CMD: Array,
    labels_CM: Array,
    weight_CM: Array,
    share_CM: Array,
    other_CM: Array,
) -> Any:
    def one(sums: Any, inputs: Any) -> tuple[Any, tuple[Array, ...]]:
        hidden_MD, labels_M, weight_M, share_M, other_M = inputs
        logits_MV, pull = jax.vjp(output, params, hidden_MD)
        output_nats_M, exp_MV, sum_M = _nats(logits_MV, labels_M)
        nats_M = -jnp.logaddexp(share_M - output_nats_M, other_M)
        # The output layer's part of the gradient: the fraction of the label's probability that came from its softmax.
        output_weight_M = weight_M * jnp.exp(share_M - output_nats_M + nats_M)
        is_label_MV = labels_M[:, None] == jnp.arange(logits_MV.shape[-1])[None]
        params_grad, hidden_grad_MD = pull(
            exp_MV * (output_weight_M / sum_M)[:, None] - jnp.where(is_label_MV, output_weight_M[:, None], 0)
        )
        sums = params_grad if sums is None else jax.tree.map(jnp.add, sums, params_grad)
        return sums, (nats_M, hidden_grad_MD, -output_weight_M, -weight_M * jnp.exp(other_M + nats_M))

    start = None if len(hidden_CMD) == 1 else jax.tree.map(jnp.zeros_like, params)
    params_grad, (nats_CM, *grads) = _scan(one, start, (hidden_CMD, labels_CM, weight_CM, share_CM, other_CM))
    return (jnp.sum(nats_CM * weight_CM), nats_CM), (params_grad, *grads)


def _backward(output: Output, gradient: Any, cotangents: tuple[Array, Array]) -> Any:
    of_sum, _ = cotangents
    params, hidden, *mixture = jax.tree.map(lambda g: (of_sum * g).astype(g.dtype), gradient)
    return params, hidden, None, None, *mixture


_chunked.defvjp(_forward, _backward)


def _nats(logits_MV: Array, labels_M: Array) -> tuple[Array, Array, Array]:
    """Each label's negative log-likelihood, and the softmax's numerators (relative to the largest) and denominator."""
    top_M = jnp.max(logits_MV, axis=-1)
    exp_MV = jnp.exp(logits_MV - top_M[:, None])
    sum_M = jnp.sum(exp_MV, axis=-1)
    label_logit_M = jnp.take_along_axis(logits_MV, labels_M[:, None], axis=-1)[:, 0]
    return jnp.log(sum_M) + top_M - label_logit_M, exp_MV, sum_M


def _scan(one: Callable[[Any, Any], tuple[Any, Any]], carry: Any, inputs: Any) -> Any:
    """`lax.scan`, but without a loop if there is only one iteration."""
    if len(inputs[0]) > 1:
        return jax.lax.scan(one, carry, inputs)
    carry, out = one(carry, jax.tree.map(lambda x: x[0], inputs))
    return carry, jax.tree.map(lambda x: x[None], out)
