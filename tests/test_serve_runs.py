"""Runs that are served: by which names, and at which checkpoint."""

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import pytest
from test_generate import language_model
from test_serve_engine import ROOM, run, settings

from minigpt_jax import Greedy, UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.serve.engine import Engine
from minigpt_jax.serve.runs import ModelNotFoundError, Runs, Source


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model(positions="rope")


@dataclasses.dataclass(frozen=True)
class Training(Source):
    """A run whose training saves another checkpoint when it is told to."""

    models: tuple[LanguageModel, ...] = ()
    saved: list[int] = dataclasses.field(default_factory=lambda: [0])

    def load(self) -> LanguageModel:
        return self.models[self.saved[-1]]

    def newest(self) -> int:
        return self.saved[-1]


def test_a_run_in_training_is_served_at_its_newest_checkpoint(lm: LanguageModel):
    other = LanguageModel(lm.experiment, lm.tokenizer, jax.tree.map(lambda x: -x, lm.weights), 1)
    lm = LanguageModel(lm.experiment, lm.tokenizer, lm.weights, 0)
    source = Training(Path("runs/it"), models=(lm, other))
    engine = Engine(lm, "it", ROOM, sizes=(1, 4))
    runs = Runs([engine], {"it": source}, poll_seconds=0.05)

    async def main() -> list[Any]:
        old = engine.submit("a b", Greedy(), settings(max_new_tokens=300), streamed=True)
        updates = aiter(old)
        await anext(updates)
        source.saved.append(1)
        while engine.step == 0:
            await asyncio.sleep(0.01)
        new = await engine.submit("a b", Greedy(), settings()).whole()
        return [*(await old.whole()), *new]

    try:
        before, after = run(main)
        assert before.tokens == lm.generate(["a b"], max_new_tokens=300)[0].tokens
        assert after.tokens == other.generate(["a b"], max_new_tokens=14)[0].tokens
        assert before.tokens[:14] != after.tokens
        assert {pool.lm for pool in engine._pools.values()} == {other}
    finally:
        runs.close()


@dataclasses.dataclass(frozen=True)
class Damaged(Source):
    """A run in training whose newest checkpoints fail, each in its own way: `failures` has what loading it does."""

    failures: dict[int, Any] = dataclasses.field(default_factory=dict)
    loads: list[int] = dataclasses.field(default_factory=list)
    saved: list[int] = dataclasses.field(default_factory=lambda: [0])

    def load(self) -> LanguageModel:
        self.loads.append(self.saved[-1])
        outcome = self.failures[self.saved[-1]]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def newest(self) -> int:
        return self.saved[-1]


@pytest.mark.parametrize(
    "outcome",
    [None, UserError("all are damaged"), RuntimeError("out of memory")],
    ids=["an older one", "none", "other"],
)
def test_a_damaged_checkpoint_is_read_ever_more_rarely(lm: LanguageModel, outcome: Any, capsys: pytest.CaptureFixture):
    old, new = (LanguageModel(lm.experiment, lm.tokenizer, lm.weights, step) for step in (0, 2))
    again = LanguageModel(lm.experiment, lm.tokenizer, lm.weights, 0)  # what is loaded instead of step 1
    source = Damaged(Path("runs/it"), failures={1: outcome or again, 2: new})
    engine = Engine(old, "it", ROOM, sizes=(1,))
    runs = Runs([engine], {"it": source}, poll_seconds=0.01)
    try:
        source.saved.append(1)
        wait_until(lambda: source.loads)
        time.sleep(0.3)  # thirty looks at most, of which the second, 4th, 8th and so on read it
        assert set(source.loads) == {1}
        assert len(source.loads) <= 6
        assert engine.lm is old, "its pools would be set up anew"
        assert ("step 0 stays in use" in capsys.readouterr().err) == (outcome is not None)
        source.saved.append(2)
        wait_until(lambda: engine.lm is new)
    finally:
        runs.close()


def test_a_checkpoint_that_cannot_be_read_for_the_moment_is_read_again(lm: LanguageModel):
    old, new = (LanguageModel(lm.experiment, lm.tokenizer, lm.weights, step) for step in (0, 1))
    source = Damaged(Path("runs/it"), failures={1: OSError("too many open files")}, saved=[1])
    engine = Engine(old, "it", ROOM, sizes=(1,))
    runs = Runs([engine], {"it": source}, poll_seconds=0.01)
    try:
        wait_until(lambda: source.loads)
        source.failures[1] = new
        wait_until(lambda: engine.lm is new)
    finally:
        runs.close()


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_names_are_those_of_the_folders_and_unique(lm: LanguageModel):
    sources = [Training(Path(path), models=(lm,)) for path in ("a/one", "b/one", "two", "c/one/")]
    runs = Runs.load(sources)
    try:
        assert list(runs.engines) == ["one", "one-2", "two", "one-3"]
        assert runs.engine("two").name == "two"
        for name in ("tow", None, 3):
            with pytest.raises(ModelNotFoundError, match="one, one-2, two, one-3"):
                runs.engine(name)
    finally:
        runs.close()
