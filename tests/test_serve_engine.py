"""The engine: many callers' texts, sampled together, are those that `generate` returns for each alone."""

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import pytest
from test_generate import WINDOW, language_model

from minigpt_jax import Beam, Contrastive, Greedy, Random, Sampler, TopK, TopP, UserError, samplers
from minigpt_jax.generate import GenerationSettings, LanguageModel
from minigpt_jax.generate.text_stream import TextStream
from minigpt_jax.serve.engine import MAX_TEXTS, MAX_WIDTH, Engine, QueueFullError
from minigpt_jax.serve.pace import Pace
from minigpt_jax.serve.ticket import Update

ROOM = 400
T = TypeVar("T")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model(positions="rope", convolution=3, pointer=8, tied_embeddings=True)


@pytest.fixture(scope="module")
def engine(lm: LanguageModel) -> Iterator[Engine]:
    engine = Engine(lm, "random", ROOM, sizes=(1, 4))
    yield engine
    engine.close()


def run(main: Callable[[], Awaitable[T]]) -> T:
    return asyncio.run(asyncio.wait_for(main(), 300))  # pyright: ignore[reportArgumentType]


ASKED: list[tuple[str | list[int], Sampler, dict[str, Any]]] = [
    ("a b c", Greedy(), {}),
    ("", Random(temperature=0.8), {"num_return_sequences": 3, "seed": 1}),
    ("the cat", Random(temperature=1.2), {"max_new_tokens": 16, "repetition_penalty": 1.3, "seed": 2}),
    ("hello . the", TopP(0.8, temperature=0.7), {"seed": 3, "min_new_tokens": 4, "stop": ["a", "the"]}),
    ([4, 5, 6], TopP(0.5), {"seed": 3, "presence_penalty": 0.5, "frequency_penalty": 0.3}),
    ("b", TopP(0.95), {"seed": 4, "stop": [5, (6, 7)], "no_repeat_ngram": 2}),
    ("c", Random(1.1), {"seed": 5, "logit_bias": {4: float("-inf"), 9: 2.0}, "top_logprobs": 3}),
    ("g h i j k l m n o p q r", Contrastive(k=4, alpha=0.5), {}),
    ("a", Contrastive(k=3, alpha=0.2), {"max_new_tokens": 5}),
    ("a b", Beam(num_beams=3), {"num_return_sequences": 2}),
    ("c d e", Beam(num_beams=4, length_penalty=1.5), {"stop": [5], "max_new_tokens": 6}),
]


def settings(**changes: Any) -> GenerationSettings:
    return GenerationSettings(**{"max_new_tokens": 14, **changes})


def test_texts_of_many_callers_are_those_of_generate(engine: Engine, lm: LanguageModel):
    async def together() -> list[list[Any]]:
        waits = []
        for i, (prompt, sampler, changes) in enumerate(ASKED):
            streamed = i % 2 == 0
            waits.append(engine.submit([prompt], sampler, settings(**changes), streamed=streamed).whole())
            if i == 4:
                await asyncio.sleep(0.05)  # the rest joins while these run
        return await asyncio.gather(*waits)

    alone = [lm.generate([prompt], sampler, settings=settings(**changes)) for prompt, sampler, changes in ASKED]
    for _ in range(2):  # with one row at first, while programs are compiled, and then with all sizes
        for expected, found in zip(alone, run(together), strict=True):
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
                plain = dataclasses.replace(one, logprobs=other.logprobs, score=other.score, top_logprobs=None)
                assert plain == dataclasses.replace(other, top_logprobs=None)
                for mine, theirs in zip(one.top_logprobs or [], other.top_logprobs or [], strict=True):
                    assert [top.id for top in mine] == [top.id for top in theirs]
        while engine.compiling():
            threading.Event().wait(0.05)


def test_several_prompts_in_one_request_and_row_ids(engine: Engine, lm: LanguageModel):
    async def main() -> list[Any]:
        asked = settings(seed=9, num_return_sequences=2)
        return await engine.submit(["a b", "c"], Random(), asked, row_ids=[7, 3]).whole()

    expected = lm.generate(["a b", "c"], Random(), row_ids=[7, 3], settings=settings(seed=9, num_return_sequences=2))
    assert [one.tokens for one in run(main)] == [one.tokens for one in expected]


