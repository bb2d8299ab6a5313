"""The update rules and schedules, against NumPy, hand-computed values and known properties of each rule."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minigpt_jax.config import OptimizerConfig
from minigpt_jax.train import optim
from minigpt_jax.train.optim import Hyperparameters

NAMES = ("adam", "adamw", "muon", "normuon", "lion")


def hyper(config: OptimizerConfig, total_steps: int = 100, **changes: float) -> Hyperparameters:
    scalars: dict[str, Any] = {name: np.float32(value) for name, value in changes.items()}
    return optim.hyperparameters(config, total_steps)._replace(**scalars)


def params() -> dict[str, Any]:
    """Names as the model has them: matrices in blocks and pointer, the output layer, and what is no matrix product."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "token_embedding": {"embedding": draw(9, 6)},
        "block_0": {
            "attention": {"query": {"kernel": draw(6, 6), "bias": draw(6)}},
            "feed_forward": {"up": {"kernel": draw(6, 12)}, "down": {"kernel": draw(12, 6)}},
            "attention_norm": {"scale": draw(6), "bias": draw(6)},
        },
        "pointer": {"sentinel": {"kernel": draw(6, 1)}, "sentinel_bias": draw(1)},
        "output": {"kernel": draw(6, 9), "bias": draw(9)},
    }


INNER_KERNELS = {
    "block_0.attention.query.kernel",
    "block_0.feed_forward.up.kernel",
    "block_0.feed_forward.down.kernel",
    "pointer.sentinel.kernel",
}
KERNELS = INNER_KERNELS | {"output.kernel"}


def by_name(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in leaves}


def linear(name: Any) -> OptimizerConfig:
    """One program a rule for most tests here, whose numbers go in as traced scalars."""
    return OptimizerConfig(name=name, schedule="linear")


@functools.partial(jax.jit, static_argnums=0)
def apply(config: OptimizerConfig, params: Any, state: Any, gradient: Any, hyper: Hyperparameters, step: Any) -> Any:
    updates, state = optim.transformation(config, hyper, step).update(gradient, state, params)
    return optax.apply_updates(params, updates), state


def init(config: OptimizerConfig, params: Any) -> Any:
    return optim.transformation(config, hyper(config), 0).init(params)


def gradients(steps: int) -> np.ndarray:
    """[steps, 6]: from 1 down to 1e-9, on both sides of epsilon = 1e-7, with changes of sign."""
    size = 10.0 ** -np.array([0, 2, 4, 6, 7.5, 9])
    return np.random.default_rng(1).normal(0.3, 1, (steps, 6)) * size


def keras_adam(gradients: np.ndarray, rate: float, b1: float, b2: float, epsilon: float) -> np.ndarray:
    """Weights after each step from 0, by the formula in Keras's Adam, in float64."""
    w, m, v, out = 0.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        alpha = rate * np.sqrt(1 - b2**t) / (1 - b1**t)
        m = m + (g - m) * (1 - b1)
        v = v + (g**2 - v) * (1 - b2)
        w = w - m * alpha / (np.sqrt(v) + epsilon)
        out.append(w)
    return np.array(out)


@pytest.mark.parametrize(("b1", "b2", "epsilon"), [(0.9, 0.999, 1e-7), (0.8, 0.95, 1e-3)])
def test_adam_equals_the_formula_of_keras(b1: float, b2: float, epsilon: float) -> None:
    config = OptimizerConfig(b1=b1, b2=b2, epsilon=epsilon)
    weights = {"kernel": jnp.zeros(6)}
    state, expected = init(config, weights), keras_adam(gradients(20), 1e-3, b1, b2, epsilon)
    for step, gradient in enumerate(gradients(20)):
        weights, state = apply(config, weights, state, {"kernel": jnp.float32(gradient)}, hyper(config), step)
        np.testing.assert_allclose(weights["kernel"], expected[step], rtol=5e-5, atol=1e-9)


