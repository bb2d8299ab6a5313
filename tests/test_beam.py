"""Beam search against the enumeration of all texts, and against a plain search in lists."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_models import FakeModel, hashing

from minigpt_jax import samplers

V, ROOM, WIDTH = 4, 5, 3
MODEL = FakeModel(hashing(V, slots=WIDTH + ROOM, width=2, spread=2.0), slots=WIDTH + ROOM)
PROMPTS = [[1], [2, 3, 0], [3, 1]]
LIMITS = [5, 4, 5]

search = jax.jit(
    functools.partial(samplers.decode, MODEL.prefill, MODEL.step), static_argnums=2, static_argnames="processors"
)


def run(sampler, stops=(), bias=None, limits=LIMITS, processors=(), **settings):
    request = samplers.request(
        PROMPTS, vocabulary_size=V, max_new_tokens=limits, width=WIDTH, stops=stops, logit_bias=bias, **settings
    )
    return jax.tree.map(np.asarray, search(sampler, request, ROOM, processors=processors))


@functools.cache
def own_log_probabilities(text):
    logits = MODEL.logits(text)
    return logits - logits.max() - np.log(np.sum(np.exp(logits - logits.max())))


@functools.cache
def log_probabilities(text, bias):
    """Biased logits, less what would make the greater of biased and own ones probabilities."""
    own = own_log_probabilities(text)
    return own + np.array(bias) - np.log(np.sum(np.exp(np.maximum(own, own + np.array(bias)))))


def ends_in(tokens, stops):
    return any(tuple(tokens[-len(stop) :]) == tuple(stop) for stop in stops)


def score(total, length, alpha):
    return total / ((5 + length) / 6) ** alpha


def all_texts(prompt, limit, stops, alpha, bias):
    """(score, tokens) of every text that ends in a stop or at the limit, best first."""
    found = []
    for tokens in itertools.chain.from_iterable(itertools.product(range(V), repeat=n) for n in range(1, limit + 1)):
        ends = [n for n in range(1, len(tokens) + 1) if ends_in(tokens[:n], stops)]
        if (ends or [limit])[0] == len(tokens):
            total = sum(log_probabilities((*prompt, *tokens[:n]), bias)[token] for n, token in enumerate(tokens))
            if total > -math.inf:
                found.append((score(total, len(tokens), alpha), tokens))
    return sorted(found, reverse=True)


def plain_search(prompt, limit, stops, beams, alpha, bias):
    """The search by its definition, which never ends before the limit."""
    live, finished = [(0.0, ())], []
    for length in range(1, limit + 1):
        candidates = sorted(
            (
                (total + gain, (*tokens, token))
                for total, tokens in live
                for token, gain in enumerate(log_probabilities((*prompt, *tokens), bias))
                if gain > -math.inf
            ),
            reverse=True,
        )
        stopping = [c for c in candidates[:beams] if ends_in(c[1], stops)]
        live = [c for c in candidates if not ends_in(c[1], stops)][:beams]
        finished += [(score(total, length, alpha), tokens) for total, tokens in stopping]
        if length == limit:
            finished += [(score(total, length, alpha), tokens) for total, tokens in live]
        finished = sorted(finished, reverse=True)[:beams]
    return finished


def assert_found(output, row, expected):
    tokens = [tuple(t[:n]) for t, n in zip(output.tokens[row], output.length[row], strict=True)]
    assert tokens[: len(expected)] == [tokens for _, tokens in expected]
    np.testing.assert_allclose(output.score[row, : len(expected)], [value for value, _ in expected], atol=1e-5)


NO_BIAS = (0.0,) * V
STOPS = [[], [[2]], [[0], [3, 1]], [[1, 1], [2, 0, 3], [3]]]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_a_beam_that_prunes_nothing_finds_the_best_of_all_texts(stops, alpha):
    output = run(samplers.Beam(256, alpha), stops)
    for row, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True)):
        expected = all_texts(prompt, limit, stops, alpha, NO_BIAS)[:40]
        assert_found(output, row, expected)
        assert output.stopped[row, :40].tolist() == [ends_in(tokens, stops) for _, tokens in expected]
        for (_, tokens), logprobs in zip(expected, output.logprobs[row], strict=False):
            own = [own_log_probabilities((*prompt, *tokens[:n]))[token] for n, token in enumerate(tokens)]
            np.testing.assert_allclose(logprobs[: len(own)], own, atol=1e-5)
            assert not logprobs[len(own) :].any()


@pytest.mark.parametrize("bias", [(0.0, -math.inf, 0.0, 0.0), (0.0, -1.0, 2.0, 0.5)], ids=["ban", "favour"])
def test_bans_and_bias(bias):
    output = run(samplers.Beam(256, 0.6), [[2]], bias)
    for row, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True)):
        assert_found(output, row, all_texts(prompt, limit, [[2]], 0.6, bias)[:40])


@pytest.mark.parametrize("beams", [1, 2, 3, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.5])
@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_narrow_beams_find_what_the_definition_finds(beams, alpha, stops):
    # 3 beams run in a program for 4: what is surplus must not be seen.
    output = run(samplers.Beam(beams, alpha), stops)
    for row, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True)):
        expected = plain_search(prompt, limit, stops, beams, alpha, NO_BIAS)
        assert_found(output, row, expected)
        assert np.all(output.score[row, len(expected) :] == -np.inf)
        assert not output.length[row, len(expected) :].any()
        assert not output.tokens[row, len(expected) :].any()


@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_one_beam_without_penalty_is_greedy(stops):
    beam, greedy = run(samplers.Beam(1, 0.0), stops), run(samplers.Greedy(), stops)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), beam, greedy)


def test_the_search_ends_once_nothing_can_beat_what_is_finished():
    """Steps taken, where a stop is far more probable than all else, and where it never comes."""
    steps = []
    for bias in ((0.0, 0.0, 20.0, 0.0), (0.0, 0.0, -math.inf, 0.0)):
        request = samplers.request(
            PROMPTS, vocabulary_size=V, max_new_tokens=LIMITS, width=WIDTH, stops=[[2]], logit_bias=bias
        )
        sampler = samplers.Beam(2, 0.6)
        state = samplers.start(MODEL.prefill, sampler, request, ROOM)
        end = jax.jit(samplers.advance, static_argnums=0)(MODEL.step, sampler, request, state, ROOM)
        steps.append(int(end.step.max()))
    assert steps == [2, 5]


def test_fewer_texts_than_beams():
    output = run(samplers.Beam(256, 0.6), limits=[1, 2, 0])
    assert np.sum(output.score > -np.inf, axis=1).tolist() == [4, 16, 0]
    assert (output.length > 0).sum(axis=1).tolist() == [4, 16, 0]


def test_processors_act_on_each_hypothesis():
    """No token twice: each hypothesis has a history of its own."""
    output = run(samplers.Beam(256, 1.0), no_repeat_ngram=1, limits=[3, 1, 2])
    for row, (prompt, count) in enumerate(zip(PROMPTS, [6, 1, 2], strict=True)):
        texts = [tokens[:n].tolist() for tokens, n in zip(output.tokens[row], output.length[row], strict=True) if n]
        assert len(texts) == count
        assert all(len({*prompt, *text}) == len(prompt) + len(text) for text in texts)


def averse(logits, tokens, length, step):
    """Dislikes the newest token, the more so the more tokens are generated, and never lets 3 follow 1."""
    newest = jnp.take_along_axis(tokens, (length + step - 1)[:, None], axis=1)
    logits = logits - jnp.where(jnp.arange(V)[None] == newest, 0.5 * (1 + step)[:, None], 0.0)
    return jnp.where((newest == 1) & (jnp.arange(V)[None] == 3), -jnp.inf, logits)


@pytest.mark.parametrize("stops", STOPS[:3], ids=str)
def test_a_processor_of_ones_own_acts_on_each_hypothesis(stops):
    """Against the enumeration of all texts, with the processor by its definition."""

    @functools.cache
    def gains(text, generated):
        own = own_log_probabilities(text)
        shift = np.zeros(V)
        shift[text[-1]] -= 0.5 * (1 + generated)
        if text[-1] == 1:
            shift[3] = -math.inf
        return own + shift - np.log(np.sum(np.exp(np.maximum(own, own + shift))))

    output = run(samplers.Beam(256, 0.6), stops, processors=(averse,))
    for row, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True)):
        found = []
        for tokens in itertools.chain.from_iterable(itertools.product(range(V), repeat=n) for n in range(1, limit + 1)):
            ends = [n for n in range(1, len(tokens) + 1) if ends_in(tokens[:n], stops)]
            total = sum(gains((*prompt, *tokens[:n]), n)[token] for n, token in enumerate(tokens))
            if (ends or [limit])[0] == len(tokens) and total > -math.inf:
                found.append((score(total, len(tokens), 0.6), tokens))
        assert_found(output, row, sorted(found, reverse=True)[:40])
