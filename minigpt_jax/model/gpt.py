"""The GPT: one Flax Linen module for the full pass of training, for prefill and for the decode step.

Shapes: B batch, T query positions, S cache slots, D width, N heads, K key-value heads, H head width, F feed-forward
width, V vocabulary. With the default configuration it is exactly the decoder of the KerasHub tutorial.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from minigpt_jax.config import Experiment, ModelConfig
from minigpt_jax.model import parametrization
from minigpt_jax.model.blocks import (
    Block,
    Dropout,
    DropoutCall,
    Dtype,
    LayerState,
    Params,
    dense,
    norm,
)
from minigpt_jax.model.own_block import check_result, user_block
from minigpt_jax.model.pointer import Pointer, PointerMixture
from minigpt_jax.ops import kv_cache
from minigpt_jax.ops.embedding import Embed
from minigpt_jax.ops.platform import on_cpu


def compute_dtype(config: ModelConfig) -> Dtype:
    """The type of matmul operands. "auto" is bfloat16, but float32 on CPU, as few CPUs support bfloat16."""
    if config.dtype == "auto":
        return jnp.float32 if on_cpu() else jnp.bfloat16
    return jnp.dtype(config.dtype)


def build(experiment: Experiment) -> "GPT":
    """The experiment's model. Its embedding has the configured number of rows, even if the vocabulary is smaller."""
    return GPT(
        experiment.model,
        vocabulary_size=experiment.tokenizer.rows,
        sequence_length=experiment.data.sequence_length,
        dtype=compute_dtype(experiment.model),
        # Models that do not need it are equal, and share compiled programs, whatever the tokenizer.
        start_id=experiment.tokenizer.start_id if experiment.model.isolate_documents else None,
    )


def parameter_shapes(experiment: Experiment) -> Params:
    """The tree of the parameters' shapes and types, without allocating the parameters."""
    gpt = build(experiment).clone(start_id=0)  # no shape depends on it, and the tokenizer may still be unknown
    tokens_BT = jax.ShapeDtypeStruct((1, gpt.sequence_length), jnp.int32)
    return jax.eval_shape(gpt.init, jax.random.key(0), tokens_BT)["params"]


def logits(
    gpt: "GPT",
    params: Params,
    tokens_BT: Int[Array, "B T"],
    dropout_key: Array | None = None,
    dropout_call: DropoutCall | None = None,
) -> Float[Array, "B T V"]:
    """The logits of a full pass. Dropout is applied only if `dropout_key` is given; see `DropoutCall`."""
    return _of_full_pass("__call__", gpt, params, tokens_BT, dropout_key, dropout_call)


def hidden(
    gpt: "GPT",
    params: Params,
    tokens_BT: Int[Array, "B T"],
    dropout_key: Array | None = None,
    dropout_call: DropoutCall | None = None,
) -> Float[Array, "B T D"]:
    """The hidden states of a full pass, from which the output layer and the pointer make the logits; see `logits`."""
    return _of_full_pass("hidden", gpt, params, tokens_BT, dropout_key, dropout_call)


def _of_full_pass(
    method: str,
    gpt: "GPT",
    params: Params,
    tokens_BT: Array,
    dropout_key: Array | None,
    dropout_call: DropoutCall | None,
) -> Array:
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    out: Any = gpt.apply({"params": params}, tokens_BT, dropout_key is None, dropout_call, rngs=rngs, method=method)
    return out


def pointer_mixture(
    gpt: "GPT", params: Params, hidden_BTD: Float[Array, "B T D"], tokens_BT: Int[Array, "B T"]
) -> PointerMixture | None:
    """The pointer's mixture for the predictions of a full pass, or None if the model has no pointer."""
    if not gpt.config.pointer:
        return None
    out: Any = gpt.apply({"params": params}, hidden_BTD, tokens_BT, method=GPT.pointer_mixture)
    return out


def output(gpt: "GPT", params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Applies the output layer alone. `params` needs to hold only its `output_parameters`."""
    out: Any = gpt.apply({"params": params}, hidden, method=GPT.output_logits)
    return out


def output_parameters(gpt: "GPT", params: Params) -> Params:
    """The parameters that the output layer uses."""
    names = ("output_projection", *(("token_embedding", "output_bias") if gpt.config.tied_embeddings else ("output",)))
    return {name: params[name] for name in names if name in params}


def keras_uniform(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Draws from Uniform(-0.05, 0.05), Keras's default initialiser of embeddings."""
    return jax.random.uniform(key, shape, dtype, -0.05, 0.05)


def training_mask(tokens_BT: Int[Array, "B T"], start_id: int | None = None) -> Bool[Array, "B T T"]:
    """True where query t may attend to key s: s is not after t.

    Padding on the right needs no mask of its own, as no token of the text may attend to what is after it. With
    `start_id`, the token that begins a document, both also have to belong to the same document.
    """
    rows, length = tokens_BT.shape
    mask_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((1, length, length), bool)), (rows, length, length))
    if start_id is not None:
        document_BT = jnp.cumsum(tokens_BT == start_id, axis=1)
        mask_BTS &= document_BT[:, :, None] == document_BT[:, None, :]
    return mask_BTS


