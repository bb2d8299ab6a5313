"""Samplers against KerasHub's own, on the tutorial's model with the same weights, token for token.

Where the definitions agree: greedy; beam search with neither length penalty nor stop tokens (KerasHub's goes on with a
hypothesis that has ended, and ranks by the bare sum); contrastive search over the same context. Random methods draw
from other generators; theirs are held to NumPy.
"""

import functools
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("keras_hub")

from minigpt_jax import model, samplers
from minigpt_jax.benchmark.kerashub import (
    SEQ_LEN,
    VOCAB_SIZE,
    Generate,
    cached_generate,
    from_keras,
    keras_hub,
    tutorial_generate,
    tutorial_model,
)
from minigpt_jax.config import BOS_ID, Experiment

pytestmark = pytest.mark.filterwarnings("ignore:.*mask:UserWarning")  # Keras, of its own layers

LENGTH, NEW = 5, 20
GPT = model.build(Experiment("reference"))


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Fresh weights, doubled: a model with opinions, so that no two tokens are equally good but for rounding."""
    made = tutorial_model(seed=0)
    for variable in made.trainable_variables:
        variable.assign(2 * variable)
    return made


@pytest.fixture(scope="module")
def params(theirs: Any) -> Any:
    return from_keras(theirs)


def prompts() -> np.ndarray:
    """[3, 5]: [BOS] and four tokens. Ragged prompts are another matter: KerasHub fills up the shorter ones first."""
    rows = np.random.default_rng(0).integers(3, VOCAB_SIZE, (3, LENGTH), np.int32)
    rows[:, 0] = BOS_ID
    return rows


def text_by(generate: Generate) -> np.ndarray:
    filled = np.zeros((3, LENGTH + NEW), np.int32)
    filled[:, :LENGTH] = prompts()
    return np.asarray(generate(filled))[:, LENGTH:]


@functools.partial(jax.jit, static_argnames="room")
def decode(params: Any, sampler: samplers.Sampler, request: samplers.Request, room: int) -> samplers.Output:
    prefill = functools.partial(GPT.apply, {"params": params}, slots=SEQ_LEN, method="prefill")
    step = functools.partial(GPT.apply, {"params": params}, method="step")
    return samplers.decode(prefill, step, sampler, request, room)


def ours(params: Any, sampler: samplers.Sampler) -> np.ndarray:
    request = samplers.request(prompts().tolist(), vocabulary_size=VOCAB_SIZE, max_new_tokens=NEW)
    return np.asarray(decode(params, sampler, request, NEW).tokens[:, 0])


@pytest.mark.parametrize(
    ("sampler", "keras_sampler"),
    [
        (samplers.Greedy(), lambda: keras_hub.samplers.GreedySampler()),
        (samplers.Beam(5, length_penalty=0.0), lambda: keras_hub.samplers.BeamSampler(num_beams=5)),
        (samplers.Contrastive(4, alpha=0.6), lambda: keras_hub.samplers.ContrastiveSampler(k=4, alpha=0.6)),
    ],
)
def test_the_text_is_theirs(theirs: Any, params: Any, sampler: samplers.Sampler, keras_sampler: Any) -> None:
    np.testing.assert_array_equal(ours(params, sampler), text_by(cached_generate(theirs, keras_sampler(), LENGTH)))


def test_methods_differ(params: Any) -> None:
    """Else the comparison above would compare greedy search with itself."""
    texts = [
        ours(params, s).tobytes() for s in (samplers.Greedy(), samplers.Beam(5, 0.0), samplers.Contrastive(4, 0.6))
    ]
    assert len(set(texts)) == 3


def test_the_tutorials_own_way_says_the_same(theirs: Any, params: Any) -> None:
    """The whole model for each token, as benchmarks time it."""
    generate = tutorial_generate(theirs, keras_hub.samplers.GreedySampler(), LENGTH)
    np.testing.assert_array_equal(ours(params, samplers.Greedy()), text_by(generate))
