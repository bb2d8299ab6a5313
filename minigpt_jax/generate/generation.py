"""A sampled text, and how it is made of a program's output."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from minigpt_jax.generate.requests import Row
from minigpt_jax.generate.texts import StopScanner, stop_length
from minigpt_jax.samplers import Output, TopTokens
from minigpt_jax.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "banned"]


class TopLogprob(NamedTuple):
    """One of the most probable tokens in some place."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, repr=False)
class Generation:
    """One sampled text.

    Attributes:
        text: without the prompt, and without the stop that ended it.
        full_text: prompt and text decoded as one, so that the space between them is there only where it belongs.
        tokens: the new ids, a stop sequence included.
        logprobs: the model's own log-probability of each, in nats, before any processor.
        finish_reason: "stop" if a stop ended it, "length" if its limit did, "banned" if bans left no token to draw,
            or if beam search found fewer hypotheses than were asked for.
        score: what beam search ranks by; for others the sum of `logprobs`.
        top_logprobs: for each new token the most probable tokens in its place, best first, by the model's own
            log-probabilities; None if they were not asked for.
    """

    prompt: str
    text: str
    full_text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    score: float
    top_logprobs: list[list[TopLogprob]] | None = None

    def __repr__(self) -> str:
        return (
            f"Generation({self.full_text!r}, {len(self.tokens)} tokens, {self.finish_reason}, score {self.score:.2f})"
        )


def generations(
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    scanners: Sequence[StopScanner | None],
    output: Output,
    full: bool = True,
) -> tuple[list[Generation], np.ndarray]:
    """The texts of a program's output, each cut where a stop begins, and which rows a stop string has ended.

    `output` is on the host, and may have more rows. `scanners` has one for each row that stop strings may end, and None
    for the others. Without `full`, `full_text` is left empty, which halves the time that decoding takes.
    """
    decode = tokenizer.decode
    generations, found = [], np.zeros(len(rows), bool)
    for b, (row, scanner) in enumerate(zip(rows, scanners, strict=True)):
        sequences = row.settings.stop_sequences
        for k in range(row.returned):
            tokens = output.tokens[b, k, : int(output.length[b, k])].tolist()
            stopped = bool(output.stopped[b, k])
            if scanner is not None and scanner.scan(tokens):
                found[b] = stopped = True
                tokens, text = tokens[: scanner.tokens], scanner.text
                # Both decode the same last tokens, so what was cut off stands at the end of the whole text too.
                rest = decode(tokens)[len(text) :]
                full_text = decode(row.ids[1:] + tokens).removesuffix(rest) if full else ""
            else:
                shown = tokens[: len(tokens) - stop_length(tokens, sequences)] if stopped else tokens
                text, full_text = decode(shown), decode(row.ids[1:] + shown) if full else ""
            logprobs = output.logprobs[b, k, : len(tokens)].tolist()
            generations.append(
                Generation(
                    prompt=row.prompt,
                    text=text,
                    full_text=full_text,
                    tokens=tokens,
                    logprobs=logprobs,
                    finish_reason="stop" if stopped else "length" if len(tokens) == row.limit else "banned",
                    score=math.fsum(logprobs) if found[b] else float(output.score[b, k]),
                    top_logprobs=_top_logprobs(tokenizer, output.top, (b, k), len(tokens), row.settings.top_logprobs),
                )
            )
    return generations, found


def _top_logprobs(
    tokenizer: Tokenizer, top: TopTokens | None, place: tuple[int, int], length: int, count: int
) -> list[list[TopLogprob]] | None:
    """The `count` most probable tokens in the place of each of the first `length` new tokens; None for none."""
    if top is None or not count:
        return None
    texts = functools.cache(lambda token: tokenizer.decode([token]) if token < len(tokenizer) else "")
    return [
        [TopLogprob(token, texts(token), logprob) for token, logprob in zip(tokens, logprobs, strict=True)]
        for tokens, logprobs in zip(
            top.tokens[place][:length, :count].tolist(), top.logprobs[place][:length, :count].tolist(), strict=True
        )
    ]
