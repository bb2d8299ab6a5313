"""The GPT: one Flax Linen module for training (full pass), prefill and decode step.

Shapes: B batch, T query positions, S cache slots, D width, N heads, K key-value heads, H head width, F feed-forward
width, V vocabulary. With the default configuration it is the KerasHub tutorial's decoder to the letter.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minigpt_jax import attention, kv_cache, products
from minigpt_jax.config import BOS_ID, PAD_ID, Experiment, ModelConfig
from minigpt_jax.embedding import Embed

Dtype = Any
Kept = tuple[Any, ...]
"""What a block leaves to a cache: a `kv_cache.Layer`, or a full pass's keys and values, [B T K H] both, and the inputs
of its convolutions, [B T D] each."""


def compute_dtype(config: ModelConfig) -> Dtype:
    """The type that matrix products run in; "auto" is bfloat16 but on CPU, where few have it."""
    if config.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.dtype)


def build(experiment: Experiment) -> "GPT":
    """The experiment's model; it has a row for each id that was asked for, whatever the trained vocabulary's length."""
    return GPT(
        experiment.model,
        vocabulary_size=experiment.tokenizer.vocabulary_size,
        sequence_length=experiment.data.sequence_length,
        dtype=compute_dtype(experiment.model),
    )


def parameter_shapes(experiment: Experiment) -> Any:
    """The tree of the parameters' shapes and types, found without making them."""
    gpt = build(experiment)
    tokens_BT = jax.ShapeDtypeStruct((1, gpt.sequence_length), jnp.int32)
    return jax.eval_shape(gpt.init, jax.random.key(0), tokens_BT)["params"]


def untied(gpt: "GPT", params: Any) -> tuple["GPT", Any]:
    """The same model with an output layer of its own, where it is the token embedding.

    A step reads the whole output layer for a few rows. On CPU a product with [D, V] streams through it, one with the
    embedding's [V, D] takes several times as long.
    """
    if not gpt.config.tied_embeddings:
        return gpt, params
    params = dict(params)
    output = {"kernel": jnp.copy(params["token_embedding"]["embedding"].T)}
    if gpt.config.use_bias:
        output["bias"] = params.pop("output_bias")
    return gpt.clone(config=dataclasses.replace(gpt.config, tied_embeddings=False)), {**params, "output": output}


def logits(
    gpt: "GPT",
    params: Any,
    tokens_BT: Int[Array, "B T"],
    dropout_key: Array | None = None,
    dropout_rate: Float[Array, ""] | None = None,
) -> Float[Array, "B T V"]:
    """The full pass with these parameters; dropout only with a key for it, at the configuration's rate by default."""
    return output(gpt, params, hidden(gpt, params, tokens_BT, dropout_key, dropout_rate))


def hidden(
    gpt: "GPT",
    params: Any,
    tokens_BT: Int[Array, "B T"],
    dropout_key: Array | None = None,
    dropout_rate: Float[Array, ""] | None = None,
) -> Float[Array, "B T D"]:
    """`logits` without the output layer."""
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    out: Any = gpt.apply({"params": params}, tokens_BT, dropout_key is None, dropout_rate, rngs=rngs, method=GPT.hidden)
    return out


def output(gpt: "GPT", params: Any, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """The output layer; `output_parameters` are all that it needs."""
    out: Any = gpt.apply({"params": params}, hidden, method=GPT.logits)
    return out


def output_parameters(gpt: "GPT", params: Any) -> dict[str, Any]:
    """Those of the parameters that the output layer uses."""
    names = ("token_embedding", "output_bias") if gpt.config.tied_embeddings else ("output",)
    return {name: params[name] for name in names if name in params}


def keras_uniform(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Uniform(-0.05, 0.05): Keras's default for embeddings."""
    return jax.random.uniform(key, shape, dtype, -0.05, 0.05)


def rotate(x_BTNH: Float[Array, "B T N H"], position_BT: Int[Array, "B T"], theta: float) -> Float[Array, "B T N H"]:
    """Rotary position embedding (Su et al. 2021): turns the pair (i, i + H/2) by position · theta^(-2i/H) radians."""
    half = x_BTNH.shape[-1] // 2
    frequency_H = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1H = position_BT[:, :, None, None].astype(jnp.float32) * frequency_H[None, None, None, :]
    cos, sin = jnp.cos(angle_BT1H), jnp.sin(angle_BT1H)
    x1, x2 = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_BTNH.dtype)


def training_mask(tokens_BT: Int[Array, "B T"], isolate_documents: bool = False) -> Bool[Array, "B T T"]:
    """True where query t may attend to key s: s is not after t, s is not [PAD], and both are in one document if asked.

    A document opens with [BOS]; with `isolate_documents`, nothing before the latest [BOS] is seen.
    """
    length = tokens_BT.shape[1]
    mask_BTS = jnp.tril(jnp.ones((1, length, length), bool)) & (tokens_BT != PAD_ID)[:, None, :]
    if isolate_documents:
        document_BT = jnp.cumsum(tokens_BT == BOS_ID, axis=1)
        mask_BTS &= document_BT[:, :, None] == document_BT[:, None, :]
    return mask_BTS


def _norm(config: ModelConfig, dtype: Dtype, name: str) -> nn.Module:
    # Statistics are float32 whatever the compute type, which is Flax's default.
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.norm_epsilon, dtype, name=name)
    return nn.LayerNorm(config.norm_epsilon, dtype, use_bias=config.use_bias, name=name)