def test_the_adam_of_optax_differs_from_keras() -> None:
    """They agree while gradients are far above epsilon, and differ several times over where they are near it."""
    theirs, expected = optax.adam(1e-3, eps=1e-7), keras_adam(gradients(20), 1e-3, 0.9, 0.999, 1e-7)
    weights, state = jnp.zeros(6), theirs.init(jnp.zeros(6))
    for step, gradient in enumerate(gradients(20)):
        updates, state = theirs.update(jnp.float32(gradient), state)
        weights = optax.apply_updates(weights, updates)
        ratio = np.asarray(weights) / expected[step]
        np.testing.assert_allclose(ratio[:2], 1, rtol=1e-3)
        assert ratio[4:].max() > 2


# warm-up of 4 of 14 steps, decay to a tenth of the peak (half-way: 0.55); wsd decays over the last 0.2 of 20 steps
SCHEDULES = [
    *(("constant", 4, 14, 0.1, step, value) for step, value in [(0, 0.25), (1, 0.5), (3, 1), (4, 1), (13, 1), (99, 1)]),
    *(("linear", 4, 14, 0.1, step, value) for step, value in [(0, 0.25), (3, 1), (4, 1), (9, 0.55), (14, 0.1)]),
    *(("cosine", 4, 14, 0.1, step, value) for step, value in [(3, 1), (4, 1), (9, 0.55), (14, 0.1), (99, 0.1)]),
    ("cosine", 0, 12, 0.0, 4, 0.75),  # (1 + cos 60°) / 2
    ("cosine", 0, 12, 0.0, 12, 0.0),
    ("linear", 0, 10, 0.0, 0, 1.0),  # no warm-up: the first step is at the peak
    ("linear", 0, 10, 0.0, 9, 0.1),
    *(("wsd", 4, 20, 0.0, step, value) for step, value in [(1, 0.5), (3, 1), (16, 1), (18, 0.5), (19, 0.25), (20, 0)]),
    ("wsd", 4, 20, 0.5, 18, 0.75),
    ("wsd", 18, 20, 0.0, 18, 1.0),  # a warm-up that extends into the decay is completed first
    ("wsd", 18, 20, 0.0, 19, 0.5),
]


@pytest.mark.parametrize(("kind", "warmup", "total", "final", "step", "value"), SCHEDULES)
def test_schedule(kind: Any, warmup: int, total: int, final: float, step: int, value: float) -> None:
    config = OptimizerConfig(schedule=kind, warmup_steps=warmup, final_fraction=final, decay_fraction=0.2)
    factor = optim.schedule(kind, hyper(config, total), jnp.int32(step))
    assert float(factor) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_scales_the_update(name: Any) -> None:
    config = linear(name)
    before, state = params(), init(config, params())
    gradient = jax.tree.map(jnp.cos, before)
    moved = []
    for step in (0, 75):
        after, _ = apply(config, before, state, gradient, hyper(config, total_steps=100), step)
        moved.append(jax.tree.map(lambda a, b: np.asarray(a - b), after, before))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, 0.25 * x, rtol=1e-3, atol=1e-6), *moved)


@pytest.mark.parametrize("name", NAMES)
def test_changing_a_scalar_does_not_recompile(name: Any) -> None:
    traces = 0

    @functools.partial(jax.jit, static_argnums=0)
    def update(config: OptimizerConfig, params: Any, state: Any, hyper: Hyperparameters, step: Any) -> Any:
        nonlocal traces
        traces += 1
        return optim.transformation(config, hyper, step).update(params, state, params)

    fixed = OptimizerConfig(name=name, schedule="wsd")
    state = init(fixed, params())
    base, _ = update(fixed, params(), state, hyper(fixed), 0)
    changes: dict[str, Any] = {
        "learning_rate": 2e-3,
        "muon_learning_rate": 3e-2,
        "warmup_steps": 30,
        "b1": 0.5,
        "b2": 0.7,
        "epsilon": 0.1,
        "weight_decay": 0.3,
        "clip_norm": 1e-3,
        "ema_decay": 0.5,
        "decay_fraction": 0.9,
        "final_fraction": 0.5,
        "schedule": "cosine",
    }
    for field, value in changes.items():
        # As a user sets it, in the configuration.
        changed = optim.hyperparameters(OptimizerConfig(name=name, **{"schedule": "wsd", field: value}), 100)
        scalar = optim.SCHEDULES.index(value) if field == "schedule" else value
        assert getattr(changed, field) == np.float32(scalar)
        update(fixed, params(), state, changed, 0)
    late, _ = update(fixed, params(), state, hyper(fixed, total_steps=777), 776)
    assert traces == 1
    assert set(changes) | {"total_steps"} == set(Hyperparameters._fields)
    assert by_name(late).keys() == by_name(base).keys()


