"""The pointer: attention that copies tokens of the context, beside the output layer (Merity et al. 2016).

It is the pointer sentinel mixture: a softmax over the context's tokens and a sentinel, whose share is left to the
output layer. That layer learns but slowly to repeat names that training never had; a pointer can copy what it has read.
Letters: P width of queries and keys; the rest are those of `gpt`.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minigpt_jax.config import ModelConfig
from minigpt_jax.model.blocks import Dtype, Kept, dense, earlier
from minigpt_jax.ops import kv_cache
from minigpt_jax.ops.matmul import matmul

NOTHING = -1e9
"""The logarithm of no probability, finite so that gradients are."""


class Shares(NamedTuple):
    """Logarithms of the shares of the next token's probability; the shares of output layer and context sum to 1."""

    output: Float[Array, "B T"]
    """The output layer's, for its softmax to distribute."""
    weights: Float[Array, "B T S"]
    """Each context token's, for itself."""
    context: Int[Array, "B S"]
    """Those tokens."""

    def of_labels(self, labels_BT: Int[Array, "B T"]) -> Float[Array, "B T"]:
        """The log-probability that each label has of being copied."""
        same_BTS = self.context[:, None, :] == labels_BT[:, :, None]
        return jax.nn.logsumexp(jnp.where(same_BTS, self.weights, NOTHING), axis=-1)

    def mixed(self, logits_BTV: Float[Array, "B T V"]) -> Float[Array, "B T V"]:
        """Logits of the mixture, given the output layer's; their exponentials sum to the same."""
        rows, times = jnp.indices(self.weights.shape[:2], sparse=True)
        copied_BTV = jnp.zeros_like(logits_BTV)
        copied_BTV = copied_BTV.at[rows[..., None], times[..., None], self.context[:, None]].add(jnp.exp(self.weights))
        least = jnp.finfo(copied_BTV.dtype).tiny
        log_BTV = jnp.where(copied_BTV < least, NOTHING, jnp.log(jnp.maximum(copied_BTV, least)))
        norm_BT1 = jax.nn.logsumexp(logits_BTV, axis=-1, keepdims=True)
        return jnp.logaddexp(logits_BTV + self.output[..., None], log_BTV + norm_BT1)


class Pointer(nn.Module):
    """Shares of the context and of the output layer in what follows each hidden state.

    A token's key is made of two hidden states, the one before it, which was to predict it, and its own. Queries and
    keys are normalised. Given a cache layer, T is 1: it writes its key and token there and looks at the slots. Else it
    returns keys [B T 1 P], tokens [B T 1 1] and hidden states for a cache to start from.
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
    ) -> tuple[Shares, Kept]:
        config = self.config

        def projected(x: Any, name: str) -> Array:
            y = dense(config, config.pointer, self.dtype, name)(x)
            return nn.RMSNorm(config.norm_epsilon, self.dtype, name=f"{name}_norm")(y)

        query_BTP = projected(hidden_BTD, "query")
        before_BTD = earlier(hidden_BTD, 1, mask_BTS) if layer is None else layer.recent[0]
        key_BTP = projected(jnp.concatenate([before_BTD, hidden_BTD], axis=-1), "key")
        keys, tokens = key_BTP[:, :, None], tokens_BT[:, :, None, None]
        kept: Kept
        if layer is None:
            kept = keys, tokens, hidden_BTD
            key_BSP, context_BS = key_BTP, tokens_BT
        else:
            kept = layer = kv_cache.write(layer, keys, tokens, position_BT[:, 0])._replace(recent=(hidden_BTD,))
            key_BSP, context_BS1 = kv_cache.of_one_head(layer)
            context_BS = context_BS1[..., 0]
        scores_BTS = matmul(query_BTP, key_BSP.mT, jnp.float32) * config.pointer**-0.5
        scores_BTS = jnp.where(mask_BTS, scores_BTS, NOTHING)
        plain = dataclasses.replace(config, use_bias=False)  # as its bias is there in any case, and float32
        # At first the sentinel scores as much as a token can at best, so that little is copied.
        bias = self.param("sentinel_bias", nn.initializers.constant(config.pointer**0.5), (1,))
        sentinel_BT1 = dense(plain, 1, self.dtype, "sentinel", result=jnp.float32)(hidden_BTD) + bias[None, None]
        logs = jax.nn.log_softmax(jnp.concatenate([scores_BTS, sentinel_BT1], axis=-1))
        return Shares(logs[..., -1], logs[..., :-1], context_BS), kept
