"""The transformer block and its parts. Shapes use the letters of `gpt`."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minigpt_jax import rng
from minigpt_jax.config import ModelConfig, code
from minigpt_jax.errors import UserError
from minigpt_jax.ops import attention, cached_attention, kv_cache
from minigpt_jax.ops.matmul import dot_general

Dtype = Any
Params = Mapping[str, Any]
"""The parameters of a Flax module: a tree of arrays, by the names of its parts."""
LayerState = tuple[Any, ...]
"""The state that a block or the pointer returns for the cache. In a decode step it is a `kv_cache.Layer`; in a full
pass it is the tuple of arrays from which `kv_cache.from_prefill` makes a layer."""
QKV, FUSED_QKV = ("query", "key", "value"), "query_key_value"
"""The names of the three projections of attention, and that of one dense layer whose columns are those of the three."""


def rotate(x_BTNH: Float[Array, "B T N H"], position_BT: Int[Array, "B T"], theta: float) -> Float[Array, "B T N H"]:
    """Rotary position embedding (Su et al. 2021): rotates the pair (i, i + H/2) by position · theta^(-2i/H) radians."""
    half = x_BTNH.shape[-1] // 2
    frequency_H = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1H = position_BT[:, :, None, None].astype(jnp.float32) * frequency_H[None, None, None, :]
    cos, sin = jnp.cos(angle_BT1H), jnp.sin(angle_BT1H)
    x1, x2 = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BTNH.dtype)


def norm(config: ModelConfig, dtype: Dtype, name: str) -> nn.Module:
    """The configured normalisation of the last axis."""
    # Flax computes the statistics in float32, whatever the compute type.
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.norm_epsilon, dtype, name=name)
    return nn.LayerNorm(config.norm_epsilon, dtype, use_bias=config.has_bias("norm"), name=name)


def dense(
    config: ModelConfig,
    features: int,
    dtype: Dtype,
    name: str,
    *,
    use_bias: bool | None = None,
    ends_branch: bool = False,
    result: Dtype = None,
) -> nn.Dense:
    """A dense layer from [*B I] to [*B features].

    Its kernel is initialised by Glorot's rule, as in Keras, or to 0 if `zero_init` is configured and the layer is the
    last one of a residual branch.

    Args:
        config: the model's configuration.
        features: the width of the output.
        dtype: the type of the operands.
        name: the name of the layer in the parameter tree.
        use_bias: whether the layer has a bias; as the configuration's `use_bias` by default.
        ends_branch: whether the layer is the last one of a residual branch.
        result: the type of the output; `dtype` by default.
    """
    zeros = ends_branch and config.zero_init
    init = nn.initializers.zeros if zeros else nn.initializers.glorot_uniform()
    return nn.Dense(
        features,
        use_bias=config.use_bias if use_bias is None else use_bias,
        dtype=dtype,
        kernel_init=init,
        dot_general=functools.partial(dot_general, preferred_element_type=result),
        name=name,
    )


class DropoutCall(NamedTuple):
    """The dropout settings of one call of the model. Both may be traced.

    Attributes:
        rate: replaces the configured rate, if given.
        first_row: the index of this call's first row in the global batch.
    """

    rate: Any = None
    first_row: Any = 0


class Dropout(nn.Module):
    """Sets a fraction `rate` of the entries to 0 and scales the others up. Does nothing if the configured rate is 0.

    A row's mask depends only on the key, the layer and the row's index in the global batch. It is therefore the same
    however the batch is divided among devices, processes and micro-batches.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *S"], deterministic: bool, call: DropoutCall | None = None
    ) -> Float[Array, "B *S"]:
        if deterministic or self.rate == 0:
            return x
        call = call or DropoutCall()
        keep = 1.0 - (self.rate if call.rate is None else call.rate)
        key_B = rng.at(self.make_rng("dropout"), call.first_row + jnp.arange(x.shape[0]))
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(key_B)
        return jnp.where(mask, x / jnp.asarray(keep, x.dtype), 0)


