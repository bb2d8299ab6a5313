"""Training batches with tf.data: batch i is a pure function of (seed, i), so that resuming is starting at i."""

import os
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from minigpt_jax.batch import Batch
from minigpt_jax.data.store import Rows


def steps_per_epoch(rows: Rows, batch_size: int) -> int:
    """Batches that hold every row once, the last one filled up."""
    return -(-len(rows) // batch_size)


def batches(
    rows: Rows, batch_size: int, seed: int, start: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Endless training batches from number `start` on; a process gets its share of each global batch.

    Every epoch visits every row once, in an order drawn anew from (seed, epoch) over rows, not over batches. The
    permutation is computed where it is needed (`tf.random.experimental.index_shuffle`), so nothing of the earlier
    batches is read or stored.
    """
    tf.config.set_visible_devices([], "GPU")  # the accelerator is JAX's
    per_epoch = steps_per_epoch(rows, batch_size)
    share = batch_size // process_count
    last_row = len(rows) - 1

    def indices(i: tf.Tensor) -> tf.Tensor:
        epoch, position = i // per_epoch, i % per_epoch
        slot = position * batch_size + process_index * share + tf.range(share, dtype=tf.int64)
        shuffled = tf.random.experimental.index_shuffle(
            tf.minimum(slot, last_row), seed=tf.stack([tf.constant(seed, tf.int64), epoch]), max_index=last_row
        )
        return tf.where(slot <= last_row, shuffled, last_row + 1)

    def take(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.numpy_function(
            lambda index: tuple(rows.take(index)), [indices(i)], (rows.rows.dtype, rows.bytes.dtype), stateful=False
        )

    options = tf.data.Options()
    options.threading.private_threadpool_size = 2
    dataset = tf.data.Dataset.range(start, tf.int64.max).map(take).prefetch(16).with_options(options)
    return (Batch(*arrays) for arrays in dataset.as_numpy_iterator())
