"""The pure train and evaluation steps."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from minigpt_jax import rng
from minigpt_jax.config import OptimizerConfig
from minigpt_jax.data.batch import Batch
from minigpt_jax.model import GPT, DropoutCall, hidden, output, output_parameters, parametrization, pointer_mixture
from minigpt_jax.ops import fused_loss
from minigpt_jax.ops.platform import on_cpu
from minigpt_jax.train import metrics, optim
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.state import TrainState

CPU_TOKENS = 512
"""A CPU computes the gradient of this many tokens at a time, so few that their activations stay in its cache."""


@dataclass(frozen=True)
class StepSpec:
    """The static part of a train step.

    Attributes:
        train_line_end: whether to train also on the first label after a short row, the end of the line, as Keras does
            when it weights the loss by the mask of the features.
        accumulate: the number of micro-batches over which a step accumulates its gradient.
        axis_name: the axis of devices under `pmap`, over which gradients are summed.
    """

    model: GPT
    optimizer: OptimizerConfig
    train_line_end: bool
    accumulate: int = 1
    axis_name: str | None = None


class StepMetrics(NamedTuple):
    """Scalars of a step: sums over labels, the objective in nats per label, and the gradient's norm before clipping."""

    sums: LossSums
    objective: Any
    grad_norm: Any


def init_state(spec: StepSpec, hyper: optim.Hyperparameters, key: Array) -> TrainState:
    """Fresh parameters and optimiser state at step 0."""
    tokens_BT = jnp.zeros((1, spec.model.sequence_length), jnp.int32)
    params = parametrization.initial(spec.model.config, spec.model.init(key, tokens_BT)["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optim.transformation(spec.optimizer, hyper, 0, model=spec.model.config).init(params),
        ema=None if spec.optimizer.ema_decay is None else jax.tree.map(jnp.copy, params),
    )


def train_step(
    spec: StepSpec,
    state: TrainState,
    batch: Batch,
    hyper: optim.Hyperparameters,
    key: Array,
    dropout_rate: Array | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Makes one optimiser update on one batch.

    The objective is summed over the labels of all rows of all devices and divided by their number, so every label has
    the same weight, also in a partial batch. Dropout masks depend on `key`, the step and the index of the row in the
    global batch. If `dropout_rate` is given, it replaces the rate of the model.
    """
    key = rng.at(key, state.step)
    first_row = 0
    if spec.axis_name is not None:
        first_row = jax.lax.axis_index(spec.axis_name) * len(batch.rows)
    pieces = _pieces(spec, batch)
    dropout = DropoutCall(dropout_rate, first_row)
    micro = jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), batch)
    gradient = jax.grad(_objective_sum, argnums=1, has_aux=True)

    def accumulate(carry: Any, i_batch: Any) -> tuple[Any, None]:
        i, batch = i_batch
        call = dropout._replace(first_row=first_row + i * len(batch.rows))
        return jax.tree.map(jnp.add, carry, gradient(spec, state.params, batch, key, call)), None

    if pieces == 1:
        totals = gradient(spec, state.params, batch, key, dropout)
    else:
        shapes = jax.eval_shape(
            lambda batch: gradient(spec, state.params, batch, key, dropout), jax.tree.map(_first, micro)
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        totals, _ = jax.lax.scan(accumulate, zeros, (jnp.arange(pieces), micro))
    if spec.axis_name is not None:
        totals = jax.lax.psum(totals, spec.axis_name)

    grads, (sums, objective, count) = totals
    count = jnp.maximum(count, 1)
    grads = jax.tree.map(lambda g: g / count, grads)
    rule = optim.transformation(spec.optimizer, hyper, state.step, spec.model.dtype, spec.model.config)
    updates, opt_state = rule.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        # The warm-up of the decay keeps the random initial weights from lingering in the average.
        decay = jnp.minimum(hyper.ema_decay, (state.step + 1.0) / (state.step + 10.0))
        ema = jax.tree.map(lambda average, new: average + (1 - decay) * (new - average), ema, params)
    state = TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema)
    return state, StepMetrics(sums, objective / count, optax.tree.norm(grads))


def train_steps(
    spec: StepSpec,
    state: TrainState,
    batches: Batch,
    hyper: optim.Hyperparameters,
    key: Array,
    dropout_rate: Array | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Makes a `train_step` for each entry of the leading axis of `batches`. The metrics have the same leading axis."""
    return jax.lax.scan(lambda state, batch: train_step(spec, state, batch, hyper, key, dropout_rate), state, batches)


def eval_step(model: GPT, params: Any, batch: Batch, axis_name: str | None = None) -> LossSums:
    """The sums over the labels of one batch, without dropout. Under `axis_name` they cover the rows of all devices."""
    hidden_BTD, counted_BT = hidden(model, params, batch.features), batch.is_label
    _, nats_BT = _cross_entropy(model, params, hidden_BTD, batch, counted_BT)
    sums = metrics.token_sums(nats_BT, counted_BT, batch.bytes)
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def _objective_sum(
    spec: StepSpec, params: Any, batch: Batch, key: Array, dropout: DropoutCall | None = None
) -> tuple[Array, tuple[LossSums, Array, Array]]:
    hidden_BTD = hidden(spec.model, params, batch.features, key, dropout)
    trained_BT = batch.is_feature if spec.train_line_end else batch.is_label
    objective, nats_BT = _cross_entropy(spec.model, params, hidden_BTD, batch, trained_BT)
    sums = metrics.token_sums(nats_BT, batch.is_label, batch.bytes)
    return objective, (sums, objective, jnp.sum(trained_BT))


def _cross_entropy(model: GPT, params: Any, hidden_BTD: Array, batch: Batch, counted_BT: Array) -> tuple[Array, Array]:
    layer, of_layer = functools.partial(output, model), output_parameters(model, params)
    weight_BT = counted_BT.astype(jnp.float32)
    pointed = pointer_mixture(model, params, hidden_BTD, batch.features)
    mixture = None if pointed is None else (pointed.output, pointed.copied(batch.labels))
    return fused_loss.cross_entropy(layer, of_layer, hidden_BTD, batch.labels, weight_BT, mixture)


def _pieces(spec: StepSpec, batch: Batch) -> int:
    """The number of pieces of the batch whose gradients are computed one after another.

    They are the micro-batches. On a CPU these are split further, so that the activations of a piece stay in its cache.
    """
    rows, length = len(batch.rows), batch.rows.shape[1] - 1
    if not on_cpu():
        return spec.accumulate
    fitting = (n for n in range(spec.accumulate, rows + 1, spec.accumulate) if rows % n == 0)
    return next((n for n in fitting if rows // n * length <= CPU_TOKENS), spec.accumulate)


def _first(x: Any) -> Any:
    return x[0]