def _dense(
    config: ModelConfig, features: int, dtype: Dtype, name: str, ends_branch: bool = False, result: Dtype = None
) -> nn.Dense:
    """`result`: the type of the product, by default `dtype`."""
    zeros = ends_branch and config.zero_init
    init = nn.initializers.zeros if zeros else nn.initializers.glorot_uniform()
    return nn.Dense(
        features,
        use_bias=config.use_bias,
        dtype=dtype,
        kernel_init=init,
        dot_general=functools.partial(products.dot_general, preferred_element_type=result),
        name=name,
    )


class Dropout(nn.Module):
    """Sets a share of the entries to 0 and scales the others up. None at all at a configured `rate` of 0.

    The rate of a call, which may be traced, takes the place of the configured one, with which it shares the masks.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "*S"], deterministic: bool, rate: Any = None) -> Float[Array, "*S"]:
        if deterministic or self.rate == 0:
            return x
        keep = 1.0 - (self.rate if rate is None else rate)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), 0)


class Convolution(nn.Module):
    """x plus a causal convolution of it over `span` tokens, each feature by itself, in float32.

    It lets a branch read the last few tokens without attention (Canon layers A and C: Allen-Zhu 2025): of them, those
    that `mask` lets it see. Its weights start at 0. Given the span - 1 inputs before x (C), all of them seen, it
    returns those before the next token, else x itself.
    """

    span: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x_BTD: Float[Array, "B T D"], mask_BTS: Bool[Array, "B T S"], recent_BCD: Float[Array, "B C D"] | None
    ) -> tuple[Float[Array, "B T D"], Array]:
        taps_SD = self.param("taps", nn.initializers.zeros, (self.span, x_BTD.shape[-1]))
        back, length = self.span - 1, x_BTD.shape[1]
        if recent_BCD is None:
            inputs = jnp.pad(x_BTD, ((0, 0), (back, 0), (0, 0)))
        else:
            inputs = jnp.concatenate([recent_BCD, x_BTD], axis=1)
        inputs_BUD = inputs.astype(jnp.float32)
        y_BTD = x_BTD.astype(jnp.float32)
        for i in range(self.span):
            shifted_BTD = inputs_BUD[:, back - i : back - i + length]
            if i and recent_BCD is None:
                seen_BT = jnp.pad(jnp.diagonal(mask_BTS, -i, 1, 2), ((0, 0), (i, 0)))[:, :length]
                shifted_BTD = jnp.where(seen_BT[:, :, None], shifted_BTD, 0)
            y_BTD = y_BTD + taps_SD[i][None, None] * shifted_BTD
        return y_BTD.astype(self.dtype), x_BTD if recent_BCD is None else inputs[:, 1:]


class Attention(nn.Module):
    """Multi-head self-attention, with grouped key-value heads if there are fewer of them.

    Given a cache layer, T is 1: it writes its key and value there, attends to the slots and returns the layer. Else it
    attends to its own keys and values and returns those, [B T K H] both, for a cache to start from. With `head_gate`,
    each head's output is scaled by a sigmoid of the token (G1, one gate a head, in Qiu et al. 2025).
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
    ) -> tuple[Float[Array, "B T D"], Kept]:
        config = self.config
        heads = config.head_width * config.num_heads
        kv_heads = config.head_width * config.kv_heads
        split = lambda x: x.reshape(*x.shape[:2], -1, config.head_width)  # noqa: E731
        q_BTNH = split(_dense(config, heads, self.dtype, "query")(x_BTD))
        k_BTKH = split(_dense(config, kv_heads, self.dtype, "key")(x_BTD))
        v_BTKH = split(_dense(config, kv_heads, self.dtype, "value")(x_BTD))
        if config.qk_norm:
            q_BTNH = _norm(config, self.dtype, "query_norm")(q_BTNH)
            k_BTKH = _norm(config, self.dtype, "key_norm")(k_BTKH)
        if config.positions == "rope":
            q_BTNH = rotate(q_BTNH, position_BT, config.rope_theta)
            k_BTKH = rotate(k_BTKH, position_BT, config.rope_theta)
        kept: Kept
        if layer is None:
            kept = (k_BTKH, v_BTKH)
            y_BTNH = attention.attend(q_BTNH, k_BTKH, v_BTKH, mask_BTS)
        else:
            kept = layer = kv_cache.write(layer, k_BTKH, v_BTKH, position_BT[:, 0])
            y_BTNH = kv_cache.attend(q_BTNH, layer, mask_BTS[:, 0])
        if config.head_gate:
            gate_BTN = nn.sigmoid(_dense(config, config.num_heads, self.dtype, "gate")(x_BTD))
            y_BTNH = y_BTNH * gate_BTN[..., None]
        y_BTX = y_BTNH.reshape(*x_BTD.shape[:2], heads)
        y_BTD = _dense(config, config.width, self.dtype, "out", ends_branch=True)(y_BTX)
        return y_BTD, kept


