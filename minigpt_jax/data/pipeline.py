"""Training batches with tf.data: batch i is a pure function of (seed, i), so that resuming is starting at i."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from minigpt_jax.data.batch import Batch
from minigpt_jax.data.rows import Rows


@contextlib.contextmanager
def _native_logs_unsaid() -> Iterator[None]:
    """Hides what TensorFlow's C++ says at any log level, of instructions and missing GPUs; exceptions still pass."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


with _native_logs_unsaid():
    import tensorflow

    tf: Any = tensorflow  # whose own types are incomplete

    tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's
    tf.constant(0)  # makes its devices, while nobody listens


def batches(
    rows: Rows, batch_size: int, seed: int, start: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Endless training batches from number `start` on; a process gets its share of each global batch.

    Every epoch visits every row once, in an order drawn anew from (seed, epoch) over rows, not over batches. The
    permutation is computed where it is needed (`tf.random.experimental.index_shuffle`), so nothing of the earlier
    batches is read or stored.
    """
    per_epoch = rows.steps_per_epoch(batch_size)
    share = batch_size // process_count
    last_row = len(rows) - 1

    def indices(i: Any) -> Any:
        epoch, position = i // per_epoch, i % per_epoch
        slot = position * batch_size + process_index * share + tf.range(share, dtype=tf.int64)
        shuffled = tf.random.experimental.index_shuffle(
            tf.minimum(slot, last_row), seed=tf.stack([tf.constant(seed, tf.int64), epoch]), max_index=last_row
        )
        return tf.where(slot <= last_row, shuffled, last_row + 1)

    def take(i: Any) -> Any:
        return tf.numpy_function(
            lambda index: tuple(rows.take(index)), [indices(i)], (rows.rows.dtype, rows.bytes.dtype), stateful=False
        )

    options = tf.data.Options()
    options.threading.private_threadpool_size = 2
    dataset = tf.data.Dataset.range(start, tf.int64.max).map(take).prefetch(16).with_options(options)
    return (Batch(*arrays) for arrays in dataset.as_numpy_iterator())