def test_updates_grow_and_add_up_to_the_text(engine: Engine, lm: LanguageModel):
    asked = settings(seed=11, stop=["b"], max_new_tokens=40)

    async def main() -> tuple[list[Update], str]:
        text, updates = TextStream(lm.tokenizer, asked), []
        streamed = ""
        async for update in engine.submit("the cat", Random(), asked, streamed=True):
            updates.append(update)
            streamed += text.piece(update.generations[0], update.finished[0])
        return updates, streamed

    updates, streamed = run(main)
    [expected] = lm.generate(["the cat"], Random(), settings=asked)
    assert streamed == expected.text
    tokens = [update.generations[0].tokens for update in updates]
    assert [update.done for update in updates] == [False] * (len(updates) - 1) + [True]
    assert len(tokens[0]) == 1 or len(expected.tokens) == 1  # the first is not held back for others
    assert all(expected.tokens[: len(some)] == some for some in tokens)


def test_nothing_compiles_for_what_has_been_asked_before(engine: Engine, compilations: list[str]):
    async def ask(seed: int) -> None:
        waits = []
        for prompt, temperature in (("a", 0.5), ("b c d", 0.9), ("", 1.1), ("the", 0.7), ("e f", 0.3)):
            asked = settings(seed=seed, repetition_penalty=1.0 + seed / 10)
            waits.append(engine.submit(prompt, TopP(0.9, temperature=temperature), asked).whole())
        await asyncio.gather(*waits)

    run(lambda: ask(1))
    while engine.compiling():
        threading.Event().wait(0.05)
    run(lambda: ask(2))
    del compilations[:]
    for seed in (3, 4):
        run(lambda seed=seed: ask(seed))
    assert compilations == []


def test_a_caller_that_leaves_frees_its_row(lm: LanguageModel):
    engine = Engine(lm, "random", ROOM, sizes=(1,))

    async def main() -> int:
        long = engine.submit("a", Greedy(), settings(max_new_tokens=ROOM), streamed=True)
        async for update in long:
            if update.generations[0].tokens:
                break
        long.cancel()
        waiting = engine.submit("b", Greedy(), settings(max_new_tokens=ROOM))
        waiting.cancel()  # before it has a row
        await engine.submit("b", Greedy(), settings()).whole()
        last = long._update
        assert last is not None
        return len(last.generations[0].tokens)

    try:
        assert run(main) < ROOM
        [pool] = engine._pools.values()
        assert pool.idle
        assert pool.finished == 1
    finally:
        engine.close()


def test_a_stop_string_frees_the_row_on_the_device_too(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Pace, "observe", lambda *_: None)  # chunks of 8 tokens
    engine = Engine(lm, "random", ROOM, sizes=(2,))
    stopped = [settings(seed=seed, stop=["b"], max_new_tokens=ROOM) for seed in range(5)]

    async def main() -> list[Any]:
        texts = [engine.submit("the cat", Random(), one).whole() for one in stopped]
        [other] = await engine.submit("a", Random(), settings(max_new_tokens=200)).whole()
        return [*(one for [one] in await asyncio.gather(*texts)), other]

    try:
        *texts, other = run(main)
        alone = [lm.generate(["the cat"], Random(), settings=asked)[0] for asked in stopped]
        assert [(one.text, one.tokens) for one in texts] == [(one.text, one.tokens) for one in alone]
        assert all(len(one.tokens) < ROOM for one in texts)
        assert other.tokens == lm.generate(["a"], Random(), 200)[0].tokens
        [pool] = engine._pools.values()
        assert pool._state is not None
        assert not np.asarray(pool._state.running).any()
        longest = max(len(one.tokens) for one in texts)
        assert min(pool._state.step) <= longest + 3 * 8  # it is found a chunk late, but before the other text ends
    finally:
        engine.close()


