"""The pointer sentinel mixture (Merity et al. 2016): attention that copies tokens of the context.

A softmax over the context's tokens and a sentinel gives each of them a part of the next token's probability. The
sentinel's part is distributed by the output layer. An output layer is slow to learn to repeat names that it has not met
in training; a pointer can copy any token that it has read. Letters: P is the width of queries and keys; the others are
those of `gpt`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minigpt_jax.config import ModelConfig
from minigpt_jax.model.blocks import Dtype, LayerState, dense, earlier
from minigpt_jax.ops import kv_cache
from minigpt_jax.ops.matmul import matmul

NOTHING = -1e9
"""Stands for the logarithm of 0; finite, so that gradients are finite."""


class PointerMixture(NamedTuple):
    """How the next token's probability is divided between the output layer and the tokens of the context.

    The weights, which are stored as logarithms, sum to 1.
    """

    output: Float[Array, "B T"]
    """The log-weight of the output layer, whose softmax distributes it over the vocabulary."""
    weights: Float[Array, "B T S"]
    """The log-weight of each token of the context."""
    context: Int[Array, "B S"]
    """The tokens of the context."""

    def copied(self, labels_BT: Int[Array, "B T"]) -> Float[Array, "B T"]:
        """The log-probability that the pointer copies each label from the context."""
        same_BTS = self.context[:, None, :] == labels_BT[:, :, None]
        return jax.nn.logsumexp(jnp.where(same_BTS, self.weights, NOTHING), axis=-1)

    def logits(self, model_logits_BTV: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
        """The logits of the mixture, given those of the output layer. Their log-sum-exp is the same as before."""
        rows, times = jnp.indices(self.weights.shape[:2], sparse=True)
        copied_BTV = jnp.zeros_like(model_logits_BTV)
        copied_BTV = copied_BTV.at[rows[..., None], times[..., None], self.context[:, None]].add(jnp.exp(self.weights))
        least = jnp.finfo(copied_BTV.dtype).tiny
        log_BTV = jnp.where(copied_BTV < least, NOTHING, jnp.log(jnp.maximum(copied_BTV, least)))
        norm_BT1 = jax.nn.logsumexp(model_logits_BTV, axis=-1, keepdims=True)
        return jnp.logaddexp(model_logits_BTV + self.output[..., None], log_BTV + norm_BT1)


class Pointer(nn.Module):
    """Computes the `PointerMixture` that predicts the token after each hidden state.

    The key of a token is computed from two hidden states: its own, and that of the position before, which predicted it.
    Queries and keys are normalised. In a full pass the second result is the keys [B T 1 P], the tokens [B T 1 1] and
    the hidden states, for a cache to start from. In a decode step `layer` is given and T is 1: the key and the token
    are written to the layer, the query attends to its slots, and the second result is the layer.
    """

    config: ModelConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        hidden_BTD: Float[Array, "B T D"],
        tokens_BT: Int[Array, "B T"],
        position_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        layer: kv_cache.Layer | None = None,
    ) -> tuple[PointerMixture, LayerState]:
        config = self.config

        def projected(x: Array, name: str) -> Array:
            y = dense(config, config.pointer, self.dtype, name)(x)
            return nn.RMSNorm(config.norm_epsilon, self.dtype, name=f"{name}_norm")(y)

        query_BTP = projected(hidden_BTD, "query")
        before_BTD = earlier(hidden_BTD, 1, mask_BTS) if layer is None else layer.recent[0]
        key_BTP = projected(jnp.concatenate([before_BTD, hidden_BTD], axis=-1), "key")
        keys, tokens = key_BTP[:, :, None], tokens_BT[:, :, None, None]
        state: LayerState
        if layer is None:
            state = keys, tokens, hidden_BTD
            key_BSP, context_BS = key_BTP, tokens_BT
        else:
            state = layer = kv_cache.write(layer, keys, tokens, position_BT[:, 0])._replace(recent=(hidden_BTD,))
            key_BSP, context_BS1 = kv_cache.of_one_head(layer)
            context_BS = context_BS1[..., 0]
        scores_BTS = matmul(query_BTP, key_BSP.mT, jnp.float32) * config.pointer**-0.5
        scores_BTS = jnp.where(mask_BTS, scores_BTS, NOTHING)
        # The sentinel's own bias is float32. It starts with the highest score that a token can have, so that little is
        # copied at first.
        bias = self.param("sentinel_bias", nn.initializers.constant(config.pointer**0.5), (1,))
        sentinel = dense(config, 1, self.dtype, "sentinel", use_bias=False, result=jnp.float32)
        sentinel_BT1 = sentinel(hidden_BTD) + bias[None, None]
        logs = jax.nn.log_softmax(jnp.concatenate([scores_BTS, sentinel_BT1], axis=-1))
        return PointerMixture(logs[..., -1], logs[..., :-1], context_BS), state