def test_a_stack_of_rates_under_vmap_equals_each_alone() -> None:
    config = linear("adam")
    rates = [1e-4, 1e-3, 1e-2]
    axes = Hyperparameters(*(0 if name == "learning_rate" else None for name in Hyperparameters._fields))
    stacked, _ = jax.vmap(functools.partial(apply, config), in_axes=(None, None, None, axes, None))(
        params(), init(config, params()), params(), hyper(config)._replace(learning_rate=jnp.asarray(rates)), 0
    )
    for i, rate in enumerate(rates):
        alone, _ = apply(config, params(), init(config, params()), params(), hyper(config, learning_rate=rate), 0)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-6), stacked, alone)


@pytest.mark.parametrize(
    ("name", "decayed", "shrink"),
    [
        ("adam", set(), 1.0),
        ("adamw", KERNELS, 1 - 0.01 * 0.5),
        ("lion", KERNELS, 1 - 0.01 * 0.5),
        ("muon", INNER_KERNELS, 1 - 0.04 * 0.5),  # the parameters that Adam updates under Muon do not decay
        ("normuon", INNER_KERNELS, 1 - 0.04 * 0.5),
    ],
)
def test_weight_decay_is_decoupled_and_acts_on_matrices(name: Any, decayed: set[str], shrink: float) -> None:
    """With a gradient of zero the decay is all that moves a weight."""
    config, zero = linear(name), jax.tree.map(jnp.zeros_like, params())
    scalars = hyper(config, learning_rate=0.01, muon_learning_rate=0.04, weight_decay=0.5)
    after, _ = apply(config, params(), init(config, params()), zero, scalars, 0)
    before, after = by_name(params()), by_name(after)
    for leaf in before:
        np.testing.assert_allclose(after[leaf], before[leaf] * (shrink if leaf in decayed else 1.0), rtol=1e-6)


@pytest.mark.parametrize(("name", "spread"), [("muon", 0.5), ("normuon", 0.7)])
def test_muon_updates_the_matrices_of_the_blocks(name: Any, spread: float) -> None:
    """Each of the two learning rates moves its own parameters and no others."""
    config, moved = linear(name), {}
    for field in ("muon_learning_rate", "learning_rate"):
        scalars = hyper(config, 100, **{"muon_learning_rate": 0.0, "learning_rate": 0.0, field: 1.0})
        after, _ = apply(config, params(), init(config, params()), params(), scalars, 0)
        before, after = by_name(params()), by_name(after)
        moved[field] = {leaf: after[leaf] - before[leaf] for leaf in before if (after[leaf] != before[leaf]).any()}
    assert moved["muon_learning_rate"].keys() == INNER_KERNELS
    assert moved["learning_rate"].keys() == by_name(params()).keys() - INNER_KERNELS
    for change in moved["muon_learning_rate"].values():
        # Orthogonalised: all singular values are near 1, times sqrt(out / in) for a matrix with out > in.
        singular = np.linalg.svd(change, compute_uv=False) / max(1, change.shape[1] / change.shape[0]) ** 0.5
        assert 1 - spread < singular.min() <= singular.max() < 1 + spread


