"""A sampled text, and how it is made of a program's output."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from minigpt_jax.generate.requests import Row
from minigpt_jax.generate.settings import GenerationSettings
from minigpt_jax.generate.texts import Decode, StopScanner, stop_overlap
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import Output

FinishReason = Literal["stop", "length", "banned"]


@dataclass(frozen=True, repr=False)
class Generation:
    """One sampled text.

    Attributes:
        text: without the prompt, and without the stop that ended it.
        full_text: prompt and text decoded as one, so that the space between them is there only where it belongs.
        tokens: the new ids, a stop sequence included.
        logprobs: the model's own log-probability of each, in nats, before any processor.
        finish_reason: "stop" if a stop ended it, "length" if its limit did, "banned" if bans left no token to draw.
        score: what beam search ranks by; for others the sum of `logprobs`.
    """

    prompt: str
    text: str
    full_text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    score: float

    def __repr__(self) -> str:
        return (
            f"Generation({self.full_text!r}, {len(self.tokens)} tokens, {self.finish_reason}, score {self.score:.2f})"
        )


def generations(
    decode: Decode,
    rows: Sequence[Row],
    settings: GenerationSettings,
    scanners: Sequence[StopScanner],
    output: Output,
) -> tuple[list[Generation], np.ndarray]:
    """The texts of a program's output, each cut where a stop begins, and which rows a stop string has ended.

    `scanners` has one for each row if there are stop strings, and is empty otherwise.
    """
    output = jax.tree.map(np.asarray, devices.join_rows(output))
    sequences = settings.stop_sequences
    generations, found = [], np.zeros(len(rows), bool)
    for b, row in enumerate(rows):
        for k in range(row.returned):
            tokens = output.tokens[b, k, : int(output.length[b, k])].tolist()
            stopped = bool(output.stopped[b, k])
            if scanners and scanners[b].scan(tokens):
                found[b] = stopped = True
                tokens, text = tokens[: scanners[b].tokens], scanners[b].text
                # Both decode the same last tokens, so what was cut off stands at the end of the whole text too.
                full_text = decode(row.ids[1:] + tokens).removesuffix(decode(tokens)[len(text) :])
            else:
                shown = tokens[: len(tokens) - stop_overlap(tokens, sequences)] if stopped else tokens
                text, full_text = decode(shown), decode(row.ids[1:] + shown)
            logprobs = [float(x) for x in output.logprobs[b, k, : len(tokens)]]
            generations.append(
                Generation(
                    prompt=row.prompt,
                    text=text,
                    full_text=full_text,
                    tokens=tokens,
                    logprobs=logprobs,
                    finish_reason="stop" if stopped else "length" if len(tokens) == row.limit else "banned",
                    score=math.fsum(logprobs) if found[b] else float(output.score[b, k]),
                )
            )
    return generations, found
