"""Runs that are served: by which names, and at which checkpoint."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest
from test_generate import language_model
from test_serve_engine import ROOM, run, settings

from minigpt_jax import Greedy
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
