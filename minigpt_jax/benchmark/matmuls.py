"""The matmuls of a train step alone, as a lower bound of its time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax.config import Experiment


def of_train_step(experiment: Experiment) -> functools.partial[Any]:
    """A function that computes the matmuls of one train step, in float32 on one device, from random arrays.

    Every matmul y = x w of the forward pass comes with two more, for the gradients of x and w.
    """
    model, tokens = experiment.model, experiment.train.batch_size * experiment.data.sequence_length
    queries, keys = model.head_size * model.num_heads, model.head_size * model.kv_heads
    widths = [(model.width, queries), (model.width, keys), (model.width, keys), (queries, model.width)]
    widths += [(model.width, model.feed_forward_width)] * (2 if model.activation == "swiglu" else 1)
    widths += [(model.feed_forward_width, model.width)]
    widths += [(model.width, model.num_heads)] if model.head_gate else []
    heads = (experiment.train.batch_size, model.num_heads, experiment.data.sequence_length, model.head_size)
    scores = (*heads[:3], experiment.data.sequence_length)
    attention = [("bnth,bnsh->bnts", heads, heads, scores), ("bnts,bnsh->bnth", scores, heads, heads)]
    dense = lambda i, o: ("ti,io->to", (tokens, i), (i, o), (tokens, o))  # noqa: E731
    products = model.num_layers * model.repeats * [*(dense(*pair) for pair in widths), *attention]
    if model.embedding_width:
        products += [dense(model.embedding_width, model.width), dense(model.width, model.embedding_width)]
    products += [dense(model.embedding_width or model.width, experiment.tokenizer.rows)]
    if model.pointer:
        pointed = (*heads[:1], 1, heads[2], model.pointer)
        products += [dense(model.width, model.pointer), dense(2 * model.width, model.pointer), dense(model.width, 1)]
        products += [("bnth,bnsh->bnts", pointed, pointed, (*heads[:1], 1, *scores[2:]))]

    rng = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731
    arrays = [tuple(draw(shape) for shape in shapes) for _, *shapes in products]

    @jax.jit
    def step(arrays: Any) -> Any:
        out = []
        for (equation, *_), (x, w, gradient) in zip(products, arrays, strict=True):
            y, pull = jax.vjp(functools.partial(jnp.einsum, equation), x, w)
            out.append((y, *pull(gradient)))
        return out

    return functools.partial(step, arrays)
