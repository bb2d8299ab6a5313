"""Logit processors and choices against NumPy, which sorts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chi_square import follows

from minigpt_jax import rng, samplers
from minigpt_jax.samplers import processors, selection, truncation

V = 203


@functools.partial(jax.jit, static_argnums=0)
def kept(processor, logits, setting):
    """Which tokens a filter keeps, asked of each token in turn and of all at once."""
    kept = processor(jnp.asarray(logits), setting)
    tokens = jnp.arange(logits.shape[1])
    has = jax.vmap(lambda v: kept.has(kept.score[:, v], jnp.full(len(logits), v)), out_axes=1)(tokens)
    allowed = jnp.isfinite(logits)
    return has & allowed, kept.mask() & allowed, kept.score >= kept.bar[:, None]


def assert_kept(processor, setting, before, *expected):
    has, mask, over_the_bar = map(np.asarray, kept(processor, before, setting))
    np.testing.assert_array_equal(mask, has)
    for row, over, tokens in zip(has, over_the_bar, expected, strict=True):
        assert np.flatnonzero(row).tolist() == sorted(tokens)
        assert over[tokens].all()


@functools.cache
def rows(kind):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(7, V)) * np.array([0.1, 0.5, 1, 2, 4, 8, 16])[:, None]
    if kind == "ties":
        logits = np.round(logits)
    if kind == "banned":
        logits[:, generator.permutation(V)[: V // 2]] = -np.inf
    return logits.astype(np.float32)


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


def ranked(score, allowed):
    """Indices by descending score, the lowest index first among equals; only those allowed."""
    return [v for v in np.argsort(-score, kind="stable") if allowed[v]]


def shortest_run(order, mass, p):
    """How many tokens of an order it takes to reach a mass."""
    return int(np.searchsorted(np.cumsum(mass[order]), p * (1 - 1e-6))) + 1


@pytest.mark.parametrize("kind", ["plain", "ties", "banned"])
@pytest.mark.parametrize("k", [1, 2, 10, 90, V])
def test_top_k_keeps_the_k_best(kind, k):
    assert_kept(truncation.top_k_filter, k, rows(kind), *[ranked(row, np.isfinite(row))[:k] for row in rows(kind)])


@pytest.mark.parametrize("kind", ["plain", "ties", "banned"])
@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(kind, p):
    expected = []
    for row in rows(kind):
        order = ranked(row, np.isfinite(row))
        expected.append(order if p == 1 else order[: shortest_run(order, softmax(row), p)])
    assert_kept(truncation.top_p_filter, p, rows(kind), *expected)


@pytest.mark.parametrize(("p", "count"), [(0.5, 1), (0.6, 2), (0.79, 2), (0.8, 2), (0.81, 3), (1.0, 3), (0.01, 1)])
def test_top_p_includes_the_token_that_crosses(p, count):
    logits = np.log(np.array([[0.3, 0.5, 0.2], [0.2, 0.3, 0.5]], np.float32))
    assert_kept(truncation.top_p_filter, p, logits, [1, 0, 2][:count], [2, 1, 0][:count])


def test_of_equals_at_the_edge_the_lowest_indices_are_kept():
    uniform = np.zeros((2, 10), np.float32)
    for processor, setting, size in (
        (truncation.top_k_filter, 3, 3),
        (truncation.top_p_filter, 0.5, 5),
        (truncation.typical_filter, 0.35, 4),
    ):
        assert_kept(processor, setting, uniform, range(size), range(size))


@pytest.mark.parametrize("kind", ["plain", "ties", "banned"])
@pytest.mark.parametrize("p", [0.001, 0.05, 0.5, 1.0])
def test_min_p_keeps_what_is_near_the_best(kind, p):
    out = np.asarray(truncation.apply_min_p(rows(kind), p))
    for before, after in zip(rows(kind), out, strict=True):
        np.testing.assert_array_equal(np.isfinite(after), softmax(before) >= p * softmax(before).max() * (1 - 1e-6))
        np.testing.assert_array_equal(after[np.isfinite(after)], before[np.isfinite(after)])


@pytest.mark.parametrize("kind", ["plain", "banned"])
@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.95, 1.0])
def test_typical_keeps_what_is_as_surprising_as_expected(kind, p):
    expected = []
    for row in rows(kind):
        mass = softmax(row)
        surprise = -np.log(np.maximum(mass, 1e-300))
        order = ranked(-np.abs(surprise - np.sum(mass * surprise)), np.isfinite(row))
        expected.append(order if p == 1 else order[: shortest_run(order, mass, p)])
    assert_kept(truncation.typical_filter, p, rows(kind), *expected)


@pytest.mark.parametrize("kind", ["plain", "ties"])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_top_and_argmax_find_the_best_in_order(kind, k):
    values, indices = jax.jit(selection.top, static_argnums=1)(rows(kind), k)
    for row, found, where in zip(rows(kind), np.asarray(values), np.asarray(indices), strict=True):
        assert where.tolist() == ranked(row, np.isfinite(row))[:k]
        np.testing.assert_array_equal(found, row[where])
    assert selection.argmax(jnp.asarray(rows(kind))).tolist() == rows(kind).argmax(axis=1).tolist()


def test_top_of_fewer_than_asked_ends_in_minus_infinity():
    values, indices = selection.top(jnp.array([[-jnp.inf, 2.0, -jnp.inf, 3.0, -jnp.inf]]), 4)
    assert values[0].tolist() == [3.0, 2.0, -np.inf, -np.inf]
    assert indices[0, :2].tolist() == [3, 1]
    assert indices.max() < 5


PROBABILITIES = np.random.default_rng(0).dirichlet(np.ones(30) * 2)
PROBABILITIES[[0, 7, 29]] = 0
PROBABILITIES /= PROBABILITIES.sum()
LOGITS = np.log(PROBABILITIES, where=PROBABILITIES > 0, out=np.full(30, -np.inf))


def draws(keep=None, n=6_000):
    keys = rng.at(rng.stream(0, "test"), jnp.arange(n))
    tokens = jax.jit(selection.draw, static_argnums=2)(jnp.asarray(np.tile(LOGITS, (n, 1)), jnp.float32), keys, keep)
    return np.bincount(tokens, minlength=30)


def test_draws_follow_the_probabilities():
    assert follows(draws(), PROBABILITIES)
    # The test itself can fail.
    assert not follows(draws(), np.roll(PROBABILITIES, 1))
    assert not follows(draws(), PROBABILITIES**1.2 / np.sum(PROBABILITIES**1.2))


@pytest.mark.parametrize("k", [1, 3, 12, 30])
def test_draws_of_kept_tokens_follow_their_probabilities(k):
    best = np.where(np.argsort(np.argsort(-PROBABILITIES)) < k, PROBABILITIES, 0)
    assert follows(draws(lambda logits: (logits, truncation.top_k_filter(logits, k))), best / best.sum())
    # Without the bar, most have to be drawn several times.
    low = jnp.full(6_000, -jnp.inf)
    assert follows(
        draws(lambda logits: (logits, truncation.top_k_filter(logits, k)._replace(bar=low))), best / best.sum()
    )


def test_a_diverged_row_ends_and_leaves_the_others_alone():
    logits = jnp.asarray(np.stack([LOGITS, np.full(30, np.nan), LOGITS]), jnp.float32)
    keys = rng.at(rng.stream(0, "test"), jnp.arange(3))
    tokens = selection.draw(logits, keys, lambda logits: truncation.truncate(logits, top_p=0.5))
    alone = selection.draw(logits[::2], keys[::2], lambda logits: truncation.truncate(logits, top_p=0.5))
    assert tokens[::2].tolist() == alone.tolist()
    assert 0 <= tokens[1] < 30


def history(texts, width=16):
    tokens = np.full((len(texts), width), 3, np.int32)  # what lies behind the end must not matter
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    return jnp.asarray(tokens)


PROMPT_LENGTHS = np.array([2, 4, 3])
TEXTS = [[5, 6, 5, 6, 5], [1, 2, 3, 4, 1, 2, 3], [9, 9, 9, 9, 9, 8]]
STEP = 3
STEPS = np.full(3, STEP)
SMALL = np.random.default_rng(1).normal(size=(3, 12)).astype(np.float32)


def make_request(**settings):
    return samplers.request(
        [text[:n] for text, n in zip(TEXTS, PROMPT_LENGTHS, strict=True)], max_new_tokens=9, **settings
    )


def control(**settings):
    request = jax.tree.map(jnp.asarray, make_request(vocabulary_size=12, **settings))
    return np.asarray(jax.jit(processors.control)(request, SMALL, history(TEXTS), STEPS))


@pytest.mark.parametrize(
    ("repetition", "presence", "frequency"), [(1.3, 0, 0), (0.7, 0, 0), (1, 0.5, 0), (1, 0, 0.25), (2, -1, 0.5)]
)
def test_penalties(repetition, presence, frequency):
    out = control(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    for logits, after, text, prompt in zip(SMALL, out, TEXTS, PROMPT_LENGTHS, strict=True):
        for v, logit in enumerate(logits):
            if v in text:
                logit = logit / repetition if logit > 0 else logit * repetition
            times = text[prompt:].count(v)
            assert after[v] == pytest.approx(logit - frequency * times - presence * (times > 0), abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 2**31 - 1])  # the last takes minutes if all of it is looped over
def test_no_ngram_comes_twice(size):
    out = control(no_repeat_ngram=size)
    for logits, after, text in zip(SMALL, out, TEXTS, strict=True):
        seen = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
        banned = [(*text[len(text) - size + 1 :], v) in seen for v in range(12)]
        np.testing.assert_array_equal(after, np.where(banned, -np.inf, logits))


def test_bias_is_added_and_bans():
    bias = np.linspace(-1, 1, 12)
    bias[[3, 8]] = -np.inf
    np.testing.assert_allclose(control(logit_bias=bias), SMALL + bias, atol=1e-6)


def test_penalties_come_before_the_bias():
    out = control(repetition_penalty=2.0, logit_bias=np.full(12, 5.0))
    np.testing.assert_allclose(out, control(repetition_penalty=2.0) + 5, atol=1e-6)


def test_what_is_off_changes_nothing():
    np.testing.assert_array_equal(control(), SMALL)
    np.testing.assert_array_equal(control(stops=[[1]], min_new_tokens=STEP), SMALL)


STOPS = [[7], [6, 5, 2], [5, 6, 5, 2], [1, 2, 3, 4], [2, 3, 4], [8, 0], [11, 11, 11, 11, 11]]


def completes(text, prompt, token):
    generated = [*text[prompt:], token]
    return any(generated[-len(stop) :] == stop for stop in STOPS)


def test_stops_are_found_among_generated_tokens_only():
    request = make_request(vocabulary_size=12, stops=STOPS)
    candidates = jnp.tile(jnp.arange(12), (3, 1))
    found = processors.stops_at(
        candidates, jnp.asarray(request.stops), history(TEXTS), jnp.asarray(PROMPT_LENGTHS), STEPS
    )
    expected = [[completes(text, n, v) for v in range(12)] for text, n in zip(TEXTS, PROMPT_LENGTHS, strict=True)]
    assert np.array(expected).sum(axis=1).tolist() == [2, 2, 2]  # the cases are worth testing: the prompt holds [5, 6]
    np.testing.assert_array_equal(found, expected)


def test_stops_are_banned_before_the_minimum():
    out = control(stops=STOPS, min_new_tokens=STEP + 1)
    expected = [[completes(text, n, v) for v in range(12)] for text, n in zip(TEXTS, PROMPT_LENGTHS, strict=True)]
    np.testing.assert_array_equal(out, np.where(expected, -np.inf, SMALL))
