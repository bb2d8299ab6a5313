"""The tree of a beam search against a plain search in lists, and against the search itself."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_generate import WINDOW, language_model

from minigpt_jax import samplers
from minigpt_jax.config import BOS_ID
from minigpt_jax.errors import UserError
from minigpt_jax.generate import GenerationSettings

BEAMS, LIMIT = 3, 6


@pytest.fixture(scope="module")
def lm():
    return language_model()


def plain_search(lm, prompt, stop):
    """(tokens, log-probability) of the live hypotheses after each step, best first, by full passes."""
    head = [BOS_ID, *lm.tokenizer.encode_batch([prompt])[0]]
    forward = jax.jit(lambda ids: jax.nn.log_softmax(lm.model.apply({"params": lm.weights}, ids)[0]))

    @functools.cache
    def logprobs(tokens):
        ids = np.zeros((1, WINDOW), np.int32)
        ids[0, : len(head) + len(tokens)] = [*head, *tokens]
        row = np.array(forward(jnp.asarray(ids))[len(head) + len(tokens) - 1])
        row[[*lm.tokenizer.special.banned, *range(len(lm.tokenizer), len(row))]] = -np.inf
        return row

    live = [((), 0.0)]
    for _ in range(LIMIT):
        candidates: list[Any] = [
            ((*tokens, token), total + gain)
            for tokens, total in live
            for token, gain in enumerate(logprobs(tokens))
            if gain > -np.inf and token != stop
        ]
        live = sorted(candidates, key=lambda one: -one[1])[:BEAMS]
        yield live


@pytest.mark.parametrize("prompt", ["the cat", ""])
@pytest.mark.parametrize("stops", [False, True])
def test_nodes_are_the_hypotheses_of_a_plain_search(lm, prompt, stops):
    sampler = samplers.Beam(num_beams=BEAMS)
    free = GenerationSettings(max_new_tokens=LIMIT)
    stop = lm.generate([prompt], sampler, settings=free)[0].tokens[3] if stops else None
    settings = free.replace(stop=[] if stop is None else [stop])
    tree = lm.beam_tree(prompt, sampler, settings)

    paths = []
    for index, node in enumerate(tree.nodes):
        assert node.parent < index
        before = paths[node.parent] if node.parent >= 0 else ()
        paths.append((*before, node.token))
        assert node.step == len(paths[-1])
    assert len(set(paths)) == len(paths)

    steps = max(node.step for node in tree.nodes if node.beam is not None)
    for step, live in enumerate(list(plain_search(lm, prompt, stop))[:steps], 1):
        found = [(node.beam, path, node.logprob) for node, path in zip(tree.nodes, paths, strict=True)]
        found = sorted((beam, path, total) for beam, path, total in found if beam is not None and len(path) == step)
        assert [path for _, path, _ in found] == [tokens for tokens, _ in live]
        np.testing.assert_allclose([total for _, _, total in found], [total for _, total in live], rtol=1e-4)

    best = lm.generate([prompt], sampler, settings=settings, num_return_sequences=BEAMS)
    assert [one.tokens for one in tree.generations] == [one.tokens for one in best if one.tokens]
    ends = {
        node.rank: (list(path), node.score)
        for node, path in zip(tree.nodes, paths, strict=True)
        if node.rank is not None
    }
    assert ends == {rank: (one.tokens, one.score) for rank, one in enumerate(tree.generations)}
    through = {path for path in paths if any(tuple(one.tokens[: len(path)]) == path for one in tree.generations)}
    assert {path for node, path in zip(tree.nodes, paths, strict=True) if node.survives} == through
    assert len(through) < len(paths), "some hypotheses are dropped"
    if stops:
        assert any(node.beam is None for node in tree.nodes)


def test_the_texts_of_a_path_are_the_text(lm):
    tree = lm.beam_tree("the cat", samplers.Beam(num_beams=BEAMS), GenerationSettings(max_new_tokens=LIMIT))
    place = next(index for index, node in enumerate(tree.nodes) if node.rank == 0)
    text = ""
    while place >= 0:
        text = tree.nodes[place].text + text
        place = tree.nodes[place].parent
    assert tree.prompt_text + text == tree.generations[0].full_text


def test_only_beam_search_has_a_tree(lm):
    with pytest.raises(UserError, match="greedy has no hypotheses"):
        lm.beam_tree("a", samplers.Greedy())
    with pytest.raises(UserError, match="--stop: beam takes token ids"):
        lm.beam_tree("a", settings=GenerationSettings(stop="b"))
