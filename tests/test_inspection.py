"""What a method kept and cut at each token, against NumPy, and that what it draws is among what it kept."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_models import FakeModel, hashing
from test_contrastive import cosine
from test_generate import PROMPTS as TEXTS
from test_generate import language_model

from minigpt_jax import samplers
from minigpt_jax.errors import UserError
from minigpt_jax.generate import GenerationSettings

V, ROOM, WIDTH, SLOTS, COUNT = 19, 8, 5, 13, 6
MODEL = FakeModel(hashing(V, SLOTS, width=4), SLOTS)
PROMPTS = [[4, 2, 9], [7], [3, 3, 3, 3, 3], [18, 0]]
LIMITS = [8, 6, 8, 1]
PENALTY = 1.4
METHODS = [
    samplers.Greedy(),
    samplers.Random(temperature=0.8),
    samplers.TopK(k=4, temperature=1.3),
    samplers.TopP(p=0.6),
    samplers.MinP(p=0.2, temperature=0.7),
    samplers.Typical(p=0.5),
    samplers.TopP(p=0.6, temperature=0.0),
]


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def chances(sampler, logits):
    """The probability of each token under the method, by its definition."""
    if isinstance(sampler, samplers.Greedy) or sampler.temperature == 0:
        return np.eye(V)[np.argmax(logits)]
    p = softmax(logits / sampler.temperature)
    order, size = np.argsort(-p, kind="stable"), V
    if isinstance(sampler, samplers.Typical):
        order = np.argsort(np.abs(-np.log(p) + np.sum(p * np.log(p))), kind="stable")
    if isinstance(sampler, samplers.TopK):
        size = sampler.k
    elif isinstance(sampler, samplers.MinP):
        size = np.sum(p >= sampler.p * p.max())
    elif isinstance(sampler, samplers.TopP | samplers.Typical):
        size = np.searchsorted(np.cumsum(p[order]), sampler.p) + 1
    kept = np.where(np.isin(np.arange(V), order[:size]), p, 0)
    return kept / kept.sum()


def penalised(logits, text):
    known = np.isin(np.arange(V), text)
    return np.where(known, np.where(logits > 0, logits / PENALTY, logits * PENALTY), logits)


@jax.jit
def generated(sampler, request):
    return samplers.decode(MODEL.prefill, MODEL.step, sampler, request, ROOM).tokens[:, 0]


@jax.jit
def inspected(sampler, request, tokens):
    return samplers.inspect(MODEL.prefill, MODEL.step, sampler, request, tokens, COUNT)


def run(sampler):
    """(text before, its token, and its inspection) at each new token of all rows."""
    request = samplers.request(
        PROMPTS, vocabulary_size=V, max_new_tokens=LIMITS, width=WIDTH, repetition_penalty=PENALTY, seed=3
    )
    tokens = np.asarray(generated(sampler, request))
    found = jax.tree.map(np.asarray, inspected(sampler, request, tokens))
    for row, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True)):
        for at in range(limit):
            text = [*prompt, *tokens[row, :at].tolist()]
            yield text, tokens[row, at], jax.tree.map(lambda leaf, row=row, at=at: leaf[row, at], found)


@pytest.mark.parametrize("sampler", METHODS, ids=lambda sampler: f"{sampler.name}{getattr(sampler, 'temperature', '')}")
def test_probabilities_and_cuts_are_those_of_the_definition(sampler):
    for text, token, found in run(sampler):
        logits = MODEL.logits(text)
        own, expected = softmax(logits), chances(sampler, penalised(logits, text))
        assert found.tokens[:-1].tolist() == np.argsort(-logits, kind="stable")[:COUNT].tolist()
        assert found.tokens[-1] == token
        np.testing.assert_allclose(np.exp(found.logprobs), own[found.tokens], rtol=1e-4)
        np.testing.assert_array_equal(found.kept, expected[found.tokens] > 0)
        np.testing.assert_allclose(np.exp(found.value), expected[found.tokens], rtol=1e-4, atol=1e-7)
        assert found.rank == 1 + np.sum(own > own[token])
        assert found.kept_count == np.count_nonzero(expected)
        assert found.kept_mass == pytest.approx(own[expected > 0].sum(), rel=1e-4)
        assert found.kept[-1], "what was drawn must be among what was kept"


def test_the_filters_cut_something():
    """So that the test above sees more than full or empty sets."""
    for sampler in METHODS[2:6]:
        counts = {int(found.kept_count) for _, _, found in run(sampler)}
        assert 1 < max(counts) < V


def test_contrastive_candidates_have_the_scores_of_the_definition():
    sampler = samplers.Contrastive(k=3, alpha=0.5)
    for text, token, found in run(sampler):
        logits = penalised(MODEL.logits(text), text)
        p = np.exp(logits) / np.exp(np.maximum(logits, MODEL.logits(text))).sum()
        context = [MODEL.hidden(text[: n + 1]) for n in range(len(text))]
        scores = {
            int(v): 0.5 * p[v] - 0.5 * max(cosine(MODEL.hidden([*text, v]), h) for h in context)
            for v in np.argsort(-p)[:3]
        }
        assert found.kept.tolist() == [int(v) in scores for v in found.tokens]
        kept = found.tokens[found.kept]
        np.testing.assert_allclose(found.value[found.kept], [scores[int(v)] for v in kept], atol=1e-5)
        assert max(scores, key=scores.__getitem__) == token
        assert found.kept_count == 3


@pytest.mark.parametrize(("p", "kept"), [(0.5, 1), (0.6, 2), (0.8, 2), (0.9, 3)])
def test_top_p_keeps_the_token_that_crosses_p(p, kept):
    distribution = samplers.TopP(p=p).distribution(jnp.log(jnp.array([[0.3, 0.5, 0.2]])))
    assert np.isfinite(distribution).sum() == kept
    assert np.exp(distribution).sum() == pytest.approx(1)


def test_a_method_of_ones_own_need_not_say_what_it_keeps():
    class Second(samplers.Sampler):
        def pick(self, logits, key):
            return jnp.argsort(-logits, axis=1)[:, 1]

    for _, _, found in run(Second()):
        assert (found.kept, found.value, found.kept_count, found.kept_mass) == (None, None, None, None)
        assert found.rank > 1


@functools.cache
def lm():
    return language_model()


SETTINGS = GenerationSettings(max_new_tokens=6, seed=5, repetition_penalty=1.2)


@pytest.mark.parametrize(
    "sampler",
    [samplers.Greedy(), samplers.TopP(p=0.7), samplers.Contrastive(k=3, alpha=0.4), samplers.Beam(num_beams=3)],
    ids=lambda sampler: sampler.name,
)
@pytest.mark.parametrize("prompt", TEXTS[:2])
def test_a_models_text_is_inspected_as_it_was_generated(sampler, prompt):
    [generation] = lm().generate([prompt], sampler, settings=SETTINGS, top_logprobs=4)
    found = lm().inspect(prompt, generation.tokens, sampler, SETTINGS, count=4)
    assert generation.top_logprobs is not None
    for one, token, logprob, top in zip(
        found, generation.tokens, generation.logprobs, generation.top_logprobs, strict=True
    ):
        assert (one.given.id, one.given.kept) == (token, True)
        assert one.given.logprob == pytest.approx(logprob, abs=1e-5)
        assert [candidate.id for candidate in one.candidates] == [candidate.id for candidate in top]
        np.testing.assert_allclose([c.logprob for c in one.candidates], [c.logprob for c in top], atol=1e-5)
        assert all((c.score is None) != (sampler.name == "contrastive" and c.kept) for c in one.candidates)
        assert one.rank == 1 or one.rank == 1 + sum(c.logprob > logprob + 1e-6 for c in one.candidates) or one.rank > 4
    assert "".join(one.given.text for one in found).strip() == generation.text


def test_what_cannot_be_inspected_is_told():
    with pytest.raises(UserError, match="no token 99"):
        lm().inspect("a", [99])
    with pytest.raises(UserError, match="count 0"):
        lm().inspect("a", [5], count=0)
    assert lm().inspect("a", []) == []
    assert math.isfinite(lm().inspect([4, 5], [6])[0].given.logprob)
