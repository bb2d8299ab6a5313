"""A sweep small enough to run in seconds, with batches that need no TensorFlow."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tiny_experiment import changed

from minigpt_jax import sweep
from minigpt_jax.data.batch import Batch
from minigpt_jax.sweep import axes

EXPERIMENT = changed("train", changed("model", dropout=0.0), log_every=1)
AXES = ("model.dropout=0,0.2", "optimizer.learning_rate=3e-3,1e-2", "seed=0,5")


def batches(rows: Any, size: int, seed: int, start: int, index: int, count: int) -> Iterator[Batch]:
    draw = lambda i: np.random.default_rng([seed, i]).integers(0, len(rows), size)  # noqa: E731
    return (rows.take(draw(i)) for i in itertools.count(start))


def plan(root: Path, *texts: str, **settings: Any) -> sweep.Plan:
    return sweep.make(settings.pop("experiment", EXPERIMENT), axes.parse(texts or AXES), root=root, **settings)
