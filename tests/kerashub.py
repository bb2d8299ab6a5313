"""The KerasHub tutorial's model, and its weights as our parameter tree."""

from typing import Any

import jax
import numpy as np
import pytest

keras = pytest.importorskip("keras")
keras_hub = pytest.importorskip("keras_hub")

VOCAB_SIZE, SEQ_LEN, EMBED_DIM, FEED_FORWARD_DIM, NUM_HEADS, NUM_LAYERS = 5000, 128, 256, 128, 3, 2


def allow_rank_promotion() -> Any:
    """KerasHub's layers add arrays of different ranks, which the tests otherwise forbid."""
    return jax.numpy_rank_promotion("allow")


def tutorial_model(seed: int) -> Any:
    """The tutorial's model, compiled as the tutorial compiles it."""
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

    Keras keeps heads apart: the kernels of query, key and value are [D, N, H] and that of the output [N, H, D]; ours
    are the flattened matrices [D, N·H] and [N·H, D].
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


def _dense(layer: Any, shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    kernel, bias = np.asarray(layer.kernel), np.asarray(layer.bias)
    return {"kernel": kernel if shape is None else kernel.reshape(shape), "bias": bias.ravel()}


def _norm(layer: Any) -> dict[str, Any]:
    return {"scale": layer.gamma, "bias": layer.beta}
