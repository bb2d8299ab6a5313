"""How the engine spends its time and memory: what starts together, how long chunks are, what is freed."""

import asyncio
import gc
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from test_generate import language_model
from test_serve_engine import ROOM, run, settings

from minigpt_jax import Beam, Random
from minigpt_jax.generate import LanguageModel
from minigpt_jax.serve import engine as engine_module
from minigpt_jax.serve import pool as pool_module
from minigpt_jax.serve.engine import Engine
from minigpt_jax.serve.pace import CHUNK_SECONDS, Pace
from minigpt_jax.serve.pool import Pool
from minigpt_jax.serve.ticket import Ticket, publish


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model(positions="rope")


@pytest.fixture(scope="module")
def engine(lm: LanguageModel) -> Iterator[Engine]:
    engine = Engine(lm, "random", ROOM, sizes=(1,))
    yield engine
    engine.close()


def test_requests_that_come_together_start_together(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    engine = Engine(lm, "random", ROOM, sizes=(4,))
    started: list[int] = []
    start = Pool._start

    def recorded(pool: Pool, batch: Any, *sizes: int) -> None:
        started.append(len(batch))
        start(pool, batch, *sizes)

    monkeypatch.setattr(Pool, "_start", recorded)
    monkeypatch.setattr(engine_module, "_MOST_GATHERING", 5.0)

    async def main() -> None:
        async def ask(seed: int) -> None:
            await asyncio.sleep(0)  # each in a round of the event loop of its own
            await engine.submit("a b", Random(), settings(seed=seed)).whole()

        await asyncio.gather(*map(ask, range(4)))

    try:
        run(main)
        while engine.compiling():
            time.sleep(0.01)
        time.sleep(0.5)  # until the engine's thread rests: while it works, it starts what comes at its next turn
        del started[:]
        run(main)
        assert started == [4]
    finally:
        engine.close()


def test_a_finished_request_is_freed_at_once(engine: Engine):
    async def main() -> Any:
        ticket = engine.submit("a b", Random(), settings(seed=1, stop=["b"]), streamed=True)
        async for _ in ticket:
            pass
        found = weakref.ref(ticket)
        del ticket
        for _ in range(200):  # the engine forgets it in its last turn
            if found() is None:
                break
            await asyncio.sleep(0.05)
        return found

    gc.disable()
    try:
        assert run(main)() is None
    finally:
        gc.enable()


def test_a_text_is_told_by_one_update_for_many_tokens(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """Updates cost time: after the first tokens there is one for each chunk, not one for each token."""

    lengths: list[int] = []

    def recorded(tickets: Iterable[Ticket]) -> None:
        """A slow reader may miss updates, so they are counted where they are made."""
        told = list(tickets)
        lengths.extend(len(ticket.texts[0][0].tokens) for ticket in told)
        publish(told)

    async def main() -> None:
        await engine.submit("a b", Random(), settings(seed=1, max_new_tokens=ROOM), streamed=True).whole()

    monkeypatch.setattr(pool_module, "publish", recorded)
    run(main)
    assert lengths[:2] == [1, 8]
    assert lengths[-1] == ROOM
    assert len(lengths) < ROOM / 8


def test_beam_search_runs_in_few_chunks(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """Nothing of its text is known before a hypothesis has finished, so nobody waits for its first token."""
    chunks: list[int] = []
    launch = Pool._launch

    def recorded(pool: Pool) -> None:
        launch(pool)
        assert pool._running is not None
        chunks.append(pool._running.count)

    monkeypatch.setattr(Pool, "_launch", recorded)

    async def main() -> None:
        await engine.submit("a b", Beam(2), settings(max_new_tokens=60)).whole()

    run(main)
    assert sum(chunks) >= 60
    assert len(chunks) <= 12


@pytest.mark.parametrize(
    ("chunks", "tokens"),
    [
        ([(8, CHUNK_SECONDS, True)], 8),
        ([(8, CHUNK_SECONDS / 2, True)], 16),
        ([(8, CHUNK_SECONDS / 100, True)], 16),  # at most twice as many at once
        ([(8, CHUNK_SECONDS * 4, True)], 2),
        ([(8, CHUNK_SECONDS * 100, True), (1, CHUNK_SECONDS / 3, True), (2, CHUNK_SECONDS, True)], 2),
        ([(8, CHUNK_SECONDS * 9, False)], 16),  # the host was late, not the device
        ([(1, CHUNK_SECONDS, True)], 8),  # too short to tell
    ],
)
def test_a_chunk_lasts_as_long_as_it_should(chunks: list[tuple[int, float, bool]], tokens: int):
    pace = Pace()
    for chunk in chunks:
        pace.observe(*chunk)
    assert pace.tokens == tokens


@pytest.mark.parametrize(("rest", "part"), [(1, 1), (8, 8), (11, 11), (13, 7), (81, 9), (800, 8)])
def test_the_last_of_a_few_chunks_is_not_short(rest: int, part: int):
    assert Pace().part_of(rest) == part
