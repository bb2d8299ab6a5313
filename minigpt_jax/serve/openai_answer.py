"""The texts of a request for a completion, as the bodies and events of OpenAI's API."""

import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from minigpt_jax.generate.generation import Generation
from minigpt_jax.generate.scoring import TokenScores, score_tokens
from minigpt_jax.generate.split_text import offsets
from minigpt_jax.generate.text_stream import TextStream
from minigpt_jax.serve.engine import Engine
from minigpt_jax.serve.openai_request import Completion
from minigpt_jax.serve.ticket import Update


class Answer:
    """The answer to one request, which has started when this is made.

    Raises:
        UserError, QueueFullError: as `Engine.submit` does, also where no new token is asked for.
    """

    def __init__(self, engine: Engine, asked: Completion) -> None:
        self._engine, self._asked, self._lm = engine, asked, engine.lm
        engine.check(len(asked.prompts), asked.sampler, asked.settings)
        self._prompts = [ids[1:] for ids in self._lm.ids(asked.prompts)]
        self._scores: list[TokenScores] = []
        self._head = {
            "id": f"cmpl-{random.getrandbits(96):024x}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": engine.name,
            "system_fingerprint": f"step-{self._lm.step}",
        }
        self._ticket = None
        if asked.generates:
            self._ticket = engine.submit(
                asked.prompts, asked.sampler, asked.settings, streamed=asked.stream, full=asked.echo
            )

    async def body(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        await self._score()
        texts = await self._ticket.whole() if self._ticket else self._prompts_alone()
        choices = [
            self._choice(i, text.full_text if self._asked.echo else text.text, text, 0, len(text.tokens), True)
            for i, text in enumerate(texts)
        ]
        return self._head | {"choices": choices, "usage": self._usage(texts)}

    async def events(self) -> AsyncIterator[tuple[list[dict[str, Any]], bool]]:
        """The bodies of a streamed answer, those of an update at once, and whether they are the last ones.

        Of each choice they have its growing text, and at last its end.
        """
        await self._score()
        streams: dict[int, TextStream] = {}
        shown: dict[int, int] = {}  # tokens whose log-probabilities have been sent
        ended: set[int] = set()
        async for update in self._updates():
            bodies = []
            for i, (text, finished) in enumerate(zip(update.generations, update.finished, strict=True)):
                if i in ended:
                    continue
                if i not in streams:
                    prompt = self._prompt_of(i) if self._asked.echo else None
                    streams[i] = TextStream(self._lm.tokenizer, self._asked.settings, prompt)
                piece = streams[i].piece(text, finished)
                if piece or finished:
                    first, last = shown.get(i, 0), len(text.tokens)
                    bodies.append(self._head | {"choices": [self._choice(i, piece, text, first, last, finished)]})
                    shown[i] = last
                if finished:
                    ended.add(i)
            if update.done and self._asked.include_usage:
                bodies.append(self._head | {"choices": [], "usage": self._usage(update.generations)})
            if bodies or update.done:
                yield bodies, update.done

    def cancel(self) -> None:
        """Frees the rows of texts that have not ended."""
        if self._ticket is not None:
            self._ticket.cancel()

    async def _updates(self) -> AsyncIterator[Update]:
        if self._ticket is None:
            texts = self._prompts_alone()
            yield Update(texts, [True] * len(texts))
            return
        async for update in self._ticket:
            yield update

    async def _score(self) -> None:
        """Computes the log-probabilities of the prompts' tokens, if they are to be sent."""
        if self._asked.echo and self._asked.logprobs is not None:
            self._scores = await self._engine.beside(score_tokens, self._lm, self._prompts, self._asked.logprobs)

    def _prompts_alone(self) -> list[Generation]:
        """The texts of a request that asks for no new token."""
        texts = [self._lm.tokenizer.decode(ids) for ids in self._prompts]
        copies = self._asked.settings.num_return_sequences
        return [Generation(text, "", text, [], [], "length", 0.0) for text in texts for _ in range(copies)]

    def _prompt_of(self, index: int) -> list[int]:
        return self._prompts[index // self._asked.settings.num_return_sequences]

    def _choice(
        self, index: int, piece: str, text: Generation, first: int, last: int, finished: bool
    ) -> dict[str, Any]:
        """A choice with a piece of its text, and the log-probabilities of `text.tokens[first:last]`."""
        reason = {"banned": "stop"}.get(text.finish_reason, text.finish_reason) if finished else None
        logprobs = None if self._asked.logprobs is None else self._logprobs(index, text, first, last)
        return {"index": index, "text": piece, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, text: Generation, first: int, last: int) -> dict[str, Any]:
        tokens, logprobs = text.tokens[first:last], text.logprobs[first:last]
        top = [*(text.top_logprobs or [])][first:last]
        before = text.tokens[:first]
        if self._asked.echo:
            before = [*self._prompt_of(index), *before] if first else []
            if not first:
                scores = self._scores[index // self._asked.settings.num_return_sequences]
                tokens, logprobs = [*scores.tokens, *tokens], [*scores.logprobs, *logprobs]
                top = [*scores.top_logprobs, *top]
        decode = self._lm.tokenizer.decode
        # Of several pieces with the same text, the most probable one comes first and stays.
        by_text = [{one.text: one.logprob for one in reversed(best)} for best in top]
        return {
            "tokens": [decode([token]) for token in tokens],
            "token_logprobs": logprobs,
            "top_logprobs": by_text if self._asked.logprobs else None,
            "text_offset": offsets(decode, before, tokens),
        }

    def _usage(self, texts: Sequence[Generation]) -> dict[str, int]:
        prompt, new = sum(map(len, self._prompts)), sum(len(text.tokens) for text in texts)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


_encode = json.JSONEncoder(ensure_ascii=False).encode


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {_encode(body)}\n\n"
