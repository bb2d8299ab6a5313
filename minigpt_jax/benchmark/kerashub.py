"""The model of the KerasHub tutorial, its weights as this project's parameter tree, and three ways to sample from it.

Keras uses the JAX backend unless another is chosen. Letters: B rows, S positions of a prompt and the generated text,
which KerasHub keeps in the same array.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import keras
import keras_hub
import numpy as np
from keras import ops

VOCAB_SIZE, SEQ_LEN, EMBED_DIM, FEED_FORWARD_DIM, NUM_HEADS, NUM_LAYERS = 5000, 128, 256, 128, 3, 2

Generate = Callable[[Any], Any]
"""A function from prompts [B, S], of which the first `index` tokens are given, to texts [B, S]."""


def allow_rank_promotion() -> Any:
    """Allows adding arrays of different ranks, which KerasHub's layers do and the tests otherwise forbid."""
    return jax.numpy_rank_promotion("allow")


def tutorial_model(seed: int) -> Any:
    """The tutorial's model, compiled as in the tutorial."""
    keras.utils.set_random_seed(seed)
    with allow_rank_promotion():
        inputs = keras.layers.Input(shape=(None,), dtype="int32")
        x = keras_hub.layers.TokenAndPositionEmbedding(
            vocabulary_size=VOCAB_SIZE, sequence_length=SEQ_LEN, embedding_dim=EMBED_DIM, mask_zero=True
        )(inputs)
        for _ in range(NUM_LAYERS):
            x = keras_hub.layers.TransformerDecoder(num_heads=NUM_HEADS, intermediate_dim=FEED_FORWARD_DIM)(x)
        model = keras.Model(inputs=inputs, outputs=keras.layers.Dense(VOCAB_SIZE)(x))
        model.compile(
            optimizer="adam",
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[keras_hub.metrics.Perplexity(from_logits=True, mask_token_id=0)],
        )
    return model


def from_keras(model: Any) -> dict[str, Any]:
    """Copies the weights of `tutorial_model` into the tree of `minigpt_jax.model.GPT`.

    In Keras, the kernels of query, key and value are [D, N, H], and that of the output is [N, H, D]. Here they are
    matrices, [D, N·H] and [N·H, D].
    """
    _, embedding, *decoders, output = model.layers
    tree = {
        "token_embedding": {"embedding": embedding.token_embedding.embeddings},
        "position_embedding": {"embedding": embedding.position_embedding.position_embeddings},
        "output": _dense(output),
    }
    for i, decoder in enumerate(decoders):
        attention = decoder._self_attention_layer
        width = attention.output_dense.kernel.shape[-1]
        tree[f"block_{i}"] = {
            "attention": {
                "query": _dense(attention.query_dense, (width, -1)),
                "key": _dense(attention.key_dense, (width, -1)),
                "value": _dense(attention.value_dense, (width, -1)),
                "out": _dense(attention.output_dense, (-1, width)),
            },
            "attention_norm": _norm(decoder._self_attention_layer_norm),
            "feed_forward": {
                "up": _dense(decoder._feedforward_intermediate_dense),
                "down": _dense(decoder._feedforward_output_dense),
            },
            "feed_forward_norm": _norm(decoder._feedforward_layer_norm),
        }
    # A copy: Keras donates its own arrays to its train step.
    return jax.tree.map(lambda variable: np.asarray(variable).copy(), tree, is_leaf=lambda x: not isinstance(x, dict))


def tutorial_generate(model: Any, sampler: Any, index: int) -> Generate:
    """The tutorial's way: each token takes a full pass over all positions, without compiling."""

    def next_token(prompt: Any, cache: Any, index: Any) -> Any:
        return model(prompt)[:, index - 1, :], None, cache

    def generate(prompt: Any) -> Any:
        with allow_rank_promotion():
            return sampler(next=next_token, prompt=ops.convert_to_tensor(prompt), index=index)

    return generate


def uncached_generate(model: Any, sampler: Any, index: int) -> Generate:
    """The tutorial's way wrapped in `jax.jit`, as one compiled program."""
    return _compiled(model, sampler, tutorial_generate(model, sampler, index))


def cached_generate(model: Any, sampler: Any, index: int) -> Generate:
    """KerasHub's compiled way with a cache, as in `keras_hub.models.CausalLM.generate`, for the tutorial's layers."""
    _, embedding, *decoders, output = model.layers

    def step(tokens: Any, cache: Any, position: Any) -> Any:
        x = embedding(tokens, start_index=position)
        layers = []
        for i, decoder in enumerate(decoders):
            x, layer = decoder(x, self_attention_cache=cache[:, i, ...], self_attention_cache_update_index=position)
            layers.append(layer)
        return output(x), x, ops.stack(layers, axis=1)

    def next_token(prompt: Any, cache: Any, index: Any) -> Any:
        tokens = ops.slice(prompt, [0, index - 1], [np.shape(prompt)[0], 1])
        logits, hidden, cache = step(tokens, cache, index - 1)
        return ops.squeeze(logits, axis=1), ops.squeeze(hidden, axis=1), cache

    def generate(prompt: Any) -> Any:
        rows, slots = np.shape(prompt)
        empty = ops.zeros([rows, NUM_LAYERS, 2, slots, NUM_HEADS, EMBED_DIM // NUM_HEADS])
        _, hidden, cache = step(prompt, empty, 0)
        return sampler(next=next_token, prompt=prompt, cache=cache, index=index, hidden_states=hidden)

    return _compiled(model, sampler, generate)


def _compiled(model: Any, sampler: Any, generate: Generate) -> Generate:
    """`generate` under jit, with the weights and the sampler's seeds as arguments, as KerasHub compiles it."""

    @functools.partial(jax.jit, static_argnames="shape")
    def call(weights: Any, generators: Any, prompt: Any, shape: Any) -> Any:
        del shape
        variables = [*model.variables, *sampler.variables]
        with keras.StatelessScope(state_mapping=list(zip(variables, [*weights, *generators], strict=True))) as scope:
            out = generate(prompt)
        return out, [scope.get_current_value(variable) for variable in sampler.variables]

    def compiled(prompt: Any) -> Any:
        weights, generators = ([v.value for v in owner.variables] for owner in (model, sampler))
        with allow_rank_promotion():
            out, generators = call(weights, generators, prompt, np.shape(prompt))
        for variable, value in zip(sampler.variables, generators, strict=True):
            variable.assign(value)
        return out

    return compiled


def _dense(layer: Any, shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    kernel, bias = np.asarray(layer.kernel), np.asarray(layer.bias)
    return {"kernel": kernel if shape is None else kernel.reshape(shape), "bias": bias.ravel()}


def _norm(layer: Any) -> dict[str, Any]:
    return {"scale": layer.gamma, "bias": layer.beta}
