"""The reference, end to end, against the tutorial's own model in KerasHub: logits, objective, metric, training."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("keras_hub")

from minigpt_jax import model
from minigpt_jax.benchmark.kerashub import SEQ_LEN, VOCAB_SIZE, allow_rank_promotion, from_keras, keras, tutorial_model
from minigpt_jax.config import BOS_ID, Experiment, OptimizerConfig
from minigpt_jax.data.batch import Batch
from minigpt_jax.train import optim
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.state import TrainState
from minigpt_jax.train.step import StepSpec, eval_step, init_state, train_step

pytestmark = pytest.mark.filterwarnings("ignore:.*mask:UserWarning")  # Keras, of its own layers

REFERENCE = Experiment("reference")
TRAINER = StepSpec(model.build(REFERENCE), REFERENCE.optimizer, train_line_end=True)
HYPER = optim.hyperparameters(REFERENCE.optimizer, total_steps=100)
LENGTHS = (SEQ_LEN, 90, 17, 1)  # tokens of each line; the first fills the window


def batch(seed: int, lengths: tuple[int, ...] = LENGTHS) -> Batch:
    """Lines as the tutorial packs them: `[BOS]` and tokens, features the first 128 and labels the last 128 of 129."""
    rows = np.zeros((len(lengths), SEQ_LEN + 1), np.uint16)
    rng = np.random.default_rng(seed)
    for row, length in zip(rows, lengths, strict=True):
        row[0] = BOS_ID
        row[1 : length + 1] = np.minimum(rng.zipf(1.3, length) + 2, VOCAB_SIZE - 1)  # skewed, as words are
    return Batch(rows, np.full(len(lengths), 100, np.int32), np.array(lengths, np.int32) + 1)


def for_keras(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(batch.rows, np.int32)
    return rows[:, :-1], rows[:, 1:]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return tutorial_model(seed=0)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(gpt: model.GPT, params: Any, features: Any) -> Any:
    return gpt.apply({"params": params}, features)


def test_reference_has_keras_parameters(theirs: Any) -> None:
    shapes = jax.eval_shape(TRAINER.model.init, jax.random.key(0), np.zeros((1, SEQ_LEN), np.int32))["params"]
    assert jax.tree.map(np.shape, from_keras(theirs)) == jax.tree.map(np.shape, shapes)
    assert theirs.count_params() == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_logits_agree(theirs: Any) -> None:
    """At every position of the text. After it, Keras masks the padding, which here no position of the text can see."""
    features, _ = for_keras(batch(0))
    text = np.asarray(batch(0).is_feature)
    with allow_rank_promotion():
        expected = np.asarray(theirs(features))
    got = np.asarray(logits_of(TRAINER.model, from_keras(theirs), features))
    assert expected.std() > 0.1
    np.testing.assert_allclose(got[text], expected[text], atol=1e-4, rtol=0)


@functools.partial(jax.jit, static_argnums=0)
def step(trainer: StepSpec, state: Any, batch: Batch) -> Any:
    return train_step(trainer, state, batch, HYPER, jax.random.key(0))


def state_of(theirs: Any) -> TrainState:
    """The state that training from Keras's weights begins with."""
    params = from_keras(theirs)
    opt_state = optim.transformation(REFERENCE.optimizer, HYPER, 0).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, ema=None)


def test_objective_agrees(theirs: Any) -> None:
    """Keras weighs the loss by the mask of the features, so that a short line trains one [PAD] label, its end."""
    with allow_rank_promotion():
        expected = theirs.test_on_batch(*for_keras(batch(1)), return_dict=True)["loss"]
    _, metrics = step(TRAINER, state_of(theirs), batch(1))
    assert float(metrics.objective) == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(metrics.sums.nats / metrics.sums.tokens) - float(expected)) > 1e-3, "both objectives agree here"


def test_perplexity_agrees(theirs: Any) -> None:
    """As Keras's `evaluate` reports it over two batches of different sizes: that of all their labels, [PAD] aside."""
    batches = [batch(1), batch(2, lengths=(3, 0, 0, 0))]
    with allow_rank_promotion():
        expected = theirs.evaluate((for_keras(one) for one in batches), steps=2, verbose=0, return_dict=True)[
            "perplexity"
        ]
    total = LossSums()
    for one in batches:
        sums = jax.jit(eval_step, static_argnums=0)(TRAINER.model, from_keras(theirs), one)
        total = total.plus(jax.tree.map(lambda x: x.item(), sums))
    assert total.tokens == sum(LENGTHS) + 3
    assert total.perplexity == pytest.approx(float(expected), rel=1e-5)


def test_training_ends_in_the_same_weights() -> None:
    """Objective, gradient and Adam together: five steps from the same weights on the same batches.

    Adam magnifies rounding where a gradient is all but zero, so the bound is on each weight's mean difference, in
    parts of how far it has moved. Rounding alone makes less than 2e-4 of that; optax.adam would make 1e-2.
    """
    theirs = tutorial_model(seed=3)
    state, start = state_of(theirs), from_keras(theirs)
    for seed in range(5):
        with allow_rank_promotion():
            theirs.train_on_batch(*for_keras(batch(seed)))
        state, _ = step(TRAINER, state, batch(seed))
    expected = jax.tree_util.tree_leaves_with_path(from_keras(theirs))
    leaves = zip(expected, jax.tree.leaves(state.params), jax.tree.leaves(start), strict=True)
    for (path, theirs_after), after, before in leaves:
        name, moved = jax.tree_util.keystr(path), np.abs(theirs_after - before).mean()
        if name.endswith("['key']['bias']"):
            moved = 1e-3  # a softmax does not see it: its gradient is 0, and all that is left is rounding
        assert moved > 5e-5, name
        assert np.abs(after - theirs_after).mean() < 1e-3 * moved, name


def test_adam_equals_keras() -> None:
    """Twenty steps of `keras.optimizers.Adam`, with gradients on both sides of its epsilon."""
    config = OptimizerConfig()
    size = 10.0 ** -np.array([0, 2, 4, 6, 7.5, 9])
    gradients = (np.random.default_rng(1).normal(0.3, 1, (20, 6)) * size).astype(np.float32)
    theirs, variable = keras.optimizers.Adam(), keras.Variable(np.zeros(6, np.float32))
    ours: Any = jnp.zeros(6)
    state = optim.transformation(config, HYPER, 0).init(ours)
    for i, gradient in enumerate(gradients):
        with allow_rank_promotion():
            theirs.apply([jnp.asarray(gradient)], [variable])
        updates, state = optim.transformation(config, HYPER, i).update(jnp.asarray(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
        np.testing.assert_allclose(ours, np.asarray(variable), rtol=3e-5, atol=1e-9)


def test_initialisers_agree(theirs: Any) -> None:
    """Both fresh: every weight of ours is drawn from the range that Keras draws it from."""
    expected = jax.tree_util.tree_leaves_with_path(from_keras(theirs))
    state = jax.jit(functools.partial(init_state, TRAINER))(HYPER, jax.random.key(1))
    ours = dict(jax.tree_util.tree_leaves_with_path(state.params))
    assert len(ours) == len(expected)
    for path, leaf in expected:
        got, name = np.asarray(ours[path]), jax.tree_util.keystr(path)
        if leaf.std() == 0:
            np.testing.assert_array_equal(got, leaf, err_msg=name)
            continue
        for figure in (np.min, np.max, np.std):
            assert figure(got) == pytest.approx(figure(leaf), rel=0.01), name
        assert abs(got.mean()) < 6 * leaf.std() / math.sqrt(leaf.size), name
