"""Cross-entropy, perplexity and bits per byte against NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_gpt import cross_entropy as numpy_cross_entropy

from minigpt_jax.train.metrics import LossSums, cross_entropy, token_sums

B, T, V = 5, 7, 11


def draw(seed: int, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (B, T, V)), rng.integers(0, V, (B, T))


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1000.0])  # the last overflows a softmax without the shift
def test_cross_entropy_equals_numpys(scale: float) -> None:
    logits, labels = draw(0, scale)
    got = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    assert got.shape == (B, T)
    np.testing.assert_allclose(got, numpy_cross_entropy(logits, labels), rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_even_logits_is_log_of_the_vocabulary() -> None:
    got = cross_entropy(jnp.full((1, 1, V), 7.0), jnp.zeros((1, 1), jnp.int32))
    np.testing.assert_allclose(got, math.log(V), rtol=1e-6)


def test_cross_entropy_computes_in_float32() -> None:
    logits, labels = draw(1)
    rounded = jnp.asarray(logits, jnp.bfloat16)
    got = cross_entropy(rounded, jnp.asarray(labels))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, numpy_cross_entropy(np.asarray(rounded, np.float64), labels), rtol=1e-5, atol=1e-5)


def test_gradient_is_softmax_minus_one_hot() -> None:
    logits, labels = draw(2)
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.asarray(labels)).sum())(jnp.asarray(logits, jnp.float32))
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, softmax - np.eye(V)[labels], atol=1e-5)


def measured(seed: int) -> tuple[LossSums, np.ndarray, np.ndarray, np.ndarray]:
    logits, labels = draw(seed)
    nats, counted = numpy_cross_entropy(logits, labels), labels != 0
    count = np.random.default_rng(seed).integers(1, 100, B)
    sums = token_sums(jnp.asarray(nats, jnp.float32), jnp.asarray(counted), jnp.asarray(count, jnp.uint16))
    return sums, nats, counted, count


def test_token_sums_cover_the_selected_labels() -> None:
    sums, nats, counted, count = measured(3)
    assert 0 < counted.sum() < counted.size
    np.testing.assert_allclose(sums.nats, nats[counted].sum(), rtol=1e-6)
    assert (int(sums.tokens), int(sums.bytes)) == (counted.sum(), count.sum())


def test_a_label_that_is_not_counted_cannot_make_the_sum_nan() -> None:
    nats = jnp.asarray([[1.0, jnp.nan, jnp.inf]])
    sums = token_sums(nats, jnp.asarray([[True, False, False]]), jnp.asarray([3]))
    assert (float(sums.nats), int(sums.tokens)) == (1.0, 1)


def test_bytes_do_not_overflow_a_small_type() -> None:
    sums = token_sums(jnp.ones((3, 1)), jnp.ones((3, 1), bool), jnp.full((3,), 200, jnp.uint8))
    assert int(sums.bytes) == 600


def test_sums_of_parts_add_up_to_the_sums_of_the_whole() -> None:
    total = LossSums()
    parts = [measured(seed) for seed in range(4)]
    for sums, *_ in parts:
        total = total.plus(jax.tree.map(lambda x: x.item(), sums))
    nats = np.concatenate([nats[counted] for _, nats, counted, _ in parts])
    size = sum(count.sum() for *_, count in parts)
    assert total.tokens == len(nats)
    assert total.bytes == size
    assert total.loss == pytest.approx(nats.mean(), rel=1e-6)
    assert total.perplexity == pytest.approx(np.exp(nats.mean()), rel=1e-6)
    assert total.bits_per_byte == pytest.approx(nats.sum() / np.log(2) / size, rel=1e-6)
    assert total.summary() == {
        "loss": total.loss,
        "perplexity": total.perplexity,
        "bits_per_byte": total.bits_per_byte,
    }


def test_perplexity_is_not_the_mean_of_batches() -> None:
    """One label at 1 nat and three at 5: exp(16 / 4), neither a mean of perplexities nor of batches' losses."""
    first, second = LossSums(nats=1.0, tokens=1, bytes=4), LossSums(nats=15.0, tokens=3, bytes=8)
    total = first.plus(second)
    assert total.perplexity == pytest.approx(math.exp(4))
    assert total.perplexity != pytest.approx((first.perplexity + second.perplexity) / 2)
    assert total.loss != pytest.approx((first.loss + second.loss) / 2)


def test_bits_per_byte_of_one_bit_per_byte() -> None:
    assert LossSums(nats=80 * math.log(2), tokens=20, bytes=80).bits_per_byte == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sums", "perplexity"),
    [
        (LossSums(), math.nan),
        (LossSums(2000.0, 1, 1), math.inf),
        (LossSums(math.nan, 1, 1), math.nan),
        (LossSums(0.0, 5, 1), 1.0),
    ],
)
def test_perplexity_of_extreme_losses(sums: LossSums, perplexity: float) -> None:
    assert sums.perplexity == pytest.approx(perplexity, nan_ok=True)