class GPT(nn.Module):
    """Maps token ids to float32 logits over the next token.

    Calling the module makes the full pass that is used in training. `prefill` and `step` use the same blocks with a
    cache, in the form that `samplers` expects. `start_id` is the token that begins a document, which only
    `isolate_documents` needs.
    """

    config: ModelConfig
    vocabulary_size: int
    sequence_length: int
    dtype: Dtype = jnp.float32
    start_id: int | None = None

    def setup(self) -> None:
        config = self.config
        embed = functools.partial(Embed, dtype=self.dtype, embedding_init=keras_uniform)
        self.token_embedding = embed(self.vocabulary_size, config.embedding_width or config.width)
        if config.embedding_width:  # as in ALBERT (Lan et al. 2020); there, one matrix serves both ways
            project = functools.partial(dense, config, dtype=self.dtype, use_bias=False)
            self.embedding_projection = project(config.width, name="embedding_projection")
            self.output_projection = project(config.embedding_width, name="output_projection")
        if config.positions == "learned":
            self.position_embedding = embed(self.sequence_length, config.width)
        if config.embedding_norm:
            self.embedding_norm = nn.RMSNorm(config.norm_epsilon, self.dtype, use_scale=False)
        self.dropout = Dropout(config.dropout)
        block = Block if config.block == "transformer" else user_block(config.block)
        if config.remat:
            block = nn.remat(block, static_argnums=(5,))
        self.blocks = [block(config, self.dtype, name=f"block_{i}") for i in range(config.num_layers)]
        if config.norm_position == "pre":
            self.final_norm = norm(config, self.dtype, "final_norm")
        if not config.tied_embeddings:
            has_bias = config.has_bias("output")
            self.output = dense(
                config, self.vocabulary_size, self.dtype, "output", use_bias=has_bias, result=jnp.float32
            )
        elif config.has_bias("output"):
            self.output_bias = self.param("output_bias", nn.initializers.zeros, (self.vocabulary_size,))
        if config.pointer:
            self.pointer = Pointer(config, self.dtype)

    def __call__(
        self, tokens_BT: Int[Array, "B T"], deterministic: bool = True, dropout_call: DropoutCall | None = None
    ) -> Float[Array, "B T V"]:
        """Logits for the token after each of `tokens_BT`. Unless `deterministic`, it needs an rng named "dropout"."""
        hidden_BTD = self.hidden(tokens_BT, deterministic, dropout_call)
        return self._predictions(hidden_BTD, tokens_BT, *self._positions_and_mask(tokens_BT))[0]

    def hidden(
        self, tokens_BT: Int[Array, "B T"], deterministic: bool = True, dropout_call: DropoutCall | None = None
    ) -> Float[Array, "B T D"]:
        """The hidden states of a full pass: the input of the output layer."""
        return self._full_pass(tokens_BT, deterministic, dropout_call)[0]

    def prefill(
        self, tokens_BT: Int[Array, "B T"], length_B: Int[Array, "B"], slots: int
    ) -> tuple[Float[Array, "B V"], Float[Array, "B T D"], kv_cache.Cache]:
        """A full pass over right-padded prompts, whose keys and values fill a new cache of `slots` slots.

        Returns the logits after each row's last token, all hidden states, and the cache.
        """
        hidden_BTD, layers = self._full_pass(tokens_BT, deterministic=True)
        position_BT, mask_BTS = self._positions_and_mask(tokens_BT)
        logits_B1V, pointer = self._predictions(hidden_BTD, tokens_BT, position_BT, mask_BTS, of=length_B - 1)
        forks = self.config.block == "transformer"  # a user's own may read keys and values itself
        cache = kv_cache.from_prefill(layers, slots, length_B, recent=self.config.convolution - 1, forks=forks)
        cache += kv_cache.from_prefill(pointer, slots, length_B, recent=1)
        return logits_B1V[:, 0], hidden_BTD, cache

    def step(
        self, tokens_B: Int[Array, "B"], cache: kv_cache.Cache, position_B: Int[Array, "B"]
    ) -> tuple[Float[Array, "B V"], Float[Array, "B D"], kv_cache.Cache]:
        """Decodes one token per row, at `position_B`, which attends to the cache and to itself.

        `isolate_documents` has no effect here: tokens of a new document still attend to those before it.
        """
        tokens_B1, position_B1 = tokens_B[:, None], position_B[:, None]
        mask_B1S = kv_cache.visible(position_B, kv_cache.num_slots(cache))[:, None]
        blocks, layer = (cache[:-1], cache[-1]) if self.config.pointer else (cache, None)
        hidden_B1D, layers = self._blocks(tokens_B1, position_B1, mask_B1S, blocks)
        logits_B1V, pointer = self._predictions(hidden_B1D, tokens_B1, position_B1, mask_B1S, layer)
        cache = tuple(kv_cache.Layer(*layer) for layer in (*layers, *pointer))
        return logits_B1V[:, 0], hidden_B1D[:, 0], cache

    def pointer_mixture(self, hidden_BTD: Float[Array, "B T D"], tokens_BT: Int[Array, "B T"]) -> PointerMixture:
        """The pointer's mixture, from the hidden states of a full pass."""
        return self.pointer(hidden_BTD, tokens_BT, *self._positions_and_mask(tokens_BT))[0]

    def output_logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Applies the output layer alone."""
        if self.config.embedding_width:
            hidden = self.output_projection(hidden)
        if not self.config.tied_embeddings:
            logits = self.output(hidden)
        else:
            logits = parametrization.logit_scale(self.config) * self.token_embedding.attend(hidden)
            if self.config.has_bias("output"):
                logits = logits + self.output_bias.reshape((1,) * (logits.ndim - 1) + (-1,))
        logits = logits.astype(jnp.float32)
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * jnp.tanh(logits / self.config.logit_softcap)
        return logits

    def _predictions(
        self,
        hidden_BTD: Float[Array, "B T D"],
        tokens_BT: Int[Array, "B T"],
        position_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        layer: kv_cache.Layer | None = None,
        of: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B U V"], tuple[LayerState, ...]]:
        """The logits, and the pointer's state for the cache if there is a pointer.

        The logits are those at all positions, or only at position `of` of each row.
        """

        def taken(x: Array) -> Array:
            return x if of is None else jnp.take_along_axis(x, of.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)

        logits_BUV = self.output_logits(taken(hidden_BTD))
        if not self.config.pointer:
            return logits_BUV, ()
        mixture, state = self.pointer(hidden_BTD, tokens_BT, position_BT, mask_BTS, layer)
        mixture = mixture._replace(output=taken(mixture.output), weights=taken(mixture.weights))
        return mixture.logits(logits_BUV), (state,)

    def _full_pass(
        self, tokens_BT: Int[Array, "B T"], deterministic: bool, dropout_call: DropoutCall | None = None
    ) -> tuple[Float[Array, "B T D"], tuple[LayerState, ...]]:
        position_BT, mask_BTS = self._positions_and_mask(tokens_BT)
        return self._blocks(tokens_BT, position_BT, mask_BTS, None, deterministic, dropout_call)

    def _positions_and_mask(self, tokens_BT: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Bool[Array, "B T T"]]:
        """The positions and the attention mask of a full pass."""
        position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        if not self.config.isolate_documents:
            return position_BT, training_mask(tokens_BT)
        if self.start_id is None:
            raise ValueError("isolate_documents needs start_id, the token that begins a document")
        return position_BT, training_mask(tokens_BT, self.start_id)

    def _blocks(
        self,
        tokens_BT: Int[Array, "B T"],
        position_BT: Int[Array, "B T"],
        mask_BTS: Bool[Array, "B T S"],
        cache: kv_cache.Cache | None,
        deterministic: bool = True,
        dropout_call: DropoutCall | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[LayerState, ...]]:
        x_BTD = self.token_embedding(tokens_BT)
        if self.config.embedding_width:
            x_BTD = self.embedding_projection(x_BTD)
        if self.config.positions == "learned":
            x_BTD = x_BTD + self.position_embedding(position_BT)
        if self.config.embedding_norm:
            x_BTD = self.embedding_norm(x_BTD)
        x_BTD = self.dropout(x_BTD, deterministic, dropout_call)
        layers = []
        blocks = self.blocks * self.config.repeats
        for block, layer in zip(blocks, cache or [None] * len(blocks), strict=True):
            result = block(x_BTD, position_BT, mask_BTS, layer, deterministic, dropout_call)
            if self.config.block != "transformer":
                check_result(self.config.block, result, x_BTD, layer)
            x_BTD, state = result
            layers.append(state)
        if self.config.norm_position == "pre":
            x_BTD = self.final_norm(x_BTD)
        return x_BTD, tuple(layers)
