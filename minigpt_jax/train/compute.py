"""The floating-point operations of training, counted from the model's program."""

import functools
import math
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp

from minigpt_jax import model
from minigpt_jax.config import Experiment


def parameters(experiment: Experiment) -> int:
    """The number of parameters of the experiment's model."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.parameter_shapes(experiment)))


@functools.lru_cache(256)
def flops_per_token(experiment: Experiment) -> float:
    """The floating-point operations that training takes for each position of a row.

    They are three times those of the matrix products of a forward pass, since each product comes with two more, for the
    gradients of both its factors. This is 6 per weight that multiplies (Kaplan et al. 2020), and 12 T for each feature
    of attention. Nothing else is counted; on a real device the rest takes time too.
    """
    gpt = model.build(experiment)
    tokens_BT = jax.ShapeDtypeStruct((1, gpt.sequence_length), jnp.int32)
    forward = functools.partial(model.logits, gpt)
    return 3 * _products(jax.make_jaxpr(forward)(model.parameter_shapes(experiment), tokens_BT)) / gpt.sequence_length


def training_flops(experiment: Experiment, steps: int) -> float:
    """The floating-point operations of so many steps, padding included; see `flops_per_token`."""
    return steps * experiment.train.batch_size * experiment.data.sequence_length * flops_per_token(experiment)


def _products(program: Any) -> float:
    """The operations of the matrix products of a jaxpr and of those in it: 2 for each product of two numbers."""
    total = 0.0
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(_products(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return total
