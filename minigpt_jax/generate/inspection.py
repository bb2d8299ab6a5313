"""What a method chose from at each token of a text that it has generated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from minigpt_jax.errors import UserError
from minigpt_jax.generate import one_row
from minigpt_jax.generate.beam_tree import Node, beam_tree
from minigpt_jax.generate.programs import inspector
from minigpt_jax.generate.settings import GenerationSettings
from minigpt_jax.generate.split_text import text_after
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import Sampler, contrastive

if TYPE_CHECKING:
    from minigpt_jax.generate.language_model import LanguageModel


class Candidate(NamedTuple):
    """A token that could have stood at some position.

    Attributes:
        logprob: the model's own log-probability.
        kept: whether the method could have taken it there; None if the method does not say.
        chance: the probability with which the method draws it; None if it draws none, as beam search does.
        score: what contrastive search gives it, the greatest of which is taken; None for others.
    """

    id: int
    text: str
    logprob: float
    kept: bool | None
    chance: float | None
    score: float | None


_CANDIDATES = 10
"""How many of the most probable tokens are described at each position by default."""


@dataclass(frozen=True)
class Inspected:
    """A position of a text.

    Attributes:
        given: the token there.
        rank: its place among all tokens, by the model's probability; 1 for the most probable.
        candidates: the most probable tokens, best first.
        kept_count: how many tokens of the whole vocabulary the method kept; None if it does not say.
        kept_mass: the sum of the model's probabilities of these; None if the method does not say.
    """

    given: Candidate
    rank: int
    candidates: list[Candidate]
    kept_count: int | None
    kept_mass: float | None


def inspect(
    lm: "LanguageModel",
    prompt: str | list[int],
    tokens: Sequence[int],
    sampler: Sampler,
    settings: GenerationSettings,
    count: int | None = None,
) -> list[Inspected]:
    """Inspects each of the `tokens` that `sampler` has generated after the prompt, with these settings.

    Raises:
        UserError: the tokens are no ids of the vocabulary, do not fit in the window, or `count` is not allowed.
    """
    count = min(_CANDIDATES, lm.model.vocabulary_size) if count is None else count
    if not 1 <= count <= lm.model.vocabulary_size:
        raise UserError(f"count {count}: give a number from 1 to {lm.model.vocabulary_size:,}, the vocabulary's size")
    if not tokens:
        return []
    for token in tokens:
        if not 0 <= token < lm.model.vocabulary_size:
            raise UserError(f"tokens: there is no token {token}; ids go from 0 to {lm.model.vocabulary_size - 1:,}")
    # Stop strings end a text, but do not change what may be drawn.
    asked = settings.replace(num_return_sequences=1, stop=settings.stop_sequences)
    # A text that still grows keeps the shapes of the whole one.
    asked = asked.replace(max_new_tokens=max(settings.max_new_tokens or 0, len(tokens)))
    row, sizes, request, gpt, weights, processors = one_row.prepare(lm, prompt, sampler, asked)
    given_BM = np.zeros((sizes.rows, sizes.room), np.int32)
    given_BM[0, : len(tokens)] = tokens
    program = inspector(gpt, sizes.slots, jax.tree.structure(sampler), processors, count)  # pyright: ignore[reportArgumentType]
    inspection = program(weights, request, sampler, devices.split_rows(given_BM))
    found = jax.tree.map(lambda leaf: leaf[0, : len(tokens)], devices.join_rows(inspection))
    kept, chances, scores = found.kept, None, None
    if sampler.driver is contrastive:
        scores = found.value
    elif found.value is not None:
        chances = np.exp(found.value)
    if sampler.ranks:
        kept = _extended(
            beam_tree(lm, prompt, sampler, settings.replace(stop=settings.stop_sequences)).nodes, tokens, found.tokens
        )
    before = row.ids[1:]

    def candidate(at: int, n: int) -> Candidate:
        value = lambda leaf: None if leaf is None else leaf[at, n].item()  # noqa: E731
        token = int(found.tokens[at, n])
        text = text_after(lm.tokenizer.decode, [*before, *tokens[:at]], token)
        if not text or "\ufffd" in text:  # a special token, or a part of a character
            text = lm.tokenizer.piece(token) or text
        score = value(scores)
        return Candidate(
            token,
            text,
            float(found.logprobs[at, n]),
            value(kept),
            value(chances),
            score if score is not None and math.isfinite(score) else None,
        )

    return [
        Inspected(
            given=candidate(at, count),
            rank=int(found.rank[at]),
            candidates=[candidate(at, n) for n in range(count)],
            kept_count=None if found.kept_count is None else int(found.kept_count[at]),
            kept_mass=None if found.kept_mass is None else float(found.kept_mass[at]),
        )
        for at in range(len(tokens))
    ]


def _extended(nodes: Sequence[Node], tokens: Sequence[int], candidates_MN: np.ndarray) -> np.ndarray:
    """Which candidates at each position a beam search kept as hypotheses that begin with the tokens before."""
    kept = np.zeros(candidates_MN.shape, bool)
    place = -1
    for at, token in enumerate(tokens):
        following = {node.token: index for index, node in enumerate(nodes) if node.parent == place}
        kept[at] = np.isin(candidates_MN[at], list(following))
        if token not in following:
            break
        place = following[token]
    return kept
