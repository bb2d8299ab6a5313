"""What may attend to what: causality, padding, documents, windows, rotary positions and grouped heads."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy_gpt
import pytest
from tiny import (
    CONFIGS,
    EVEN,
    EVERYTHING,
    LENGTHS,
    RAGGED,
    TINY,
    TWO_LAYERS,
    T,
    V,
    apply,
    full_pass,
    gpt,
    prefill,
    step,
    weights,
)

from minigpt_jax.config import BOS_ID, ModelConfig
from minigpt_jax.model import GPT
from minigpt_jax.model.blocks import rotate


@pytest.mark.parametrize(("name", "lengths"), [("rope", (9, 2, 6)), ("everything", (5, 2, 3))])
def test_a_rolled_cache_equals_a_window_of_keys(name: str, lengths: tuple[int, ...]) -> None:
    """Past its last slot the cache forgets the oldest token: each token sees the last `slots` tokens.

    A prompt may be longer than the cache; through one layer, that is, as what a second layer keeps of it has seen more.
    """
    config, slots = CONFIGS[name], 5
    module, params = gpt(config), weights(config)
    text = np.random.default_rng(2).integers(3, V, (3, 3 * slots))
    length = np.array(lengths)
    prompt = np.where(np.arange(max(lengths)) < length[:, None], text[:, : max(lengths)], 0)
    windowed = numpy_gpt.forward(params, config, text, window=slots)
    unlimited = numpy_gpt.forward(params, config, text)
    assert np.abs(windowed - unlimited)[:, slots:].max() > 1e-2
    rows = np.arange(len(text))
    _, _, cache = prefill(module, params, prompt, length, slots)
    for position in range(text.shape[1] - length.max()):
        at = length + position
        logits, _, cache = step(module, params, text[rows, at], cache, at)
        np.testing.assert_allclose(logits, windowed[rows, at], rtol=1e-4, atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def influence(module: GPT, params: Any, tokens_T: Any) -> Any:
    """[T, T]: size of the gradient of the logits at t with respect to the embedding of the token at s.

    A token's gradient is its embedding row's, so that it is one position's only where the row has it once.
    """
    direction = jax.random.normal(jax.random.key(3), (1, 1, V))

    def scalars(table: Any) -> Any:
        changed = {**params, "token_embedding": {"embedding": table}}
        return (apply(module, changed, tokens_T[None]) * direction).sum(-1)[0]

    jacobian_TVD = jax.jacrev(scalars)(params["token_embedding"]["embedding"])
    return jnp.abs(jacobian_TVD).sum(-1)[:, tokens_T]


# A tied output layer would be a second way in.
UNTIED_EVERYTHING = replace(EVERYTHING, tied_embeddings=False)


@pytest.mark.parametrize("config", [TWO_LAYERS, CONFIGS["pre-norm"], UNTIED_EVERYTHING, replace(TINY, remat=True)])
def test_causality_by_gradient(config: ModelConfig) -> None:
    """Zero after the token, and so for padding on the right; non-zero before and at it. No id is treated apart."""
    params = {**weights(replace(config, remat=False))}
    tokens = np.array([BOS_ID, 5, 9, 0, 4, 17, 11, 8, 20, 6, 7, 12])
    seen = np.asarray(influence(gpt(config), params, tokens)) > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((T, T), bool)))


def test_documents_are_isolated_by_gradient() -> None:
    config = replace(TWO_LAYERS, isolate_documents=True)
    tokens = np.array([5, 9, BOS_ID, 4, 17, 11, 8, 20, 6, 7, 12, 13])
    seen = np.asarray(influence(gpt(config), weights(config), tokens)) > 0
    document = np.arange(T) >= 2  # the first two belong to a document that began in the row before
    np.testing.assert_array_equal(seen, np.tril(np.ones((T, T), bool)) & (document[:, None] == document))


@pytest.mark.parametrize("base", [EVEN, UNTIED_EVERYTHING, EVERYTHING])
def test_a_packed_row_is_its_documents(base: ModelConfig) -> None:
    """With rotary positions a document's logits do not depend on where in the row it lies, nor on its neighbours."""
    config = replace(base, positions="rope", isolate_documents=True)
    documents = [np.array([BOS_ID, 5, 9]), np.array([BOS_ID, 4, 17, 11, 8]), np.array([BOS_ID, 20, 6, 7])]
    padded = np.stack([np.pad(document, (0, T - len(document))) for document in documents])
    packed = full_pass(gpt(config), weights(config), np.concatenate(documents)[None])[0]
    alone = full_pass(gpt(config), weights(config), padded)
    expected = np.concatenate([logits[: len(document)] for logits, document in zip(alone, documents, strict=True)])
    np.testing.assert_allclose(packed, expected, rtol=1e-4, atol=1e-4)
    without = full_pass(gpt(replace(config, isolate_documents=False)), weights(config), np.concatenate(documents)[None])
    assert np.abs(np.asarray(without)[0, 3:] - expected[3:]).max() > 1e-2


@pytest.mark.parametrize("config", [TINY, CONFIGS["rope"]], ids=["learned", "rope"])
def test_isolated_documents_equal_the_numpy_model(config: ModelConfig) -> None:
    config = replace(config, isolate_documents=True)
    tokens = np.array([[5, 9, BOS_ID, 4, 17, BOS_ID, 8, 20, 6, 7, BOS_ID, 13], [BOS_ID, 3, 4, BOS_ID, 6] + [0] * 7])
    logits = full_pass(gpt(config), weights(config), tokens)
    # Padding after the last document belongs to it; a label there is trained at most, and never read.
    np.testing.assert_allclose(logits, numpy_gpt.forward(weights(config), config, tokens), rtol=1e-4, atol=1e-4)


def test_rotary_scores_depend_on_distance_alone() -> None:
    q, k = np.random.default_rng(4).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(query_at: int, key_at: int) -> float:
        turned = [rotate(jnp.asarray(x), jnp.full((1, 1), at), 50.0) for x, at in ((q, query_at), (k, key_at))]
        return float((turned[0] * turned[1]).sum())

    for distance in (0, 1, 5):
        scores = [score(distance + shift, shift) for shift in (0, 1, 17, 100)]
        np.testing.assert_allclose(scores, scores[0], atol=1e-4)
    assert abs(score(5, 0) - score(0, 0)) > 1e-2
    assert score(0, 0) == pytest.approx(float((q * k).sum()), rel=1e-6)


def test_grouped_heads_are_repeated_heads() -> None:
    config = CONFIGS["grouped heads"]
    group, params = config.num_heads // config.kv_heads, weights(config)

    def widen(path: Any, leaf: Any) -> Any:
        names = [entry.key for entry in path]
        if "key" not in names and "value" not in names:
            return leaf
        heads = leaf.reshape(*leaf.shape[:-1], config.kv_heads, config.head_size)
        return jnp.repeat(heads, group, axis=-2).reshape(*leaf.shape[:-1], -1)

    every_head = replace(config, num_kv_heads=None)
    widened = jax.tree_util.tree_map_with_path(widen, params)
    expected = full_pass(gpt(every_head), widened, RAGGED)
    np.testing.assert_allclose(full_pass(gpt(config), params, RAGGED), expected, rtol=1e-5, atol=1e-5)
    _, _, cache = prefill(gpt(config), params, RAGGED, LENGTHS, T)
    assert cache[0].keys.size == T * len(LENGTHS) * config.kv_heads * config.head_size
