"""The model's log-probability of each token of a text, and the most probable tokens in its place."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import model
from minigpt_jax.errors import UserError
from minigpt_jax.generate.continuations import batch_rows
from minigpt_jax.generate.generation import TopLogprob
from minigpt_jax.generate.language_model import LanguageModel
from minigpt_jax.model import GPT
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import selection
from minigpt_jax.samplers.buckets import power_bucket, row_bucket


class TokenScores(NamedTuple):
    """One text's tokens.

    Attributes:
        tokens: the ids, without the start token.
        logprobs: the log-probability of each, given the tokens before it, in nats.
        top_logprobs: for each token the most probable ones in its place, best first.
    """

    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[list[TopLogprob]]


def score_tokens(lm: LanguageModel, texts: Sequence[str | list[int]], top_logprobs: int = 0) -> list[TokenScores]:
    """Scores the tokens of each text, which is a string or a list of token ids without the start token.

    Raises:
        UserError: a text does not fit in the window, there is no such token, or `top_logprobs` is not allowed.
    """
    window, size = lm.model.sequence_length, lm.model.vocabulary_size
    if not 0 <= top_logprobs <= size:
        raise UserError(f"--top-logprobs {top_logprobs}: give a whole number from 0 (none) to {size:,}")
    ids = lm.ids(texts)
    for tokens in ids:
        if len(tokens) > window + 1:
            raise UserError(f"a text has {len(tokens) - 1} tokens, and the window holds {window}; shorten it")
    if not ids:
        return []
    width = power_bucket(max(map(len, ids)) - 1, 8, window)
    gpt: Any = lm.model
    program = _program(gpt, power_bucket(top_logprobs, 8, size) if top_logprobs else 1)
    text_of = functools.cache(lambda token: lm.tokenizer.decode([token]) if token < len(lm.tokenizer) else "")
    scores, rows = [], batch_rows(width * size)
    for first in range(0, len(ids), rows):
        part = ids[first : first + rows]
        tokens_BU = np.full((row_bucket(len(part), devices.local_devices()), width + 1), lm.tokenizer.special.start)
        for row, tokens in zip(tokens_BU, part, strict=False):
            row[: len(tokens)] = tokens
        found = devices.join_rows(program(lm.weights, devices.split_rows(tokens_BU.astype(np.int32))))
        for tokens, logprobs_T, top_TN, top_logprobs_TN in zip(part, *found, strict=False):
            count = len(tokens) - 1
            top = [
                [TopLogprob(one, text_of(one), logprob) for one, logprob in zip(best, logprobs, strict=True)]
                for best, logprobs in zip(
                    top_TN[:count, :top_logprobs].tolist(), top_logprobs_TN[:count, :top_logprobs].tolist(), strict=True
                )
            ]
            scores.append(TokenScores(tokens[1:], logprobs_T[:count].tolist(), top))
    return scores


@functools.lru_cache(16)
def _program(gpt: GPT, top: int) -> Any:
    """The program (weights, tokens [B, T+1]) -> log-probabilities [B, T] of the tokens after each row's first one, and
    the most probable tokens [B, T, N] in their places with their log-probabilities."""

    def scored(weights: Any, tokens_BU: Any) -> Any:
        logprobs_BTV = jax.nn.log_softmax(model.logits(gpt, weights, tokens_BU[:, :-1]))
        own_BT = jnp.take_along_axis(logprobs_BTV, tokens_BU[:, 1:, None], axis=2)[:, :, 0]
        rows, width, size = logprobs_BTV.shape
        values_RN, tokens_RN = selection.top(logprobs_BTV.reshape(rows * width, size), top)
        return own_BT, tokens_RN.reshape(rows, width, top), values_RN.reshape(rows, width, top)

    return devices.compile_rows(scored, (None, 0))
