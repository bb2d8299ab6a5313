"""A lower bound on the memory that training needs, compared with the free memory before anything is compiled."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np

from minigpt_jax import model
from minigpt_jax.config import Experiment, TokenizerConfig, flag_name, flatten
from minigpt_jax.errors import UserError
from minigpt_jax.ops.platform import on_cpu
from minigpt_jax.train.step import CPU_TOKENS

MOMENTS = {"adam": 2, "adamw": 2, "muon": 1, "normuon": 1, "lion": 1}
"""The least number of values that each optimiser stores per parameter."""


class Part(NamedTuple):
    """A part of the memory.

    Attributes:
        what: its name for the user.
        size: its size, in bytes or in parameters.
        fields: the fields of the experiment that its size grows with.
    """

    what: str
    size: int
    fields: tuple[str, ...]


def check_memory(experiment: Experiment, copies: int | None = None) -> None:
    """Checks that training can fit into the free memory, by a lower bound. Training that passes may still not fit.

    Args:
        copies: the number of devices of this host that hold the state, if its CPU computes. The default is all.

    Raises:
        UserError: the bound exceeds the free memory. The message names the flag to lower.
    """
    copies = (copies or jax.local_device_count()) if on_cpu() else 1
    parts = needed(experiment)
    total, available = copies * sum(part.size for part in parts), free()
    if total <= available:
        return
    largest = max(parts, key=lambda part: part.size)
    values, usual = flatten(experiment), flatten(Experiment(name=""))
    size = "tokenizer.vocabulary_size"
    values[size], usual[size] = experiment.tokenizer.rows, TokenizerConfig().rows
    name = max(largest.fields, key=lambda field: (values[field] or 0) / max(1, usual[field] or 0))
    where = "on this machine" if on_cpu() else f"on a {jax.devices()[0].device_kind}"
    raise UserError(
        f"--{flag_name(name)} {values[name]}: training takes at least {_gigabytes(total)} of memory, "
        f"{_gigabytes(copies * largest.size)} of it for {largest.what}, and {where} {_gigabytes(available)} are free; "
        "choose a smaller one"
    )


def needed(experiment: Experiment) -> list[Part]:
    """The large parts of the memory that one device needs in training, in bytes."""
    config, data, settings = experiment.model, experiment.data, experiment.train
    parameters = [part._replace(size=part.size * _bytes_per_parameter(experiment)) for part in matrices(experiment)]
    length, width = data.sequence_length, config.width
    rows = max(1, settings.batch_size // (jax.device_count() * settings.accumulate))
    if on_cpu() and length <= CPU_TOKENS:
        rows = 1  # `train_step` splits the batch into pieces, of one row at the least
    item = np.dtype(model.compute_dtype(config)).itemsize
    layers = config.num_layers * config.repeats
    id_size = np.min_scalar_type(experiment.tokenizer.rows - 1).itemsize
    batch = settings.batch_size // jax.device_count() * (length + 1)
    grows = ("train.batch_size", "data.sequence_length")
    return [
        *parameters,
        Part("the rows of a batch", batch * id_size, grows),
        Part(
            "the inputs of all layers",
            rows * layers * length * width * item,
            (*grows, "model.width", "model.num_layers", "model.repeats"),
        ),
        Part(
            "the attention weights of one layer",
            rows * config.num_heads * length**2 * item,
            (*grows, "model.num_heads"),
        ),
    ]


def matrices(experiment: Experiment) -> list[Part]:
    """The matrices of the model and their numbers of parameters, without biases, norms and blocks of the user's own."""
    config, length = experiment.model, experiment.data.sequence_length
    width, layers, vocabulary = config.width, config.num_layers, experiment.tokenizer.rows
    if config.block != "transformer":  # the parameters of the user's block are unknown
        layers = 0
    heads = 2 * config.head_size * (config.num_heads + config.kv_heads)
    feed_forward = (3 if config.activation == "swiglu" else 2) * config.feed_forward_width
    blocks = ("model.num_layers", "model.width")
    return [
        Part(
            "the token embedding and the output layer",
            vocabulary * (config.embedding_width or width) * (1 if config.tied_embeddings else 2),
            ("tokenizer.vocabulary_size", "model.embedding_width" if config.embedding_width else "model.width"),
        ),
        Part(
            "the projections of the embedding",
            2 * width * (config.embedding_width or 0),
            ("model.width", "model.embedding_width"),
        ),
        Part(
            "the learned positions",
            length * width if config.positions == "learned" else 0,
            ("data.sequence_length", "model.width"),
        ),
        Part("the attention layers", layers * width * heads, blocks),
        Part("the feed-forward layers", layers * width * feed_forward, (*blocks, "model.feed_forward")),
        Part("the convolutions", layers * width * 2 * config.convolution, (*blocks, "model.convolution")),
        Part("the pointer", width * 3 * config.pointer, ("model.width", "model.pointer")),
    ]


def _bytes_per_parameter(experiment: Experiment) -> int:
    """The bytes of a parameter, its gradient, the optimiser's moments and the moving average, all in float32."""
    optimizer = experiment.optimizer
    return 4 * (2 + MOMENTS.get(optimizer.name, 0) + (optimizer.ema_decay is not None))


def free() -> float:
    """The free memory in bytes of one accelerator, or of the host if its CPU computes.

    It is infinite if the accelerator does not report it, and the total memory of a host that reports only that (macOS).
    """
    if on_cpu():
        try:
            with open("/proc/meminfo") as file:
                return next(int(line.split()[1]) * 1024.0 for line in file if line.startswith("MemAvailable"))
        except (OSError, StopIteration):
            return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", float("inf")) - stats.get("bytes_in_use", 0)


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:,.1f} GB"
