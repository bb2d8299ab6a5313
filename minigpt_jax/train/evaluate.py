"""Loss over a whole split: exp(total nats / total labels), never a mean of batches' means."""

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
    """LossSums over every label of `rows`. The last batch is filled up with rows that weigh nothing."""
    batch_size = -(-batch_size // jax.device_count()) * jax.device_count()
    batches = rows.in_order(batch_size, jax.process_index(), jax.process_count())
    step = _compiled(model)  # pyright: ignore[reportArgumentType]
    queued = [step(weights, batch) for batch in devices.prefetch(map(devices.put_batch, batches))]
    total = LossSums()
    for sums in queued:
        total = total.plus(jax.tree.map(lambda x: x.item(), jax.device_get(sums)))
    return total


def describe(sums: LossSums, rows: Rows) -> str:
    """One line for people: loss, perplexity, bits per byte, and the corpus's own floor where it is known."""
    text = f"loss {sums.loss:.4f} · perplexity {sums.perplexity:.2f} · {sums.bits_per_byte:.4f} bits per byte"
    floor = rows.floor_bits_per_byte
    if floor is None:
        return text
    return f"{text}, {sums.bits_per_byte - floor:.4f} above the floor of {floor:.4f}"
