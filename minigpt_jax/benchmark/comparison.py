"""What the comparison with KerasHub's tutorial is made of: rows of its table, and what its stages share."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minigpt_jax import corpora, display, model
from minigpt_jax.benchmark import rounds, tutorial
from minigpt_jax.cache import cache_dir
from minigpt_jax.config import DataConfig, Experiment
from minigpt_jax.data import pipeline, store
from minigpt_jax.data.batch import Batch
from minigpt_jax.parallel import devices
from minigpt_jax.train.program import DataParallel
from minigpt_jax.train.state import TrainState

SIZE = tutorial.BATCH_SIZE
THEIRS, OURS = "KerasHub", "minigpt_jax"


@dataclass(frozen=True)
class Row:
    """A line of the table; `ratio` is how many times better ours is, or ours over theirs for a perplexity."""

    stage: str
    unit: str
    theirs: float
    ours: float
    ratio: float
    theirs_first: float | None = None
    ours_first: float | None = None


class Bench:
    """What the stages of the comparison share: the corpus, made ready once, and the two sides at the same weights.

    Args:
        data: which corpus; its other fields are the tutorial's.
        folder: where files of the comparison may be written; its owner removes them.
    """

    def __init__(self, data: DataConfig, folder: Path) -> None:
        self.folder = folder
        self.experiment = Experiment("simplebooks", data=data)
        self.corpus = corpora.open_corpus(data, cache_dir())
        self.prepared = store.prepare(self.experiment, self.corpus, cache_dir(), display.track)
        self.gpt = model.build(self.experiment)

    @functools.cached_property
    def lines(self) -> Path:
        return tutorial.write_lines(self.corpus.documents("train"), self.folder / "train.txt")

    @functools.cached_property
    def their_vocabulary_seconds(self) -> float:
        """How long KerasHub trains its vocabulary."""
        return rounds.seconds(functools.partial(tutorial.vocabulary, self.lines))

    @functools.cached_property
    def pieces(self) -> list[str]:
        """The vocabulary of both sides."""
        pieces: Any = self.prepared.tokenizer
        return [pieces.piece(i) for i in range(len(pieces))]

    @functools.cached_property
    def valid(self) -> np.ndarray:
        """Validation rows, with empty ones to fill the last batch: Keras compiles anew for a smaller one."""
        return np.concatenate([batch.rows for batch in self.prepared.splits["valid"].in_order(SIZE)]).astype(np.int32)

    def environment(self, cache: str) -> dict[str, str]:
        """That of a process whose cache is a folder of this benchmark's own."""
        environment = {**os.environ, "MINIGPT_CACHE": str(self.folder / cache)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        return environment

    def batches(self) -> Iterator[Batch]:
        return pipeline.batches(self.prepared.splits["train"], SIZE, seed=0)

    def rows(self, batches: Iterator[Batch], steps: int) -> np.ndarray:
        """The rows of the next batches, one after another."""
        return np.concatenate([batch.rows for batch in itertools.islice(batches, steps)]).astype(np.int32)

    def start(self, params: Any, total_steps: int) -> tuple[TrainState, Callable[[TrainState, Batch], Any]]:
        """Our state at KerasHub's weights, and the train step."""
        program = DataParallel(self.experiment)
        inputs = program.inputs(self.experiment, total_steps)
        params = devices.put_replicated(jax.tree.map(np.asarray, params))
        state = dataclasses.replace(program.init(inputs), params=params)
        return state, lambda state, batch: program.steps(state, inputs, program.draw([iter([batch])], 1), 1)


def timed(stage: str, unit: str, contenders: dict[str, Callable[[], Any]], count: int, work: float = 1.0) -> Row:
    """The row of a stage whose two sides are timed in turns, `count` times each; `work` is what one call does."""
    return row(stage, unit, rounds.alternate(contenders, count), work)


def row(stage: str, unit: str, timings: dict[str, rounds.Timing], work: float = 1.0) -> Row:
    """The row of a stage that was timed: seconds if `unit` is "s", else work per second."""
    theirs, ours = timings[THEIRS], timings[OURS]
    a, b = theirs.median, ours.median
    left, right = (a, b) if unit == "s" else (work / a, work / b)
    return Row(stage, unit, left, right, a / b, theirs.first - a, ours.first - b)
