"""Evaluates a model on a whole split. Perplexity is exp(total nats / total labels), not a mean over batches."""

import functools
from typing import Any

import jax

from minigpt_jax.data.rows import Rows
from minigpt_jax.model import GPT
from minigpt_jax.parallel import devices
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.step import eval_step


@functools.cache
def _compiled(model: GPT) -> Any:
    return devices.compile(functools.partial(eval_step, model, axis_name=devices.axis_name()))


def evaluate(model: GPT, weights: Any, rows: Rows, batch_size: int) -> LossSums:
    """Sums the loss over all labels of `rows`, on all devices. Rows that pad the last batch are not counted."""
    batch_size = -(-batch_size // jax.device_count()) * jax.device_count()
    batches = rows.in_order(batch_size, jax.process_index(), jax.process_count())
    step = _compiled(model)  # pyright: ignore[reportArgumentType]
    queued = [step(weights, batch) for batch in devices.prefetch(map(devices.put_batch, batches))]
    total = LossSums()
    for sums in queued:
        total = total.plus(jax.tree.map(lambda x: x.item(), jax.device_get(sums)))
    return total


def describe(sums: LossSums, rows: Rows) -> str:
    """Formats loss, perplexity, bits per byte and, if it is known, the corpus's lower bound on the last as one line."""
    text = f"loss {sums.loss:.4f} · perplexity {sums.perplexity:.2f} · {sums.bits_per_byte:.4f} bits per byte"
    floor = rows.floor_bits_per_byte
    if floor is None:
        return text
    return f"{text}, {sums.bits_per_byte - floor:.4f} above the floor of {floor:.4f}"
