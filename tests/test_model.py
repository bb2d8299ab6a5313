"""The model against NumPy in float64, against itself where two ways must agree, and against the reference's figures."""

import functools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy_gpt
import pytest
from tiny import (
    CONFIGS,
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

from minigpt_jax import model
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, TokenizerConfig
from minigpt_jax.model import GPT
from minigpt_jax.model.blocks import Dropout, DropoutCall

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@each_config
def test_logits_equal_the_numpy_model(config: ModelConfig) -> None:
    logits = full_pass(gpt(config), weights(config), RAGGED)
    assert logits.shape == (len(LENGTHS), T, V)
    expected = numpy_gpt.forward(weights(config), config, RAGGED)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)  # padding positions too


@each_config
def test_prefill_and_steps_equal_the_full_pass(config: ModelConfig) -> None:
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
    read = apply(module, params, last, method=GPT.output_logits)  # the hidden state is what the output layer gets
    assert np.allclose(np.asarray(read), logits, rtol=1e-5, atol=1e-5) == (not config.pointer)


@pytest.mark.parametrize("length", [1, 3])
def test_convolutions_may_be_longer_than_a_prompt(length: int) -> None:
    config = replace(EVERYTHING, convolution=5)
    module, params, text = gpt(config), weights(config), RAGGED[:1]
    expected = numpy_gpt.forward(params, config, text)[0]
    full = full_pass(module, params, text[:, :length])
    np.testing.assert_allclose(full[0], expected[:length], rtol=1e-4, atol=1e-4)
    logits, _, cache = prefill(module, params, text[:, :length], np.array([length]), T)
    for position in range(length, 8):
        np.testing.assert_allclose(logits[0], expected[position - 1], rtol=1e-4, atol=1e-4)
        logits, _, cache = step(module, params, text[:, position], cache, np.array([position]))


@pytest.mark.parametrize("config", [EVERYTHING, replace(EVERYTHING, parametrization="mup", base_width=4)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_form_that_is_sampled_from_is_the_same_model(dtype: Any, config: ModelConfig) -> None:
    tied, params = gpt(config, dtype), weights(config)
    own, copied = model.for_decoding(tied, params)
    assert not own.config.tied_embeddings
    assert "query_key_value" in copied["block_1"]["attention"]
    np.testing.assert_allclose(full_pass(own, copied, RAGGED), full_pass(tied, params, RAGGED), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("zero_init", [False, True])
def test_zero_init_starts_every_block_as_the_identity(zero_init: bool) -> None:
    module = gpt(replace(EVERYTHING, zero_init=zero_init))
    params = jax.jit(module.init)(jax.random.key(0), RAGGED)["params"]
    embedded = np.asarray(params["token_embedding"]["embedding"])[RAGGED]
    normed = embedded / np.sqrt((embedded**2).mean(-1, keepdims=True) + module.config.norm_epsilon)
    hidden = jax.jit(functools.partial(apply, module, method=GPT.hidden))(params, RAGGED)
    assert np.allclose(hidden, normed, rtol=1e-4, atol=1e-4) == zero_init


def test_convolutions_are_initialised_to_zero() -> None:
    params: Any = jax.jit(gpt(EVERYTHING).init)(jax.random.key(0), RAGGED)["params"]
    convolutions = [name for name in params["block_1"] if name.endswith("_convolution")]
    assert [params["block_1"][name]["taps"].shape for name in convolutions] == 2 * [(3, EVERYTHING.width)]
    plain = {name: {k: v for k, v in node.items() if k not in convolutions} for name, node in params.items()}
    without = gpt(replace(EVERYTHING, convolution=0))
    np.testing.assert_array_equal(full_pass(gpt(EVERYTHING), params, RAGGED), full_pass(without, plain, RAGGED))


def test_passes_share_weights() -> None:
    once, twice = (gpt(replace(TWO_LAYERS, repeats=n)) for n in (1, 2))
    shapes = [jax.tree.map(jnp.shape, jax.eval_shape(m.init, jax.random.key(0), RAGGED)) for m in (once, twice)]
    assert shapes[0] == shapes[1]
    four = replace(TWO_LAYERS, num_layers=4)
    params = weights(TWO_LAYERS)
    copies = {**params, "block_2": params["block_0"], "block_3": params["block_1"]}
    np.testing.assert_allclose(
        full_pass(twice, params, RAGGED), full_pass(gpt(four), copies, RAGGED), rtol=1e-5, atol=1e-5
    )


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
            capture_intermediates=lambda layer, _: isinstance(layer, Dropout),
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


@pytest.mark.parametrize("remat", [False, True])
def test_a_traced_dropout_rate_is_the_configured_one(remat: bool) -> None:
    """One program for every rate, as stacked trials need it: 0.1 and 0.6 given to a model of 0.3."""
    params, key = weights(TWO_LAYERS), jax.random.key(0)
    traced: Any = jax.jit(functools.partial(model.logits, gpt(replace(TWO_LAYERS, dropout=0.3, remat=remat))))
    plain = full_pass(gpt(TWO_LAYERS), params, RAGGED[:1])
    for rate in (0.1, 0.6):
        expected = model.logits(gpt(replace(TWO_LAYERS, dropout=rate)), params, RAGGED[:1], key)
        np.testing.assert_allclose(traced(params, RAGGED[:1], key, DropoutCall(rate)), expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected - plain).max() > 1e-2
    assert traced._cache_size() == 1


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
