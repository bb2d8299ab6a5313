"""The model against NumPy in float64, against itself where two ways must agree, and against the reference's figures."""

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy_gpt
import pytest

from minigpt_jax import model
from minigpt_jax.config import BOS_ID, DataConfig, Experiment, ModelConfig, TokenizerConfig
from minigpt_jax.model import GPT

V, T = 23, 12
TINY = ModelConfig(num_layers=1, width=16, num_heads=3, feed_forward=24)  # heads of 5: 16 // 3, as 85 = 256 // 3
TWO_LAYERS = replace(TINY, num_layers=2)
EVEN = replace(TINY, num_heads=4)
EVERYTHING = ModelConfig(
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    feed_forward=24,
    activation="swiglu",
    norm="rmsnorm",
    norm_position="pre",
    positions="rope",
    use_bias=False,
    tied_embeddings=True,
    qk_norm=True,
    logit_softcap=2.0,
)
CONFIGS = {
    "reference": TWO_LAYERS,
    "pre-norm": replace(TINY, norm_position="pre"),
    "rmsnorm": replace(TINY, norm="rmsnorm", norm_epsilon=0.1),
    "rope": replace(EVEN, positions="rope", rope_theta=100.0),
    "gelu": replace(TINY, activation="gelu"),
    "relu2": replace(TINY, activation="relu2"),
    "swiglu": replace(TINY, activation="swiglu"),
    "no bias": replace(TINY, use_bias=False),
    "tied": replace(TINY, tied_embeddings=True),
    "qk-norm": replace(TINY, qk_norm=True),
    "grouped heads": replace(EVEN, num_kv_heads=2),
    "soft-cap": replace(TINY, logit_softcap=1.5),
    "everything": EVERYTHING,
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

LENGTHS = np.array([12, 3, 7, 1])
RAGGED = np.where(
    np.arange(T) < LENGTHS[:, None], np.random.default_rng(0).integers(3, V, (len(LENGTHS), T)), 0
)  # right-padded rows of ids


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """Nearly all the time here goes into compiling programs that run once, so XLA is to take less care over them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def gpt(config: ModelConfig, dtype: Any = jnp.float32) -> GPT:
    return GPT(config, vocabulary_size=V, sequence_length=T, dtype=dtype)


@functools.cache
def weights(config: ModelConfig) -> Any:
    """Parameters with nothing at its neutral value: no bias is 0, no scale is 1."""
    shapes = jax.eval_shape(gpt(config).init, jax.random.key(0), jnp.zeros((1, T), jnp.int32))["params"]
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        centre, spread = (1.0, 0.3) if path[-1].key == "scale" else (0.0, 0.4)
        return rng.normal(centre, spread, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def apply(module: GPT, params: Any, *inputs: Any, **options: Any) -> Any:
    return module.apply({"params": params}, *inputs, **options)


full_pass = jax.jit(apply, static_argnums=0)


@functools.partial(jax.jit, static_argnames=("module", "slots"))
def prefill(module: GPT, params: Any, tokens: Any, length: Any, slots: int) -> Any:
    return apply(module, params, tokens, length, slots, method=GPT.prefill)


@functools.partial(jax.jit, static_argnums=0)
def step(module: GPT, params: Any, tokens: Any, cache: Any, position: Any) -> Any:
    return apply(module, params, tokens, cache, position, method=GPT.step)


@each_config
def test_logits_are_those_of_numpy(config: ModelConfig) -> None:
    logits = full_pass(gpt(config), weights(config), RAGGED)
    assert logits.shape == (len(LENGTHS), T, V)
    expected = numpy_gpt.forward(weights(config), config, RAGGED)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)  # padding positions too


@each_config
def test_prefill_and_steps_are_the_full_pass(config: ModelConfig) -> None:
    """Ragged prompts, each row at its own position, up to the end of the window."""
    module, params = gpt(config), weights(config)
    text = np.random.default_rng(1).integers(3, V, (len(LENGTHS), T))
    length = np.minimum(LENGTHS, T - 4)
    prompt = np.where(np.arange(T) < length[:, None], text, 0)[:, : T - 2]
    full, rows = np.asarray(full_pass(module, params, text)), np.arange(len(text))
    logits, hidden, cache = prefill(module, params, prompt, length, T)
    assert hidden.shape == (*prompt.shape, config.width)
    np.testing.assert_allclose(logits, full[rows, length - 1], rtol=1e-4, atol=1e-4)
    last = hidden[:, 0]
    for position in range(4):
        at = length + position
        logits, last, cache = step(module, params, text[rows, at], cache, at)
        np.testing.assert_allclose(logits, full[rows, at], rtol=1e-4, atol=1e-4)
    read = apply(module, params, last, method=GPT.logits)  # the hidden state is what the output layer gets
    np.testing.assert_allclose(np.asarray(read), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["rope", "everything"])
def test_a_rolled_cache_is_a_window(name: str) -> None:
    """Past its last slot the cache forgets the oldest token: each token sees the last `slots` tokens."""
    config, slots = CONFIGS[name], 5
    module, params = gpt(config), weights(config)
    text = np.random.default_rng(2).integers(3, V, (3, 3 * slots))
    length = np.array([5, 2, 3])
    prompt = np.where(np.arange(slots) < length[:, None], text[:, :slots], 0)
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
def test_causality_and_padding_by_gradient(config: ModelConfig) -> None:
    """Zero after the token and for padding, non-zero before and at it."""
    params = {**weights(replace(config, remat=False))}
    tokens = np.array([BOS_ID, 5, 9, 4, 17, 11, 8, 20, 0, 0, 0, 0])
    seen = np.asarray(influence(gpt(config), params, tokens)) > 0
    real = tokens != 0
    np.testing.assert_array_equal(seen[real], np.tril(np.ones((T, T), bool))[real] & real)


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
def test_isolation_is_numpys(config: ModelConfig) -> None:
    config = replace(config, isolate_documents=True)
    tokens = np.array([[5, 9, BOS_ID, 4, 17, BOS_ID, 8, 20, 6, 7, BOS_ID, 13], [BOS_ID, 3, 4, BOS_ID, 6] + [0] * 7])
    logits = full_pass(gpt(config), weights(config), tokens)
    # Padding after the last document belongs to it; a label there is trained at most, and never read.
    np.testing.assert_allclose(logits, numpy_gpt.forward(weights(config), config, tokens), rtol=1e-4, atol=1e-4)


def test_rotary_scores_depend_on_distance_alone() -> None:
    q, k = np.random.default_rng(4).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(query_at: int, key_at: int) -> float:
        turned = [model.rotate(jnp.asarray(x), jnp.full((1, 1), at), 50.0) for x, at in ((q, query_at), (k, key_at))]
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
        heads = leaf.reshape(*leaf.shape[:-1], config.kv_heads, config.head_width)
        return jnp.repeat(heads, group, axis=-2).reshape(*leaf.shape[:-1], -1)

    every_head = replace(config, num_kv_heads=None)
    widened = jax.tree_util.tree_map_with_path(widen, params)
    expected = full_pass(gpt(every_head), widened, RAGGED)
    np.testing.assert_allclose(full_pass(gpt(config), params, RAGGED), expected, rtol=1e-5, atol=1e-5)
    _, _, cache = prefill(gpt(config), params, RAGGED, LENGTHS, T)
    assert cache[0].keys.size == T * len(LENGTHS) * config.kv_heads * config.head_width


def test_soft_cap_bounds_logits() -> None:
    config, plain = CONFIGS["soft-cap"], TINY
    params = jax.tree.map(lambda x: 10 * x, weights(plain))
    capped, raw = (np.asarray(full_pass(gpt(c), params, RAGGED)) for c in (config, plain))
    assert np.abs(raw).max() > 10 > 1.5 >= np.abs(capped).max()
    np.testing.assert_allclose(capped, 1.5 * np.tanh(raw / 1.5), rtol=1e-5, atol=1e-5)


def test_dropout_falls_on_embeddings_and_branches_by_key() -> None:
    config = replace(TWO_LAYERS, dropout=0.3)
    module, params = gpt(config), weights(config)

    @functools.partial(jax.jit, static_argnames="deterministic")
    def run(key: int, deterministic: bool = False) -> Any:
        return apply(
            module,
            params,
            RAGGED[:1],
            deterministic=deterministic,
            rngs={"dropout": jax.random.key(key)},
            capture_intermediates=lambda layer, _: isinstance(layer, nn.Dropout),
        )

    logits, captured = run(0)
    dropped = [np.asarray(x) == 0 for x in jax.tree.leaves(captured)]
    assert len(dropped) == 1 + 2 * config.num_layers
    assert len({mask.tobytes() for mask in dropped}) == len(dropped), "two places share a mask"
    assert np.mean(dropped) == pytest.approx(0.3, abs=0.05)
    np.testing.assert_array_equal(logits, run(0)[0])
    assert np.abs(logits - run(1)[0]).max() > 1e-2
    plain = full_pass(gpt(TWO_LAYERS), params, RAGGED[:1])
    np.testing.assert_allclose(run(0, deterministic=True)[0], plain, rtol=1e-5, atol=1e-5)


def test_rematerialisation_changes_memory_not_gradients() -> None:
    """With dropout, whose masks must come out the same the second time."""
    config = replace(TINY, dropout=0.3)
    params = weights(config)

    def gradient(module: GPT) -> Any:
        def loss(params: Any) -> Any:
            rngs = {"dropout": jax.random.key(5)}
            return jnp.square(apply(module, params, RAGGED, deterministic=False, rngs=rngs)).sum()

        return jax.jit(jax.grad(loss)).trace(params)

    kept, again = gradient(gpt(config)), gradient(gpt(replace(config, remat=True)))
    gradients = [traced.lower().compile()(params) for traced in (kept, again)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3), *gradients)
    assert str(kept.jaxpr).count("remat") == 0 < str(again.jaxpr).count("remat")


@pytest.mark.parametrize("config", [TWO_LAYERS, EVERYTHING], ids=["reference", "everything"])
def test_bfloat16_is_close_and_parameters_stay_float32(config: ModelConfig) -> None:
    module, params = gpt(config, jnp.bfloat16), weights(config)
    fresh = jax.eval_shape(module.init, jax.random.key(0), RAGGED)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    shapes = jax.eval_shape(functools.partial(prefill, module, slots=T), params, RAGGED, LENGTHS)
    logits, hidden, cache = shapes
    assert (logits.dtype, hidden.dtype, cache[0].keys.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    exact = np.asarray(full_pass(gpt(config), params, RAGGED))
    rounded = np.asarray(full_pass(module, params, RAGGED))
    assert 1e-4 < np.abs(rounded - exact).mean() / exact.std() < 0.02


def test_tied_embeddings_are_one_parameter() -> None:
    params, untied = weights(CONFIGS["tied"]), weights(TINY)
    assert set(untied) - set(params) == {"output"}
    assert params["output_bias"].shape == (V,)
    assert "output_bias" not in weights(EVERYTHING)


REFERENCE = Experiment("reference", DataConfig(), TokenizerConfig(), ModelConfig())


@functools.cache
def fresh() -> Any:
    module = model.build(REFERENCE)
    return jax.jit(module.init)(jax.random.key(7), jnp.zeros((1, 128), jnp.int32))["params"]


def test_reference_has_the_tutorials_parameters() -> None:
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in fresh().items()}
    embeddings = sizes.pop("token_embedding") + sizes.pop("position_embedding")
    assert embeddings == 1_312_768
    assert sizes == {"block_0": 329_085, "block_1": 329_085, "output": 1_285_000}
    assert embeddings + sum(sizes.values()) == 3_255_938
    assert model.compute_dtype(REFERENCE.model) == jnp.float32  # on CPU


def test_fresh_parameters_have_keras_ranges() -> None:
    """Embeddings uniform to 0.05, kernels Glorot uniform with the fans of the flattened matrix, biases 0, scales 1."""
    seen = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh()):
        name = path[-1].key
        if name in ("bias", "scale"):
            np.testing.assert_array_equal(leaf, 0 if name == "bias" else 1)
            continue
        bound = 0.05 if name == "embedding" else math.sqrt(6 / sum(leaf.shape))
        assert 0.999 * bound < np.abs(leaf).max() <= bound, path
        assert np.std(leaf) == pytest.approx(bound / math.sqrt(3), rel=0.02), path
        assert abs(np.mean(leaf)) < 0.02 * bound, path
        seen.add(np.asarray(leaf).ravel()[:8].tobytes())
    assert len(seen) == 2 + 2 * 6 + 1, "two weights share their draws"
    assert fresh()["block_0"]["attention"]["query"]["kernel"].shape == (256, 255)
