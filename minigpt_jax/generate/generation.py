"""A sampled text, and how it is made of a program's output."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from minigpt_jax.generate.texts import Decode, StopScanner, begun
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
    prompts: Sequence[str],
    ids: Sequence[list[int]],
    limits: Sequence[int],
    copies: int,
    kept: int,
    sequences: Sequence[Sequence[int]],
    scanners: Sequence[StopScanner],
    output: Output,
) -> tuple[list[Generation], np.ndarray]:
    """The texts of an output, cut where a stop begins, and which rows a stop string has ended."""
    output = jax.tree.map(np.asarray, devices.join_rows(output))
    generations, found = [], np.zeros(len(prompts) * copies, bool)
    for row in range(len(found)):
        prompt = row // copies
        for k in range(kept):
            tokens = output.tokens[row, k, : int(output.length[row, k])].tolist()
            stopped = bool(output.stopped[row, k])
            if scanners and scanners[row].scan(tokens):
                found[row] = stopped = True
                tokens, text = tokens[: scanners[row].tokens], scanners[row].text
                # Both decode the same last tokens, so what was cut off stands at the end of the whole text too.
                full_text = decode(ids[prompt][1:] + tokens).removesuffix(decode(tokens)[len(text) :])
            else:
                shown = tokens[: len(tokens) - begun(tokens, sequences)] if stopped else tokens
                text, full_text = decode(shown), decode(ids[prompt][1:] + shown)
            logprobs = [float(x) for x in output.logprobs[row, k, : len(tokens)]]
            score = float(output.score[row, k])
            generations.append(
                Generation(
                    prompts[prompt],
                    text,
                    full_text,
                    tokens,
                    logprobs,
                    "stop" if stopped else "length" if len(tokens) == limits[prompt] else "banned",
                    math.fsum(logprobs) if found[row] else score,
                )
            )
    return generations, found
