"""Logits and samplers against Hugging Face's GPT-2 with the same weights, token for token.

Where the definitions agree: greedy search; beam search without length penalty, whose `early_stopping="never"` is our
end of a search. Length penalties differ (theirs divides by length^alpha, ours by ((5 + length) / 6)^alpha), and
contrastive search has left the library; KerasHub's stands in for it.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra huggingface is not installed")
pytest.importorskip("transformers", reason="the extra huggingface is not installed")

import torch

from minigpt_jax import model, samplers
from minigpt_jax.benchmark.huggingface import GPT2_FORM, to_gpt2
from minigpt_jax.config import DataConfig, Experiment, TokenizerConfig

V, T, NEW = 101, 32, 16
EXPERIMENT = Experiment(
    "gpt2",
    data=DataConfig(sequence_length=T),
    tokenizer=TokenizerConfig(vocabulary_size=V),
    model=dataclasses.replace(GPT2_FORM, width=32, feed_forward=48),
)
GPT = model.build(EXPERIMENT)
PROMPTS = [[5, 17, 44], [9], [2, 71, 30, 12, 99, 3]]
ENDS = [[], [41], [41, 7, 56, 19]]
"""Tokens that end a text; the model says some of them often."""


@pytest.fixture(scope="module")
def params() -> Any:
    """Fresh weights, tripled: a model with opinions."""
    made = jax.jit(GPT.init)(jax.random.key(2), jnp.zeros((1, 4), jnp.int32))["params"]
    return jax.tree.map(lambda x: 3 * x, made)


@pytest.fixture(scope="module")
def theirs(params: Any) -> Any:
    return to_gpt2(EXPERIMENT, params)


@functools.partial(jax.jit, static_argnames="room")
def decode(params: Any, sampler: samplers.Sampler, request: samplers.Request, room: int) -> samplers.Output:
    prefill = functools.partial(GPT.apply, {"params": params}, slots=T, method="prefill")
    step = functools.partial(GPT.apply, {"params": params}, method="step")
    return samplers.decode(prefill, step, sampler, request, room)


def their_texts(theirs: Any, prompt: list[int], ends: list[int], **settings: Any) -> list[list[int]]:
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        out = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=ends or None,
            **settings,
        )
    texts = []
    for row in out[:, len(prompt) :].tolist():
        end = next((n for n, token in enumerate(row) if token in ends), NEW)
        texts.append(row[: end + 1])
    return texts


def test_logits_agree(params: Any, theirs: Any) -> None:
    tokens = np.random.default_rng(0).integers(1, V, (2, T))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(model.logits(GPT, params, jnp.asarray(tokens)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_the_texts_are_theirs(params: Any, theirs: Any, beams: int, ends: list[int]) -> None:
    """Ragged prompts in one batch of ours, one at a time of theirs; the n best of each, best first."""
    sampler = samplers.Greedy() if beams == 1 else samplers.Beam(beams, length_penalty=0.0)
    request = samplers.request(
        PROMPTS, vocabulary_size=V, max_new_tokens=NEW, width=8, stops=[[token] for token in ends]
    )
    output = jax.tree.map(np.asarray, decode(params, sampler, request, NEW))
    settings: dict[str, Any] = {}
    if beams > 1:
        settings |= {"num_beams": beams, "num_return_sequences": beams}
        settings |= {"length_penalty": 0.0, "early_stopping": "never"}
    for row, prompt in enumerate(PROMPTS):
        expected = their_texts(theirs, prompt, ends, **settings)
        got = [tokens[:n].tolist() for tokens, n in zip(output.tokens[row], output.length[row], strict=True)]
        assert got[:beams] == expected


def test_some_texts_end_early(theirs: Any) -> None:
    """Else the comparison above would say nothing of stops."""
    for ends in ENDS[1:]:
        lengths = {
            len(text)
            for prompt in PROMPTS
            for text in their_texts(theirs, prompt, ends, num_beams=5, num_return_sequences=5)
        }
        assert len(lengths) > 2, ends
