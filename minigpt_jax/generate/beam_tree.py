"""The hypotheses of a beam search as a tree: which survived each step, and which were dropped."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import samplers
from minigpt_jax.errors import UserError
from minigpt_jax.generate import one_row
from minigpt_jax.generate.generation import Generation, generations
from minigpt_jax.generate.one_row import OneRow
from minigpt_jax.generate.programs import programs
from minigpt_jax.generate.settings import GenerationSettings
from minigpt_jax.generate.split_text import text_after
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import Sampler, beam

if TYPE_CHECKING:
    from minigpt_jax.generate.language_model import LanguageModel


@dataclass(frozen=True)
class Node:
    """A token that at least one hypothesis had at some step.

    Attributes:
        parent: the index of the node before it; -1 for a first token.
        step: its place among the new tokens, from 1.
        token, text: the token, and what it adds to the text before it.
        logprob: the sum of the log-probabilities by which the search ranks live hypotheses, up to this token.
        beam: the rank of the hypothesis among the live ones of its step, from 0; None if it finished with this token.
        survives: whether a hypothesis that the search returns goes through the node.
        rank: the rank of the hypothesis that ends here among those that are returned, from 0; None if none ends here.
        score: the score of that hypothesis.
    """

    parent: int
    step: int
    token: int
    text: str
    logprob: float
    beam: int | None
    survives: bool = False
    rank: int | None = None
    score: float | None = None


class BeamTree(NamedTuple):
    """The hypotheses of a search."""

    prompt_text: str
    nodes: list[Node]
    """Parents come before their children."""
    generations: list[Generation]
    """The hypotheses that are returned, best first."""


def beam_tree(lm: "LanguageModel", prompt: str | list[int], sampler: Sampler, settings: GenerationSettings) -> BeamTree:
    """Runs a beam search step by step and records its hypotheses.

    Raises:
        UserError: the sampler is not beam search, or as `LanguageModel.generate` does.
    """
    if not sampler.ranks:
        raise UserError(f"{sampler.name} has no hypotheses to draw as a tree; take beam search")
    sampler.validate(len(lm.tokenizer))
    returned = getattr(sampler, "num_beams", sampler.width)
    prepared = one_row.prepare(lm, prompt, sampler, settings.replace(num_return_sequences=returned))
    row, before = prepared.row, prepared.row.ids[1:]
    decode, penalty = lm.tokenizer.decode, getattr(sampler, "length_penalty", 0.0)
    found: dict[tuple[int, ...], Node] = {}
    places: dict[tuple[int, ...], int] = {(): -1}

    def add(tokens: tuple[int, ...], logprob: float, rank: int | None) -> None:
        if tokens not in found:
            text = text_after(decode, [*before, *tokens[:-1]], tokens[-1])
            places[tokens] = len(found)
            found[tokens] = Node(places[tokens[:-1]], len(tokens), tokens[-1], text, logprob, rank)

    state = None
    for state in _states(prepared, sampler):
        for rank, (tokens, total) in enumerate(state.live):
            add(tokens, total, rank)
        for tokens, score in state.finished:
            add(tokens, score * float(beam.length_divisor(len(tokens), penalty)), None)
    assert state is not None
    texts, _ = generations(lm.tokenizer, [row], [None], state.output)
    texts = [one for one in texts if one.score > -math.inf]
    for rank, text in enumerate(texts):
        path = [tuple(text.tokens[: end + 1]) for end in range(len(text.tokens))]
        for tokens in path:
            found[tokens] = replace(found[tokens], survives=True)
        found[path[-1]] = replace(found[path[-1]], rank=rank, score=text.score)
    return BeamTree(decode(before), list(found.values()), texts)


class _Step(NamedTuple):
    """The search after a step."""

    live: list[tuple[tuple[int, ...], float]]
    """New tokens and sums of log-probabilities, best first."""
    finished: list[tuple[tuple[int, ...], float]]
    """New tokens and scores of the finished hypotheses that are kept, best first."""
    output: samplers.Output


def _states(prepared: OneRow, sampler: Sampler) -> Iterator[_Step]:
    """The search after each of its steps."""
    _, sizes, request, gpt, weights, processors = prepared
    compiled = programs(gpt, sizes.slots, sizes.room, jax.tree.structure(sampler), processors)  # pyright: ignore[reportArgumentType]
    state = compiled.start(weights, request, sampler)
    nothing = devices.split_rows(np.zeros(sizes.rows, bool))
    start = len(prepared.row.ids)
    for step in range(1, prepared.row.limit + 1):
        state = compiled.advance(state, weights, request, sampler, jnp.int32(step), nothing)
        tokens, total, running, steps = (
            leaf[0] for leaf in devices.join_rows((state.texts.tokens, state.total, state.running, state.step))
        )
        output = devices.join_rows(compiled.result(state, request, sampler))
        found = [
            (output.tokens[0, k, :length].tolist(), output.score[0, k]) for k, length in enumerate(output.length[0])
        ]
        yield _Step(
            live=[
                (tuple(tokens[k, start : start + steps].tolist()), float(total[k]))
                for k in range(len(total))
                if total[k] > -np.inf
            ],
            finished=[(tuple(ids), float(score)) for ids, score in found if score > -np.inf],
            output=output,
        )
        if not running:
            return
