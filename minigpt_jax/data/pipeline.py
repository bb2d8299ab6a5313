"""Training batches with tf.data: batch i is a pure function of (seed, i), so a run resumes by starting at batch i."""

import atexit
import contextlib
import os
import weakref
from collections.abc import Generator, Iterator
from typing import Any

from minigpt_jax.data.batch import Batch
from minigpt_jax.data.rows import Rows


@contextlib.contextmanager
def _without_native_logs() -> Iterator[None]:
    """Hides the lines about CPU instructions and missing GPUs that TensorFlow's C++ code prints at any log level.

    Exceptions still pass.
    """
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


with _without_native_logs():
    import tensorflow

    tf: Any = tensorflow  # its type annotations are incomplete

    tf.config.set_visible_devices([], "GPU")  # the accelerator is left to JAX
    tf.constant(0)  # initialises the devices now, so that what TensorFlow logs about them is hidden too


def batches(
    rows: Rows, batch_size: int, seed: int, start: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Yields training batches without end, from batch number `start`. Each process gets its part of the global batch.

    Every epoch visits every row once. Its order is a permutation of the rows (not of whole batches) drawn from
    (seed, epoch). `tf.random.experimental.index_shuffle` computes any entry of the permutation alone, so earlier
    batches are neither read nor stored.
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
            lambda index: tuple(rows.take(index)),
            [indices(i)],
            (rows.rows.dtype, rows.bytes.dtype, rows.lengths.dtype),
            stateful=False,
        )

    options = tf.data.Options()
    options.threading.private_threadpool_size = 2
    dataset = tf.data.Dataset.range(start, tf.int64.max).map(take).prefetch(16).with_options(options)
    found = _batches(dataset.as_numpy_iterator())
    _unfinished.add(found)
    return found


_unfinished: weakref.WeakSet[Generator[Batch]] = weakref.WeakSet()


def _batches(iterator: Iterator[Any]) -> Generator[Batch]:
    for arrays in iterator:
        yield Batch(*arrays)


@atexit.register
def _end_all() -> None:
    """Ends the threads that prepare batches. They call Python, so a process would not end while they run."""
    for one in list(_unfinished):
        with contextlib.suppress(ValueError):  # one that a thread is waiting for cannot be closed
            one.close()
