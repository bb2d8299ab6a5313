"""tf.data batches: every epoch a permutation of all rows, and batch i a function of (seed, i) alone."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from minigpt_jax.data import pipeline
from minigpt_jax.data.rows import Rows

COUNT, SIZE = 37, 8
PER_EPOCH = -(-COUNT // SIZE)


@pytest.fixture
def rows() -> Rows:
    ids = np.arange(1, COUNT + 1, dtype=np.uint16)
    return Rows(np.stack([ids, ids + 100], axis=1), np.arange(COUNT, dtype=np.int32), np.full(COUNT, 2, np.int32))


def take(rows: Rows, count: int, **settings: int) -> list[np.ndarray]:
    stream = pipeline.batches(rows, **{"batch_size": SIZE, "seed": 0, **settings})
    return [np.asarray(batch.rows) for batch in itertools.islice(stream, count)]


def test_each_epoch_visits_every_row_once_in_a_new_order(rows: Rows):
    batches = take(rows, 2 * PER_EPOCH)
    epochs = [np.concatenate(batches[:PER_EPOCH]), np.concatenate(batches[PER_EPOCH:])]
    for epoch in epochs:
        assert epoch.shape == (PER_EPOCH * SIZE, 2)
        np.testing.assert_array_equal(np.sort(epoch[:COUNT, 0]), rows.rows[:, 0])
        assert not epoch[COUNT:].any()  # the last batch is filled up
        np.testing.assert_array_equal(epoch[:COUNT, 1], epoch[:COUNT, 0] + 100)
    assert (epochs[0][:COUNT] != epochs[1][:COUNT]).mean() > 0.5
    assert (epochs[0][:COUNT] != rows.rows).mean() > 0.5


def test_batches_have_the_type_of_the_stored_rows(rows: Rows):
    batch = next(pipeline.batches(rows, SIZE, seed=0))
    assert batch.rows.dtype == np.uint16
    np.testing.assert_array_equal(batch.bytes, batch.rows[:, 0].astype(np.int32) - 1)


def test_starting_at_batch_i_gives_the_same_batch_as_drawing_up_to_it(rows: Rows):
    batches = take(rows, 3 * PER_EPOCH)
    for start in (1, PER_EPOCH - 1, PER_EPOCH, 2 * PER_EPOCH + 2):
        for resumed, whole in zip(take(rows, 3, start=start), batches[start:], strict=False):
            np.testing.assert_array_equal(resumed, whole)


def test_the_seed_sets_the_order(rows: Rows):
    first, again, other = (np.concatenate(take(rows, PER_EPOCH, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_global_batch(rows: Rows, processes: int):
    shares = [take(rows, 7, process_index=i, process_count=processes) for i in range(processes)]
    for whole, parts in zip(take(rows, 7), zip(*shares, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("seed", [0, 2**62, 2**63 - 1])
def test_any_seed_of_63_bits(rows: Rows, seed: int):
    assert sorted(np.concatenate(take(rows, PER_EPOCH, seed=seed))[:COUNT, 0]) == sorted(rows.rows[:, 0])


def test_a_process_may_end_while_batches_are_prepared():
    """Threads that call Python fill the buffer. A process that did not stop them would hang at its end."""
    program = (
        "import numpy as np\n"
        "from minigpt_jax.data import pipeline, rows\n"
        "all_rows = rows.Rows(np.zeros((50, 5), np.uint8), np.full(50, 4, np.int32), np.full(50, 5, np.int32))\n"
        "batches = pipeline.batches(all_rows, 2, seed=0)\n"
        "next(batches)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


def test_tensorflow_is_given_no_accelerator(rows: Rows):
    import tensorflow as tf

    next(pipeline.batches(rows, SIZE, seed=0))
    assert tf.config.get_visible_devices("GPU") == []
