"""Learning-rate schedules and the Optax chain.

What only scales numbers (`Hyperparameters`) is traced, so that another learning rate or schedule, or a stack of them
under `vmap`, runs the same compiled program; what changes the program (the rule) is static.
"""

from typing import Any, NamedTuple, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from minigpt_jax.config import OptimizerConfig

SCHEDULES: tuple[str, ...] = get_args(get_type_hints(OptimizerConfig)["schedule"])


class Hyperparameters(NamedTuple):
    """The traced scalars of an update; steps are counted in optimiser updates, `schedule` is its place in SCHEDULES."""

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
    """Float32 scalars from the configuration; no clipping is clipping at infinity."""
    values = {name: getattr(config, name) for name in Hyperparameters._fields if hasattr(config, name)}
    values |= {
        "schedule": SCHEDULES.index(config.schedule),
        "total_steps": total_steps,
        "clip_norm": np.inf if config.clip_norm is None else config.clip_norm,
        "ema_decay": config.ema_decay or 0.0,
    }
    return Hyperparameters(**{name: np.float32(value) for name, value in values.items()})


def schedule(kind: Any, hyper: Hyperparameters, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The factor on the peak learning rate for the update after `step` updates, between 0 and 1.

    Warm-up is linear and ends at the peak; cosine and linear then fall to `final_fraction` at `total_steps`; wsd
    (warm-up, stable, decay: Hu et al. 2024) stays at the peak but for the last `decay_fraction` of all steps. `kind` is
    one of SCHEDULES or, traced, its place there.
    """
    place = SCHEDULES.index(kind) if isinstance(kind, str) else jnp.asarray(kind).astype(jnp.int32)
    is_kind = {name: place == i for i, name in enumerate(SCHEDULES)}
    step = jnp.asarray(step, jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / jnp.maximum(hyper.warmup_steps, 1))
    stable = jnp.where(is_kind["wsd"], hyper.total_steps * (1 - hyper.decay_fraction), 0.0)
    start = jnp.maximum(hyper.warmup_steps, stable)
    progress = jnp.clip((step - start) / jnp.maximum(hyper.total_steps - start, 1), 0.0, 1.0)
    remaining = jnp.where(is_kind["cosine"], 0.5 * (1 + jnp.cos(jnp.pi * progress)), 1 - progress)
    remaining = hyper.final_fraction + (1 - hyper.final_fraction) * remaining
    return warmup * jnp.where(is_kind["constant"], 1.0, remaining)


def scale_by_keras_adam(b1: Any, b2: Any, epsilon: Any) -> optax.GradientTransformation:
    """Adam as Keras 3 has it, `optax.scale_by_adam` with epsilon after the bias correction.

    Keras folds both corrections into the rate, `m · sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + epsilon)`. Optax (and the
    paper) add epsilon to the corrected root, which is Keras's rule with `epsilon · sqrt(1 - b2^t)`: at the first step,
    with b2 = 0.999, an epsilon 32 times smaller.
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


def transformation(config: OptimizerConfig, hyper: Hyperparameters, step: Any) -> optax.GradientTransformation:
    """The update rule at `step`, to be built inside the traced train step.

    The structure of its state depends on `config.name` alone. Weight decay is decoupled and acts on matrices, not on
    biases, norms and embeddings; under Muon on the blocks' matrices alone, the rest being Adam with Nesterov momentum.
    """
    factor = schedule(hyper.schedule, hyper, step)
    rate = hyper.learning_rate * factor
    if config.name == "adam":
        rule = optax.chain(scale_by_keras_adam(hyper.b1, hyper.b2, hyper.epsilon), optax.scale(-rate))
    elif config.name == "adamw":
        rule = optax.adamw(
            rate, hyper.b1, hyper.b2, hyper.epsilon, weight_decay=hyper.weight_decay, mask=_decayed_matrices
        )
    elif config.name == "lion":
        rule = optax.lion(rate, hyper.b1, hyper.b2, weight_decay=hyper.weight_decay, mask=_decayed_matrices)
    else:
        rule = optax.contrib.muon(
            hyper.muon_learning_rate * factor,
            eps=hyper.epsilon,
            weight_decay=hyper.weight_decay,
            adam_b1=hyper.b1,
            adam_b2=hyper.b2,
            adam_learning_rate=rate,
            muon_weight_dimension_numbers=_muon_dimensions,
        )
    return optax.chain(optax.clip_by_global_norm(hyper.clip_norm), rule)


def _names(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(entry, "key", entry)) for entry in path]


def _decayed_matrices(params: optax.Params) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[-1] == "kernel", params)


def _muon_dimensions(params: optax.Params) -> Any:
    """Muon takes the matrices of the blocks; embeddings, output layer, norms and biases are Adam's."""

    def dimensions(path: tuple[Any, ...], _: Any) -> Any:
        names = _names(path)
        return optax.contrib.MuonDimensionNumbers() if names[-1] == "kernel" and "output" not in names else None

    return jax.tree_util.tree_map_with_path(dimensions, params)
