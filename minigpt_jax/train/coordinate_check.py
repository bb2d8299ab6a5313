"""The coordinate check of Yang et al. (2022): how much the first updates change each layer's activations.

If the same learning rate suits every width, the changes are independent of the width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from minigpt_jax import model, rng
from minigpt_jax.config import Experiment
from minigpt_jax.data.batch import Batch
from minigpt_jax.train import optim
from minigpt_jax.train.state import TrainState
from minigpt_jax.train.step import StepSpec, init_state, train_step

BRANCHES = ("attention", "feed_forward")
"""The layers of each block whose outputs are measured, besides the token embedding and the logits."""


class Activations(NamedTuple):
    """The size of one layer's activations on a batch, as their root mean square, after 0, 1, 2, … updates."""

    size: Float[np.ndarray, "N"]
    change: Float[np.ndarray, "N"]
    """The size of their difference from the activations before the first update."""


def activations(experiment: Experiment, batches: Sequence[Batch]) -> dict[str, Activations]:
    """Trains from scratch with one update for each batch, and measures the activations on the first batch.

    Returns:
        The activations by layer: token_embedding, block_0.attention, block_0.feed_forward, …, logits.
    """
    gpt = model.build(experiment)
    spec = StepSpec(gpt, experiment.optimizer, train_line_end=experiment.data.layout == "lines")
    hyper = optim.hyperparameters(experiment.optimizer, len(batches))
    init_key, dropout_key = (rng.stream(experiment.seed, name) for name in ("init", "dropout"))
    tokens_BT = batches[0].features

    @jax.jit
    def measured(batches: Batch) -> dict[str, tuple[Array, Array]]:
        state = init_state(spec, hyper, init_key)
        first = _outputs(gpt, state.params, tokens_BT)

        def update(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
            state, _ = train_step(spec, state, batch, hyper, dropout_key)
            now = _outputs(gpt, state.params, tokens_BT)
            return state, {layer: (_rms(x), _rms(x - first[layer])) for layer, x in now.items()}

        _, sizes = jax.lax.scan(update, state, batches)
        return {
            layer: (jnp.append(_rms(x), sizes[layer][0]), jnp.append(0.0, sizes[layer][1]))
            for layer, x in first.items()
        }

    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
    sizes = jax.device_get(measured(stacked))
    branches = [f"block_{i}.{branch}" for i in range(gpt.config.num_layers) for branch in BRANCHES]
    return {layer: Activations(*sizes[layer]) for layer in ("token_embedding", *branches, "logits")}


def slopes(widths: Sequence[int], sizes: Float[np.ndarray, "W N"]) -> Float[np.ndarray, "N"]:
    """The exponents with which sizes, one row for each width, grow with the width: by least squares in logarithms.

    >>> slopes([32, 64, 128], np.array([[1.0, 3.0], [2.0, 3.0], [4.0, 3.0]])).round(3).tolist()
    [1.0, 0.0]
    """
    return np.polyfit(np.log2(widths), np.log2(sizes), 1)[0]


def _outputs(gpt: model.GPT, params: Any, tokens_BT: Array) -> dict[str, Array]:
    def wanted(module: nn.Module, _: str) -> bool:
        return module.name in ("token_embedding", *BRANCHES)

    logits, captured = gpt.apply(
        {"params": params}, tokens_BT, capture_intermediates=wanted, mutable=["intermediates"]
    )  # fmt: skip
    intermediates: Any = captured["intermediates"]
    outputs = {"token_embedding": intermediates["token_embedding"]["__call__"][0]}
    for i in range(gpt.config.num_layers):
        for branch in BRANCHES:
            output = intermediates[f"block_{i}"][branch]["__call__"][0]
            outputs[f"block_{i}.{branch}"] = output[0] if branch == "attention" else output  # without the cache's state
    return {**outputs, "logits": logits}


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
