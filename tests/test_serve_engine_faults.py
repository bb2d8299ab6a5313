"""What goes wrong in an engine is told to those whom it concerns, and leaves the engine in use."""

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from test_generate import language_model
from test_serve_engine import ROOM, run, settings

from minigpt_jax import Greedy, Sampler, UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.serve import pool
from minigpt_jax.serve.engine import Engine, EngineError


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model(positions="rope")


@pytest.fixture(scope="module")
def engine(lm: LanguageModel) -> Iterator[Engine]:
    engine = Engine(lm, "random", ROOM, sizes=(1, 4))
    yield engine
    engine.close()


def test_an_engine_that_fails_tells_all_its_callers(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm, "random", ROOM, sizes=(2,))

    def fails(*_: Any) -> Any:
        raise ValueError("no text")

    async def main() -> None:
        # The first ends in the chunk whose texts cannot be made.
        tickets = [engine.submit("a", Greedy(), settings(max_new_tokens=count)) for count in (1, 50, 50)]
        for ticket in tickets:
            with pytest.raises(EngineError, match="ValueError: no text"):
                await ticket.whole()

    try:
        with monkeypatch.context() as patched:
            patched.setattr(pool, "generations", fails)
            run(main)

        async def again() -> list[Any]:
            return await engine.submit("a", Greedy(), settings()).whole()

        assert [one.tokens for one in run(again)] == [one.tokens for one in lm.generate(["a"], max_new_tokens=14)]
    finally:
        engine.close()


def test_those_who_wait_are_told_if_starting_fails(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm, "random", ROOM, sizes=(2,))

    def fails(*_: Any) -> Any:
        raise MemoryError("no room")

    async def main() -> None:
        # Prompts of two widths: both wait when starting the first of them fails.
        tickets = [engine.submit(prompt, Greedy(), settings()) for prompt in ("a", "a b " * 8, "b")]
        for ticket in tickets:
            with pytest.raises(EngineError, match="MemoryError: no room"):
                await asyncio.wait_for(ticket.whole(), 60)

    try:
        monkeypatch.setattr(pool.Programs, "start", fails)
        run(main)
    finally:
        engine.close()


def test_a_program_that_could_not_be_compiled_is_tried_again(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    engine, compile_start, failures = Engine(lm, "random", ROOM, sizes=(1,)), pool.Programs._start, iter([True])

    def fails_once(self: pool.Programs, *sizes: int) -> Any:
        if next(failures, False):
            raise MemoryError("no room")
        return compile_start(self, *sizes)

    async def main() -> None:
        with pytest.raises(EngineError, match="MemoryError: no room"):
            await engine.submit("a", Greedy(), settings()).whole()
        assert await engine.submit("a", Greedy(), settings()).whole()

    try:
        monkeypatch.setattr(pool.Programs, "_start", fails_once)
        run(main)
    finally:
        engine.close()


def test_a_sampler_that_fails_fails_its_request_alone(engine: Engine, lm: LanguageModel):
    @dataclasses.dataclass(frozen=True)
    class Broken(Sampler):
        scale: float = 1.0

        def pick(self, logits: Any, key: Any) -> Any:
            return logits.argmax(axis=1) if self.scale > 0 else logits  # needs a value

    async def main() -> None:
        good = engine.submit("a b", Greedy(), settings())
        for _ in range(2):
            with pytest.raises(UserError, match=r"Broken\.pick"):
                await engine.submit("a", Broken(), settings()).whole()
        assert [one.tokens for one in await good.whole()] == [
            one.tokens for one in lm.generate(["a b"], max_new_tokens=14)
        ]

    run(main)