def earlier(x_BTD: Float[Array, "B T D"], back: int, mask_BTS: Bool[Array, "B T T"]) -> Float[Array, "B T D"]:
    """Shifts x by `back` positions. Where `mask` does not allow a position to see that earlier one, it gets 0."""
    length = x_BTD.shape[1]
    seen_BT = jnp.pad(jnp.diagonal(mask_BTS, -back, 1, 2), ((0, 0), (back, 0)))[:, :length]
    return jnp.where(seen_BT[:, :, None], jnp.pad(x_BTD, ((0, 0), (back, 0), (0, 0)))[:, :length], 0)


class Convolution(nn.Module):
    """Adds to x a causal depthwise convolution of x over `span` tokens, computed in float32.

    It lets a branch read the last few tokens without attention (Canon layers A and C: Allen-Zhu 2025), as far as `mask`
    allows. Its weights are initialised to 0.

    In a full pass `recent_BCD` is None, and the second result is x itself. In a decode step T is 1 and `recent_BCD` is
    the C = span - 1 inputs before x; the second result is then the C inputs before the next token.
    """

    span: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], mask_BTS: Bool[Array, "B T S"], recent_BCD: Float[Array, "B C D"] | None
    ) -> tuple[Float[Array, "B T D"], Array]:
        taps_SD = self.param("taps", nn.initializers.zeros, (self.span, x_BTD.shape[-1]))
        y_BTD = x_BTD.astype(jnp.float32)
        if recent_BCD is None:
            state = x_BTD
            shifted = [y_BTD, *(earlier(y_BTD, i, mask_BTS) for i in range(1, self.span))]
        else:
            inputs = jnp.concatenate([recent_BCD, x_BTD], axis=1)
            state = inputs[:, 1:]
            shifted = jnp.split(inputs.astype(jnp.float32), self.span, axis=1)[::-1]
        for taps_D, shifted_BTD in zip(taps_SD, shifted, strict=True):
            y_BTD = y_BTD + taps_D[None, None] * shifted_BTD
        return y_BTD.astype(self.dtype), state


class Attention(nn.Module):
    """Multi-head self-attention, with grouped-query attention if there are fewer key-value heads than query heads.

    Without a cache layer it is a full pass: tokens attend to each other, and the second result is the keys and the
    values, [B T K H] both. With a cache layer it is a decode step: T is 1, the token's key and value are written to the
    layer, the token attends to its slots, and the second result is the layer. With `head_gate`, the output of each head
    is multiplied by a sigmoid gate computed from the token (G1 with one gate per head, in Qiu et al. 2025).

    The parameters of the three projections `QKV` may also be given as those of one layer `FUSED_QKV` (`decode_form`).
    """

    config: ModelConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        position_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        layer: kv_cache.Layer | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerState]:
        config = self.config
        heads = config.head_size * config.num_heads
        kv_heads = config.head_size * config.kv_heads
        split = lambda x: x.reshape(*x.shape[:2], -1, config.head_size)  # noqa: E731
        projection = functools.partial(dense, config, dtype=self.dtype, use_bias=config.has_bias("qkv"))
        sizes = (heads, kv_heads, kv_heads)
        if self.has_variable("params", FUSED_QKV):
            parts = jnp.split(projection(sum(sizes), name=FUSED_QKV)(x_BTD), [heads, heads + kv_heads], axis=-1)
        else:
            parts = [projection(size, name=name)(x_BTD) for name, size in zip(QKV, sizes, strict=True)]
        q_BTNH, k_BTKH, v_BTKH = map(split, parts)
        if config.qk_norm:
            q_BTNH = norm(config, self.dtype, "query_norm")(q_BTNH)
            k_BTKH = norm(config, self.dtype, "key_norm")(k_BTKH)
        if config.positions == "rope":
            q_BTNH = rotate(q_BTNH, position_BT, config.rope_theta)
            k_BTKH = rotate(k_BTKH, position_BT, config.rope_theta)
        state: LayerState
        if layer is None:
            state = (k_BTKH, v_BTKH)
            y_BTNH = attention.attend(q_BTNH, k_BTKH, v_BTKH, mask_BTS)
        else:
            state = layer = kv_cache.write(layer, k_BTKH, v_BTKH, position_BT[:, 0])
            y_BTNH = cached_attention.attend(q_BTNH, layer, mask_BTS[:, 0])
        if config.head_gate:
            gate_BTN = nn.sigmoid(dense(config, config.num_heads, self.dtype, "gate")(x_BTD))
            y_BTNH = y_BTNH * gate_BTN[..., None]
        y_BTX = y_BTNH.reshape(*x_BTD.shape[:2], heads)
        y_BTD = dense(config, config.width, self.dtype, "out", ends_branch=True)(y_BTX)
        return y_BTD, state


