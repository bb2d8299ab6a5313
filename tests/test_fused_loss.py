"""The loss fused with the output layer is the plain one, in its value and its gradient, whatever the chunks."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, T, V, gpt, weights

from minigpt_jax.config import ModelConfig, OptimizerConfig
from minigpt_jax.data.batch import Batch
from minigpt_jax.model import GPT, output, output_parameters
from minigpt_jax.ops import fused_loss
from minigpt_jax.train import metrics, optim
from minigpt_jax.train.step import StepSpec, eval_step, init_state, train_step

B, D = 3, TINY.width
CONFIGS = {
    "bias": TINY,
    "no bias": replace(TINY, use_bias=False),
    "soft-cap": replace(TINY, logit_softcap=1.5),
    "tied": replace(TINY, tied_embeddings=True),
    "factorised": replace(TINY, embedding_width=5),
    "factorised, tied": replace(TINY, embedding_width=5, tied_embeddings=True),
    "tied, no bias, soft-cap": replace(TINY, tied_embeddings=True, use_bias=False, logit_softcap=0.5),
}


def inputs(seed: int = 0) -> tuple[Any, Any, Any]:
    """Hidden states, labels, and weights of which some are 0."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(0, 1, (B, T, D)).astype(np.float32)
    return hidden, rng.integers(0, V, (B, T)), rng.choice([0.0, 1.0, 2.5], (B, T)).astype(np.float32)


def plain(layer: Any, params: Any, hidden: Any, labels: Any, weight: Any) -> tuple[Any, Any]:
    nats = metrics.cross_entropy(layer(params, hidden), labels)
    return jnp.sum(nats * weight), nats


def value_and_gradient(loss: Any, layer: Any, scale: float = 1.0) -> Any:
    def scaled(*args: Any) -> Any:
        total, nats = loss(layer, *args)
        return scale * total, nats

    return jax.value_and_grad(scaled, argnums=(0, 1), has_aux=True)


def output_layer(config: ModelConfig, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    return functools.partial(output, gpt(config, dtype)), output_parameters(gpt(config), weights(config))


def close(got: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), got, expected)