def test_the_queue_is_bounded(lm: LanguageModel):
    engine = Engine(lm, "random", ROOM, sizes=(1,), max_waiting=3)

    async def main() -> None:
        tickets = [engine.submit("a", Greedy(), settings(max_new_tokens=50)) for _ in range(3)]
        with pytest.raises(QueueFullError, match="waiting"):
            engine.submit("a", Greedy(), settings(num_return_sequences=1))
        await asyncio.gather(*(ticket.whole() for ticket in tickets))
        await engine.submit("a", Greedy(), settings()).whole()  # there is room again

    try:
        run(main)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("sampler", "changes", "message"),
    [
        (Random(temperature=-1.0), {}, "--temperature"),
        (Greedy(), {"max_new_tokens": ROOM + 1}, f"--max-new-tokens {ROOM + 1}"),
        (Greedy(), {"logit_bias": {999: 1.0}}, "--logit-bias 999"),
        (Greedy(), {"logit_bias": {5: 1e9}}, "--logit-bias"),
        (Greedy(), {"num_return_sequences": 2}, "--num-return-sequences 2"),
        (Random(), {"num_return_sequences": MAX_TEXTS + 1}, f"{MAX_TEXTS + 1} texts"),
        (Beam(MAX_WIDTH + 1), {}, f"--num-beams: this server's beam search is no wider than {MAX_WIDTH}"),
        (Beam(3_000_000_000), {}, "--num-beams"),
        (Contrastive(MAX_WIDTH + 1), {}, "--k: this server's contrastive search"),
        (Beam(2), {"stop": ["a"]}, "--stop"),
    ],
)
def test_mistakes_are_told_at_once(engine: Engine, sampler: Sampler, changes: dict[str, Any], message: str):
    async def main() -> None:
        with pytest.raises(UserError, match=message):
            engine.submit("a", sampler, settings(**changes))

    run(main)


def test_too_many_texts_are_told_before_anything_is_made_of_them(
    engine: Engine, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    def planned(*_: Any) -> None:
        raise AssertionError("a row is made for each text")

    monkeypatch.setattr(lm, "plan", planned)
    for prompts, copies in ((1, 10_000), (MAX_TEXTS // 2 + 1, 2)):
        with pytest.raises(UserError, match="texts at once"):
            engine.submit(["a"] * prompts, Random(), settings(num_return_sequences=copies))


def test_close_finishes_what_has_been_asked_for(lm: LanguageModel):
    engine = Engine(lm, "random", ROOM, sizes=(1, 4))

    async def main() -> list[Any]:
        tickets = [engine.submit("a", Random(), settings(seed=seed, max_new_tokens=80)) for seed in range(6)]
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        found = await asyncio.gather(*(ticket.whole() for ticket in tickets))
        await closing
        with pytest.raises(QueueFullError, match="shutting down"):
            engine.submit("a", Greedy(), settings())
        return found

    for seed, [one] in enumerate(run(main)):
        assert one.tokens == lm.generate(["a"], Random(), 80, seed=seed)[0].tokens


@pytest.mark.parametrize(
    "several",
    [
        [Random(0.5), Random(0.0), Random(1.5)],
        [TopP(0.3), TopP(0.9, temperature=2.0), TopP(1.0)],
        [TopK(1), TopK(5), TopK(20, temperature=0.5)],
        [Random(0.9, 9, 0.9, 0.01, 0.9), Random(1.1, 4, 0.5, 0.1, 0.8), Random(0.8, 30, 1.0, 0.001, 1.0)],
        [Contrastive(3, 0.1), Contrastive(4, 0.9), Contrastive(3, 0.5)],
        [Beam(3, 0.1), Beam(4, 2.0), Beam(3, 0.6)],
    ],
    ids=lambda several: several[0].name,
)
def test_a_sampler_per_row_samples_each_row_by_its_own(lm: LanguageModel, several: list[Sampler]):
    from minigpt_jax.generate import programs, requests

    plan = lm.plan(["a b c", "", "the cat"], Greedy(), [settings()] * 3)
    sizes = requests.Sizes(3, 8, 16, WINDOW)
    request = requests.request(plan.rows, sizes, lm.tokenizer, lm.model.vocabulary_size)

    def decoded(sampler: Sampler) -> Any:
        def function(weights: Any, request: Any, sampler: Any) -> Any:
            apply = lambda *args, **kwargs: lm.model.apply({"params": weights}, *args, **kwargs)  # noqa: E731
            prefill = lambda tokens, length: programs._prefill(apply, WINDOW, tokens, length)  # noqa: E731
            step = lambda *args: apply(*args, method="step")  # noqa: E731
            return samplers.decode(prefill, step, sampler, request, 16)  # pyright: ignore[reportArgumentType]

        return jax.tree.map(np.asarray, jax.jit(function)(lm.weights, request, sampler))

    together = decoded(samplers.per_row(several))
    for row, sampler in enumerate(several):
        alone = decoded(sampler)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[row])
        np.testing.assert_allclose(together.score[row], alone.score[row], rtol=1e-5)