def activation(config: ModelConfig) -> Callable[[Array], Array]:
    """The configuration's activation, a function of each number alone or at least one that keeps the shape.

    Raises:
        UserError: it is code of the user's own that has not been run, or that gives another shape.
    """
    known = {
        "relu": nn.relu,
        "gelu": nn.gelu,
        "gelu_erf": functools.partial(nn.gelu, approximate=False),
        "relu2": lambda h: jnp.square(nn.relu(h)),
    }
    if config.activation in known:
        return known[config.activation]
    function = code.loaded(config.activation)

    def checked(h: Array) -> Array:
        out = function(h)
        if jnp.shape(out) != h.shape:
            raise UserError(
                f"--model.activation {config.activation}: it makes {jnp.shape(out)} of an array of {h.shape}; it must "
                "keep the shape"
            )
        return out.astype(h.dtype)

    return checked


class FeedForward(nn.Module):
    """Two dense layers with an activation between them. SwiGLU (Shazeer 2020) has a third layer, the gate."""

    config: ModelConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        config = self.config
        h_BTF = dense(config, config.feed_forward_width, self.dtype, "up")(x_BTD)
        if config.activation == "swiglu":
            h_BTF = h_BTF * nn.silu(dense(config, config.feed_forward_width, self.dtype, "gate")(x_BTD))
        else:
            h_BTF = activation(config)(h_BTF)
        return dense(config, config.width, self.dtype, "down", ends_branch=True)(h_BTF)


class Block(nn.Module):
    """Attention, then feed-forward, each in a residual branch.

    Normalisation is applied to the input of each branch ("pre") or to the sum ("post"). With `convolution`, the input
    of each branch passes through a `Convolution`.

    A user's own block (`--model.block FILE.py:Name`) has to have the same interface: a module with the fields `config`
    and `dtype`, and a call with these arguments. In a full pass `layer` is None; the call returns its output and the
    state from which the cache starts: (keys [B T K H], values [B T K H]), followed by any arrays [B T D] of which the
    next token needs the last positions. In a decode step T is 1; the call returns its output and the `kv_cache.Layer`
    with the token written to it. `Attention` returns such a state in both cases. `deterministic` turns dropout off.
    """

    config: ModelConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        position_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        layer: kv_cache.Layer | None = None,
        deterministic: bool = True,
        dropout_call: DropoutCall | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerState]:
        config, dtype = self.config, self.dtype
        pre = config.norm_position == "pre"
        module = Dropout(config.dropout)
        dropout = lambda x: module(x, deterministic, dropout_call)  # noqa: E731
        attention_norm = norm(config, dtype, "attention_norm")
        feed_forward_norm = norm(config, dtype, "feed_forward_norm")

        inputs: list[Array] = []

        def convolved(x_BTD: Array, name: str) -> Array:
            if not config.convolution:
                return x_BTD
            recent = None if layer is None else layer.recent[len(inputs)]
            convolution = Convolution(config.convolution, dtype, name=name)
            y_BTD, latest = convolution(x_BTD, mask_BTS, recent)
            inputs.append(latest)
            return y_BTD

        inner_BTD = convolved(attention_norm(x_BTD) if pre else x_BTD, "attention_convolution")
        y_BTD, state = Attention(config, dtype, name="attention")(inner_BTD, position_BT, mask_BTS, layer)
        x_BTD = x_BTD + dropout(y_BTD)
        x_BTD = x_BTD if pre else attention_norm(x_BTD)

        inner_BTD = convolved(feed_forward_norm(x_BTD) if pre else x_BTD, "feed_forward_convolution")
        x_BTD = x_BTD + dropout(FeedForward(config, dtype, name="feed_forward")(inner_BTD))
        x_BTD = x_BTD if pre else feed_forward_norm(x_BTD)
        if isinstance(state, kv_cache.Layer):
            return x_BTD, state._replace(recent=tuple(inputs))
        return x_BTD, (*state, *inputs)