def test_normuon_updates_all_neurons_by_equal_amounts() -> None:
    """Against NumPy, over updates whose neurons differ in size; a dead one stays where it is."""
    rng, rule = np.random.default_rng(3), optim.scale_by_neuron_norms()
    sizes = {"up": 10.0 ** np.array([-3, -2, -1, 0, 1, 0]), "down": np.array([1.0, 2, 0])}
    state: Any
    state, nu = rule.init({name: jnp.zeros((5, len(size))) for name, size in sizes.items()}), dict.fromkeys(sizes, 0.0)
    for step in range(4):
        updates = {name: rng.normal(size=(5, len(size))) * size for name, size in sizes.items()}
        even, state = rule.update(jax.tree.map(jnp.float32, updates), state)
        for name, update in updates.items():
            nu[name] = 0.95 * nu[name] + 0.05 * (update**2).mean(axis=0)
            expected = update / (np.sqrt(nu[name]) + 1e-10)
            expected *= np.linalg.norm(update) / np.linalg.norm(expected)
            got = by_name(even)[name]
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)
            if step == 0:
                norms = np.linalg.norm(got, axis=0)
                np.testing.assert_allclose(norms[sizes[name] > 0], norms[0], rtol=1e-4)


@pytest.mark.parametrize(("dtype", "rounding"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.05)])
def test_muon_equals_that_of_optax(dtype: Any, rounding: float) -> None:
    """Three updates by the chain that Optax has for it, whose matrices are orthogonalised one by one in float32."""
    config, state, weights = linear("muon"), None, params()
    scalars = hyper(config, learning_rate=0.01, muon_learning_rate=0.05, weight_decay=0.1)
    for step in range(3):
        gradient = jax.tree.map(lambda x, step=step: jnp.sin((step + 1) * x), params())
        factor = optim.schedule(scalars.schedule, scalars, step)
        theirs = optax.contrib.muon(
            scalars.muon_learning_rate * factor,
            eps=scalars.epsilon,
            weight_decay=scalars.weight_decay,
            adam_b1=scalars.b1,
            adam_b2=scalars.b2,
            adam_learning_rate=scalars.learning_rate * factor,
            muon_weight_dimension_numbers=jax.tree_util.tree_map_with_path(
                lambda path, _: (
                    optax.contrib.MuonDimensionNumbers()
                    if ".".join(entry.key for entry in path) in INNER_KERNELS
                    else None
                ),
                weights,
            ),
        )
        ours = optim.transformation(config, scalars, step, dtype)
        state = state or (theirs.init(weights), ours.init(weights))
        expected, their_state = theirs.update(gradient, state[0], weights)
        got, our_state = ours.update(gradient, state[1], weights)
        state = their_state, our_state
        for name, change in by_name(got).items():
            wanted = by_name(expected)[name]
            np.testing.assert_allclose(change, wanted, atol=rounding * np.abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_lowers_a_loss(name: Any) -> None:
    """Two layers of linear regression onto a linear map."""
    config, rng = linear(name), np.random.default_rng(2)
    x, target = rng.normal(size=(64, 9)), rng.normal(size=(9, 9))

    def loss(weights: Any) -> Any:
        hidden = x @ weights["token_embedding"]["embedding"] @ weights["block_0"]["attention"]["query"]["kernel"]
        return jnp.mean((hidden @ weights["output"]["kernel"] - x @ target) ** 2)

    weights = jax.tree.map(lambda w: 0.3 * w, params())
    state, gradient = init(config, weights), jax.jit(jax.grad(loss))
    scalars = hyper(config, learning_rate=0.01, muon_learning_rate=0.05)
    before = loss(weights)
    for step in range(100):
        weights, state = apply(config, weights, state, gradient(weights), scalars, step)
    assert loss(weights) < 0.75 * before


@pytest.mark.parametrize(("clip", "scale"), [(None, 1.0), (100.0, 1.0), (0.5, 0.1)])
def test_clipping_uses_the_global_norm(clip: float | None, scale: float) -> None:
    """A huge epsilon makes Adam's first update proportional to the gradient, here of norm 5 over two leaves."""
    config, plain = (OptimizerConfig(learning_rate=1e6, epsilon=1e6, clip_norm=norm) for norm in (clip, None))
    weights = {"a": jnp.zeros(2), "b": jnp.zeros((1, 1))}
    gradient = {"a": jnp.float32([3, 0]), "b": jnp.float32([[4]])}
    after, unclipped = (apply(plain, weights, init(c, weights), gradient, hyper(c), 0)[0] for c in (config, plain))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, scale * y, rtol=1e-5), after, unclipped)
    assert float(after["b"][0, 0]) < 0