@pytest.mark.parametrize("chunk", [1, 5, 9, B * T, 100, None])  # 36 states: 5 leaves a ragged end
@pytest.mark.parametrize("name", ["bias", "tied"])
def test_fused_loss_equals_the_plain_loss_for_any_chunk_size(name: str, chunk: int | None) -> None:
    layer, params = output_layer(CONFIGS[name])
    fused = functools.partial(fused_loss.cross_entropy, chunk=chunk)
    got = jax.jit(value_and_gradient(fused, layer, 0.3))(params, *inputs())
    close(got, jax.jit(value_and_gradient(plain, layer, 0.3))(params, *inputs()))
    close(jax.jit(functools.partial(fused, layer))(params, *inputs()), plain(layer, params, *inputs()))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_fused_loss_takes_any_output_layer(config: ModelConfig) -> None:
    layer, params = output_layer(config)
    fused = functools.partial(fused_loss.cross_entropy, chunk=7)
    got = jax.jit(value_and_gradient(fused, layer))(params, *inputs())
    close(got, jax.jit(value_and_gradient(plain, layer))(params, *inputs()))


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_loss_of_a_mixture_equals_that_of_mixed_probabilities(chunk: int | None) -> None:
    """Shares from nearly nothing to nearly all, of labels that the others give everything, or nothing at all."""
    layer, params = output_layer(TINY)
    rng = np.random.default_rng(2)
    own = rng.choice(np.float32([1e-12, 0.1, 0.5, 0.9, 1 - 1e-6]), (B, T))
    other = np.log((1 - own) * rng.choice(np.float32([1e-12, 0.5, 1.0]), (B, T)))
    mixture = np.log(own), np.where(rng.random((B, T)) < 0.3, -np.float32(1e9), other)

    def mixed(params: Any, hidden: Any, share: Any, other: Any, labels: Any, weight: Any) -> Any:
        probability = jnp.exp(share - metrics.cross_entropy(layer(params, hidden), labels)) + jnp.exp(other)
        return -jnp.sum(jnp.log(probability) * weight), -jnp.log(probability)

    def fused(params: Any, hidden: Any, share: Any, other: Any, labels: Any, weight: Any) -> Any:
        return fused_loss.cross_entropy(layer, params, hidden, labels, weight, (share, other), chunk)

    hidden, labels, weight = inputs()
    got, expected = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(params, hidden, *mixture, labels, weight)
        for loss in (fused, mixed)
    )
    close(got, expected, rtol=1e-4, atol=1e-4)
    (_, nats), (*_, of_other) = got
    np.testing.assert_allclose(of_other, expected[1][3], rtol=1e-3)  # however little it is
    np.testing.assert_allclose(nats, expected[0][1], rtol=1e-4, atol=1e-6)
    close(jax.jit(fused)(params, hidden, *mixture, labels, weight), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("over", [jax.vmap, lambda f: functools.partial(jax.lax.map, lambda xs: f(*xs))])
def test_over_trials(over: Any) -> None:
    """Each of two trials with weights of its own, as a sweep trains them."""
    layer, params = output_layer(TINY)
    stack = lambda *x: jnp.stack(x)  # noqa: E731
    trials = [(jax.tree.map(lambda x, i=i: x * (1 + i), params), *inputs(i)) for i in range(2)]
    stacked = jax.tree.map(stack, *trials)
    both = jax.jit(over(value_and_gradient(functools.partial(fused_loss.cross_entropy, chunk=7), layer)))
    got = both(*stacked) if over is jax.vmap else both(stacked)
    close(got, jax.tree.map(stack, *(value_and_gradient(plain, layer)(*trial) for trial in trials)))


def test_bfloat16() -> None:
    """Products in bfloat16, the rest in float32, as the plain loss; their roundings differ where chunks are summed."""
    layer, params = output_layer(TINY, jnp.bfloat16)
    hidden, *rest = inputs()
    args = params, jnp.asarray(hidden, jnp.bfloat16), *rest
    (value, nats), gradient = jax.jit(value_and_gradient(functools.partial(fused_loss.cross_entropy, chunk=7), layer))(
        *args
    )
    (expected, expected_nats), expected_gradient = jax.jit(value_and_gradient(plain, layer))(*args)
    close((value, nats), (expected, expected_nats))
    assert jax.tree.map(lambda x: x.dtype, gradient) == jax.tree.map(lambda x: x.dtype, expected_gradient)
    wide = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
    close(wide(gradient), wide(expected_gradient), rtol=0.02, atol=0.1)


def test_confident_predictions_stay_finite() -> None:
    layer = lambda params, hidden: hidden @ params  # noqa: E731
    hidden, labels, weight = inputs()
    kernel = np.random.default_rng(1).normal(0, 1e4, (D, V)).astype(np.float32)
    got = value_and_gradient(functools.partial(fused_loss.cross_entropy, chunk=7), layer)(
        kernel, hidden, labels, weight
    )
    close(got, value_and_gradient(plain, layer)(kernel, hidden, labels, weight), atol=1e-2)


STEP_V, STEP_T = 3000, 64


@functools.cache
def step_model(dropout: float) -> GPT:
    config = ModelConfig(num_layers=1, width=16, num_heads=2, feed_forward=16, dropout=dropout)
    return GPT(config, vocabulary_size=STEP_V, sequence_length=STEP_T)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_no_step_holds_the_logits_of_a_batch(program: str, dropout: float) -> None:
    """64 rows of 64 tokens over 3,000 words: 49 MB of logits, if all were there at once."""
    one = StepSpec(step_model(dropout), OptimizerConfig(), train_line_end=True)
    batch = Batch(np.zeros((64, STEP_T + 1), np.uint16), np.zeros(64, np.int32), np.full(64, STEP_T + 1, np.int32))
    hyper, key = optim.hyperparameters(one.optimizer, 100), jax.random.key(0)
    state = jax.eval_shape(functools.partial(init_state, one), hyper, key)
    if program == "train":
        lowered = jax.jit(functools.partial(train_step, one)).lower(state, batch, hyper, key)
    else:
        lowered = jax.jit(functools.partial(eval_step, one.model)).lower(state.params, batch)
    memory: Any = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 * STEP_T * STEP_V * 4