class FeedForward(nn.Module):
    """Two dense layers with an activation between; SwiGLU (Shazeer 2020) has a third, the gate."""

    config: ModelConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        config = self.config
        h_BTF = _dense(config, config.feed_forward, self.dtype, "up")(x_BTD)
        if config.activation == "swiglu":
            h_BTF = h_BTF * nn.silu(_dense(config, config.feed_forward, self.dtype, "gate")(x_BTD))
        else:
            h_BTF = {"relu": nn.relu, "gelu": nn.gelu, "relu2": lambda h: jnp.square(nn.relu(h))}[config.activation](
                h_BTF
            )
        return _dense(config, config.width, self.dtype, "down", ends_branch=True)(h_BTF)


class Block(nn.Module):
    """Attention then feed-forward, each a residual branch normalised before (pre) or after the sum (post).

    With `convolution`, each branch takes its input through one.
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
        dropout_rate: Any = None,
    ) -> tuple[Float[Array, "B T D"], Kept]:
        config, dtype = self.config, self.dtype
        pre = config.norm_position == "pre"
        module = Dropout(config.dropout)
        dropout = lambda x: module(x, deterministic, dropout_rate)  # noqa: E731
        attention_norm = _norm(config, dtype, "attention_norm")
        feed_forward_norm = _norm(config, dtype, "feed_forward_norm")

        inputs: list[Array] = []

        def convolved(x_BTD: Array, name: str) -> Array:
            if not config.convolution:
                return x_BTD
            recent = None if layer is None else layer.recent[len(inputs)]
            convolution = Convolution(config.convolution, dtype, name=name)
            y_BTD, left = convolution(x_BTD, mask_BTS, recent)
            inputs.append(left)
            return y_BTD

        inner_BTD = convolved(attention_norm(x_BTD) if pre else x_BTD, "attention_convolution")
        y_BTD, kept = Attention(config, dtype, name="attention")(inner_BTD, position_BT, mask_BTS, layer)
        x_BTD = x_BTD + dropout(y_BTD)
        x_BTD = x_BTD if pre else attention_norm(x_BTD)

        inner_BTD = convolved(feed_forward_norm(x_BTD) if pre else x_BTD, "feed_forward_convolution")
        x_BTD = x_BTD + dropout(FeedForward(config, dtype, name="feed_forward")(inner_BTD))
        x_BTD = x_BTD if pre else feed_forward_norm(x_BTD)
        keys, values = kept[:2]
        return x_BTD, (keys, values, *inputs) if layer is None else kv_cache.Layer(keys, values, tuple(inputs))


class GPT(nn.Module):
    """Token ids to logits over the next token.

    Calling it is the full pass for training; `prefill` and `step` are the same blocks with a cache, in the form that
    `samplers` drives. Logits are float32.
    """

    config: ModelConfig
    vocabulary_size: int
    sequence_length: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        config = self.config
        embed = functools.partial(Embed, features=config.width, dtype=self.dtype, embedding_init=keras_uniform)
        self.token_embedding = embed(self.vocabulary_size)
        if config.positions == "learned":
            self.position_embedding = embed(self.sequence_length)
        if config.embedding_norm:
            self.embedding_norm = nn.RMSNorm(config.norm_epsilon, self.dtype, use_scale=False)
        self.dropout = Dropout(config.dropout)
        block = nn.remat(Block, static_argnums=(5,)) if config.remat else Block
        self.blocks = [block(config, self.dtype, name=f"block_{i}") for i in range(config.num_layers)]
        if config.norm_position == "pre":
            self.final_norm = _norm(config, self.dtype, "final_norm")
        if not config.tied_embeddings:
            self.output = _dense(config, self.vocabulary_size, self.dtype, "output", result=jnp.float32)
        elif config.use_bias:
            self.output_bias = self.param("output_bias", nn.initializers.zeros, (self.vocabulary_size,))

    def __call__(
        self, tokens_BT: Int[Array, "B T"], deterministic: bool = True, dropout_rate: Any = None
    ) -> Float[Array, "B T V"]:
        """Logits for the token after each of `tokens_BT`. With dropout, needs an rng named "dropout"."""
        return self.logits(self.hidden(tokens_BT, deterministic, dropout_rate))

    def hidden(
        self, tokens_BT: Int[Array, "B T"], deterministic: bool = True, dropout_rate: Any = None
    ) -> Float[Array, "B T D"]:
        """What the output layer makes its logits from."""
        return self._full_pass(tokens_BT, deterministic, dropout_rate)[0]

    def prefill(
        self, tokens_BT: Int[Array, "B T"], length_B: Int[Array, "B"], slots: int
    ) -> tuple[Float[Array, "B V"], Float[Array, "B T D"], kv_cache.Cache]:
        """The full pass over right-padded prompts, whose keys and values start a cache of `slots` positions.

        Returns the logits after each row's last token, all hidden states, and the cache.
        """
        hidden_BTD, layers = self._full_pass(tokens_BT, deterministic=True)
        last_BD = jnp.take_along_axis(hidden_BTD, length_B[:, None, None] - 1, axis=1)[:, 0]
        cache = kv_cache.from_prefill(layers, slots, length_B, recent=self.config.convolution - 1)
        return self.logits(last_BD), hidden_BTD, cache

    def step(
        self, tokens_B: Int[Array, "B"], cache: kv_cache.Cache, position_B: Int[Array, "B"]
    ) -> tuple[Float[Array, "B V"], Float[Array, "B D"], kv_cache.Cache]:
        """One token a row, at `position_B`, attending to the cache and to itself.

        `isolate_documents` is not looked at: text that goes on after a [BOS] still sees what stands before it.
        """
        mask_B1S = kv_cache.visible(position_B, kv_cache.num_slots(cache))[:, None]
        hidden_B1D, layers = self._blocks(tokens_B[:, None], position_B[:, None], mask_B1S, cache)
        cache = tuple(kv_cache.Layer(*layer) for layer in layers)
        return self.logits(hidden_B1D[:, 0]), hidden_B1D[:, 0], cache

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """The output layer, alone."""
        if not self.config.tied_embeddings:
            logits = self.output(hidden)
        else:
            logits = self.token_embedding.attend(hidden)
            if self.config.use_bias:
                logits = logits + self.output_bias.reshape((1,) * (logits.ndim - 1) + (-1,))
        logits = logits.astype(jnp.float32)
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * jnp.tanh(logits / self.config.logit_softcap)
        return logits

    def _full_pass(
        self, tokens_BT: Int[Array, "B T"], deterministic: bool, dropout_rate: Any = None
    ) -> tuple[Float[Array, "B T D"], tuple[Kept, ...]]:
        position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        mask_BTS = training_mask(tokens_BT, self.config.isolate_documents)
        return self._blocks(tokens_BT, position_BT, mask_BTS, None, deterministic, dropout_rate)

    def _blocks(
        self,
        tokens_BT: Int[Array, "B T"],
        position_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        cache: kv_cache.Cache | None,
        deterministic: bool = True,
        dropout_rate: Any = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Kept, ...]]:
        x_BTD = self.token_embedding(tokens_BT)
        if self.config.positions == "learned":
            x_BTD = x_BTD + self.position_embedding(position_BT)
        if self.config.embedding_norm:
            x_BTD = self.embedding_norm(x_BTD)
        x_BTD = self.dropout(x_BTD, deterministic, dropout_rate)
        layers = []
        blocks = self.blocks * self.config.repeats
        for block, layer in zip(blocks, cache or [None] * len(blocks), strict=True):
            x_BTD, kept = block(x_BTD, position_BT, mask_BTS, layer, deterministic, dropout_rate)
            layers.append(kept)
        if self.config.norm_position == "pre":
            x_BTD = self.final_norm(x_BTD)
        return x_BTD, tuple(layers)
