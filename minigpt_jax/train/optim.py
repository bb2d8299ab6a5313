"""Learning-rate schedules and update rules, as Optax transformations.

`Hyperparameters`, which include the schedule, are traced. Other values of them, or a stack of them under `vmap`, run
the same compiled program. The update rule is static.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from minigpt_jax.config import ModelConfig, OptimizerConfig, code
from minigpt_jax.errors import UserError
from minigpt_jax.model import parametrization
from minigpt_jax.ops.matmul import matmul

SCHEDULES: tuple[str, ...] = get_args(get_type_hints(OptimizerConfig)["schedule"])


class Hyperparameters(NamedTuple):
    """The traced scalars of an update. Steps count updates of the optimiser. `schedule` is an index of SCHEDULES."""

    learning_rate: Any
    muon_learning_rate: Any
    schedule: Any
    warmup_steps: Any
    total_steps: Any
    decay_fraction: Any
    final_fraction: Any
    b1: Any
    b2: Any
    epsilon: Any
    weight_decay: Any
    clip_norm: Any
    ema_decay: Any


def hyperparameters(config: OptimizerConfig, total_steps: int) -> Hyperparameters:
    """The float32 scalars of the configuration. A `clip_norm` of None becomes infinity."""
    values = {name: getattr(config, name) for name in Hyperparameters._fields if hasattr(config, name)}
    values |= {
        "schedule": SCHEDULES.index(config.schedule),
        "total_steps": total_steps,
        "clip_norm": np.inf if config.clip_norm is None else config.clip_norm,
        "ema_decay": config.ema_decay or 0.0,
    }
    return Hyperparameters(**{name: np.float32(value) for name, value in values.items()})


def schedule(kind: Any, hyper: Hyperparameters, step: Int[Array, "*steps"] | int) -> Float[Array, "*steps"]:
    """The factor between 0 and 1 that scales the peak learning rate in the update after `step` updates.

    All schedules start with a linear warm-up to the peak. Then `constant` stays there, and `cosine` and `linear` fall
    to `final_fraction` at `total_steps`. `wsd` (warm-up, stable, decay: Hu et al. 2024) stays at the peak and falls
    linearly in the last `decay_fraction` of all steps.

    Args:
        kind: one of SCHEDULES, or its index there, which may be traced.
    """
    index = SCHEDULES.index(kind) if isinstance(kind, str) else jnp.asarray(kind).astype(jnp.int32)
    is_kind = {name: index == i for i, name in enumerate(SCHEDULES)}
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / jnp.maximum(hyper.warmup_steps, 1))
    stable = jnp.where(is_kind["wsd"], hyper.total_steps * (1 - hyper.decay_fraction), 0.0)
    start = jnp.maximum(hyper.warmup_steps, stable)
    progress = jnp.clip((step - start) / jnp.maximum(hyper.total_steps - start, 1), 0.0, 1.0)
    remaining = jnp.where(is_kind["cosine"], 0.5 * (1 + jnp.cos(jnp.pi * progress)), 1 - progress)
    remaining = hyper.final_fraction + (1 - hyper.final_fraction) * remaining
    return warmup * jnp.where(is_kind["constant"], 1.0, remaining)


def scale_by_keras_adam(b1: Any, b2: Any, epsilon: Any) -> optax.GradientTransformation:
    """Adam as in Keras 3, which differs from `optax.scale_by_adam` in where epsilon is added.

    Keras folds both bias corrections into the rate: `m · sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + epsilon)`. Optax and
    the paper (Kingma and Ba 2015) add epsilon to the corrected root. That equals Keras's rule with `epsilon ·
    sqrt(1 - b2^t)`, which at the first step, with b2 = 0.999, is 32 times smaller.
    """

    def init(params: optax.Params) -> optax.OptState:
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu)

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> tuple[Any, Any]:
        del params
        assert isinstance(state, optax.ScaleByAdamState)
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: m + (g - m) * (1 - b1), state.mu, updates)
        nu = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - b2), state.nu, updates)
        rate = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: m * rate / (jnp.sqrt(v) + epsilon), mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


class MuonState(NamedTuple):
    """The number of updates so far, and the moving average of the gradients."""

    count: Any
    mu: Any


def scale_by_muon(dtype: Any) -> optax.GradientTransformation:
    """Muon (Jordan 2024), as in `optax.contrib.muon`: orthogonalises the momentum and scales it by the matrix's shape.

    It uses Nesterov momentum of 0.95 with bias correction. Matrices of equal shapes are orthogonalised together, by
    products in `dtype`.
    """
    beta = 0.95

    def init(params: optax.Params) -> optax.OptState:
        return MuonState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> tuple[Any, Any]:
        del params
        assert isinstance(state, MuonState)
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, state.mu, updates)
        of_mu, of_gradient = beta / (1 - beta ** (count + 1)), (1 - beta) / (1 - beta**count)
        ahead, structure = jax.tree.flatten(jax.tree.map(lambda m, g: of_mu * m + of_gradient * g, mu, updates))
        scaled = [max(1, x.shape[1] / x.shape[0]) ** 0.5 * x for x in orthogonalised(ahead, dtype)]
        return jax.tree.unflatten(structure, scaled), MuonState(count, mu)

    return optax.GradientTransformation(init, update)


def orthogonalised(matrices: Sequence[Float[Array, "_ _"]], dtype: Any) -> list[Float[Array, "_ _"]]:
    """Approximates the nearest orthogonal matrix of each matrix by five Newton-Schulz steps, with products in `dtype`.

    The coefficients of this quintic iteration (Jordan 2024) favour speed over precision: singular values end between
    0.7 and 1.2.
    """
    out = list(matrices)
    shapes = [tuple(sorted(x.shape)) for x in matrices]
    for shape in set(shapes):
        indices = [i for i, s in enumerate(shapes) if s == shape]
        wide = [matrices[i].shape == shape for i in indices]
        x = jnp.stack([matrices[i] if w else matrices[i].T for i, w in zip(indices, wide, strict=True)])
        x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
        x, identity = x.astype(dtype), jnp.eye(shape[0])[None]
        for _ in range(5):
            gram = matmul(x, x.mT, jnp.float32)
            square = matmul(gram.astype(dtype), gram.astype(dtype), jnp.float32)
            polynomial = 3.4445 * identity - 4.7750 * gram + 2.0315 * square
            x = matmul(polynomial.astype(dtype), x)
        x = x.astype(jnp.float32)
        for k, i in enumerate(indices):
            out[i] = x[k] if wide[k] else x[k].T
    return out


class NeuronNormsState(NamedTuple):
    """The moving average of each neuron's mean squared update, as [1, out]."""

    nu: Any


def scale_by_neuron_norms() -> optax.GradientTransformation:
    """Equalises the sizes of the updates of a matrix's neurons (NorMuon: Li et al. 2025).

    Kernels are [in, out], so a neuron is a column: the weights of one output. Each column is divided by the root of the
    moving average of its mean square, with a decay of 0.95. The matrix is then scaled back to its former norm, as in
    the authors' code (the paper sets another norm).
    """
    beta = 0.95

    def init(params: optax.Params) -> optax.OptState:
        return NeuronNormsState(jax.tree.map(lambda p: jnp.zeros((1, p.shape[1]), p.dtype), params))

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> tuple[Any, Any]:
        del params
        assert isinstance(state, NeuronNormsState)
        squares = jax.tree.map(lambda x: jnp.mean(x * x, axis=0, keepdims=True), updates)
        nu = jax.tree.map(lambda v, square: beta * v + (1 - beta) * square, state.nu, squares)
        even = jax.tree.map(lambda x, v: x / (jnp.sqrt(v) + 1e-10), updates, nu)
        norm = lambda x: jnp.linalg.norm(x) + 1e-10  # noqa: E731
        return jax.tree.map(lambda x, e: e * (norm(x) / norm(e)), updates, even), NeuronNormsState(nu)

    return optax.GradientTransformation(init, update)


def transformation(
    config: OptimizerConfig,
    hyper: Hyperparameters,
    step: Any,
    dtype: Any = jnp.float32,
    model: ModelConfig | None = None,
) -> optax.GradientTransformation:
    """The update rule at `step`, built inside the traced train step. Gradients are first clipped by their norm.

    If the parametrisation of `model` is muP, the updates are scaled by the width, parameter by parameter; weight decay
    is not. The updates of a user's optimizer are scaled as those of Adam, including its weight decay.

    The structure of its state depends only on `config.name` and on the parametrisation. Weight decay is decoupled, and
    acts only on the kernels of dense layers. Muon updates the kernels of blocks, of the pointer and of a factorised
    embedding's projections, to which its weight decay is restricted; Adam with Nesterov momentum updates all other
    parameters.

    A user's optimizer is a function `(learning_rate, hyper)` that returns an Optax transformation. The learning rate is
    a traced scalar, that of this step, so Optax gets it as a number and not as a schedule. `hyper` are the
    `Hyperparameters`.

    Raises:
        UserError: the user's code is not loaded, or returns no Optax transformation.
    """
    factor = schedule(hyper.schedule, hyper, step)
    rate = hyper.learning_rate * factor
    by_width = _scaling_by_width(model)
    if config.name == "adam":
        rule = optax.chain(scale_by_keras_adam(hyper.b1, hyper.b2, hyper.epsilon), *by_width, optax.scale(-rate))
    elif config.name in ("adamw", "lion"):
        is_lion = config.name == "lion"
        rule = optax.chain(  # the parts of optax.adamw and of optax.lion
            optax.scale_by_lion(hyper.b1, hyper.b2) if is_lion else _adam(hyper),
            *by_width,
            optax.add_decayed_weights(hyper.weight_decay, _decayed_matrices),
            optax.scale_by_learning_rate(rate),
        )
    elif config.name in ("muon", "normuon"):
        rule = optax.partition(
            {
                "muon": optax.chain(
                    scale_by_muon(dtype),
                    *([scale_by_neuron_norms()] if config.name == "normuon" else []),
                    *_scaling_by_width(model, orthogonalised=True),
                    optax.add_decayed_weights(hyper.weight_decay),
                    optax.scale(-hyper.muon_learning_rate * factor),
                ),
                "adam": optax.chain(_adam(hyper, nesterov=True), *by_width, optax.scale_by_learning_rate(rate)),
            },
            _muon_or_adam,
        )
    else:
        rule = code.loaded(config.name)(rate, hyper)
        if not isinstance(rule, optax.GradientTransformation):
            raise UserError(
                f"--optimizer.name {config.name}: it returns a {type(rule).__name__}; it must return an Optax "
                "transformation, such as optax.sgd(learning_rate)"
            )
        if by_width:  # without, the state has the structure that the user's rule gives it
            rule = optax.chain(rule, *by_width)
    return optax.chain(optax.clip_by_global_norm(hyper.clip_norm), rule)


def _adam(hyper: Hyperparameters, *, nesterov: bool = False) -> optax.GradientTransformation:
    return optax.scale_by_adam(hyper.b1, hyper.b2, hyper.epsilon, nesterov=nesterov)


def _scaling_by_width(model: ModelConfig | None, *, orthogonalised: bool = False) -> list[optax.GradientTransformation]:
    """For muP, what scales the update of each parameter by its factor; see `parametrization`. Nothing for standard."""
    if model is None or model.parametrization == "standard":
        return []

    def scaled(path: tuple[Any, ...], update: Array) -> Array:
        names = parametrization.names(path)
        return update * parametrization.rate_scale(model, names, orthogonalised=orthogonalised)

    return [optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))]


def _decayed_matrices(params: optax.Params) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: parametrization.names(path)[-1] == "kernel", params)


def _muon_or_adam(params: optax.Params) -> Any:
    """Labels all kernels but the output layer's with muon, and the other parameters with adam."""

    def label(path: tuple[Any, ...], _: Any) -> str:
        names = parametrization.names(path)
        return "muon" if names[-1] == "kernel" and "output" not in names else "adam"

    return jax.tree_util.tree_map_with_path(label, params)
