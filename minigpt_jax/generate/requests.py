"""From prompts and settings to the rows of one compiled program."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigpt_jax import samplers
from minigpt_jax.errors import UserError
from minigpt_jax.generate.programs import bucket, row_bucket
from minigpt_jax.generate.settings import GenerationSettings
from minigpt_jax.generate.texts import abbreviated
from minigpt_jax.model import GPT
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import Request, Sampler
from minigpt_jax.tokenizer import Tokenizer


class Row(NamedTuple):
    """One row of the program: a prompt, and which of its texts the row is."""

    prompt: str
    ids: list[int]
    """The prompt's token ids, the start token first."""
    limit: int
    """Maximum number of new tokens."""
    row_id: int
    copy: int
    """Which of several texts of one prompt the row is."""
    settings: GenerationSettings
    returned: int
    """How many of the row's hypotheses are returned; above 1 for beam search alone."""


def rows(
    prompts: Sequence[str],
    ids: Sequence[list[int]],
    row_ids: Sequence[int],
    sampler: Sampler,
    settings: Sequence[GenerationSettings],
    gpt: GPT,
) -> list[Row]:
    """The rows of each prompt side by side.

    Raises:
        UserError: the sampler has no such number of texts, or a prompt leaves no room in the window.
    """
    found = []
    for prompt, tokens, row_id, one in zip(prompts, ids, row_ids, settings, strict=True):
        copies, returned = _copies(sampler, one.num_return_sequences)
        limit = _limit(prompt, len(tokens), one.max_new_tokens, gpt)
        found += [Row(prompt, tokens, limit, row_id, copy, one, returned) for copy in range(copies)]
    return found


class Sizes(NamedTuple):
    """The shapes of a program, in buckets that nearby requests share."""

    rows: int
    width: int
    """Positions of the prompts."""
    room: int
    """New tokens."""
    slots: int
    """Positions of the cache."""


def sizes(rows: Sequence[Row], window: int) -> Sizes:
    """The buckets that rows fit in."""
    width = bucket(max(len(row.ids) for row in rows), 8, window)
    room = bucket(max(row.limit for row in rows), 16)
    return Sizes(row_bucket(len(rows), devices.local_devices()), width, room, min(width + room, window))


def request(rows: Sequence[Row], sizes: Sizes, tokenizer: Tokenizer, vocabulary_size: int) -> Request:
    """The request of these rows, each with its own settings, filled up with rows that generate nothing.

    Args:
        tokenizer: what it has no piece for, up to `vocabulary_size`, is banned, and its special tokens are.
    """
    filler = Row("", [tokenizer.special.start], 0, 0, 0, rows[-1].settings, 0)
    padded = [*rows, *[filler] * (sizes.rows - len(rows))]
    groups = [list(group) for _, group in itertools.groupby(padded, lambda row: id(row.settings))]
    requests = [_request(group, sizes.width, tokenizer, vocabulary_size) for group in groups]
    return requests[0] if len(requests) == 1 else samplers.concatenate(requests)


def _request(rows: Sequence[Row], width: int, tokenizer: Tokenizer, vocabulary_size: int) -> Request:
    """The request of rows that share their settings."""
    settings = rows[0].settings
    stops = settings.stop_sequences
    return samplers.request(
        [row.ids for row in rows],
        vocabulary_size=vocabulary_size,
        max_new_tokens=[row.limit for row in rows],
        width=width,
        row_ids=[row.row_id for row in rows],
        copies=[row.copy for row in rows],
        pad_id=tokenizer.special.line_end,
        stops=stops,
        logit_bias=_bias(settings.logit_bias, stops, tokenizer, vocabulary_size),
        **{name: getattr(settings, name) for name in _AS_THEY_ARE},
    )


_AS_THEY_ARE = (
    "seed",
    "min_new_tokens",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram",
)
"""Settings that a request takes under the same name."""


def _copies(sampler: Sampler, count: int) -> tuple[int, int]:
    """Rows for each prompt, and hypotheses to return of each row."""
    if sampler.ranks:
        hypotheses = getattr(sampler, "num_beams", sampler.width)
        if count > hypotheses:
            raise UserError(f"--num-return-sequences {count}: {sampler.name} has {hypotheses} hypotheses; widen it")
        return 1, count
    if count > 1 and not sampler.draws:
        raise UserError(f"--num-return-sequences {count}: {sampler.name} gives one text; take a random sampler")
    return count, 1


def _limit(prompt: str, length: int, max_new_tokens: int | None, gpt: GPT) -> int:
    window = gpt.sequence_length
    if length > window:
        raise UserError(
            f"--prompt {abbreviated(prompt)!r}: {length} tokens with the start token, and the window "
            f"holds {window}; shorten it"
        )
    if max_new_tokens is None:
        return max(window - length, 1)
    # The last new token is never read, so it needs no position.
    if gpt.config.positions == "learned" and length + max_new_tokens > window + 1:
        raise UserError(
            f"--max-new-tokens {max_new_tokens}: the prompt leaves room for {window + 1 - length}, since learned "
            f"positions end at {window}; ask for fewer, or train with --model.positions rope"
        )
    return max_new_tokens


def _bias(
    asked: Mapping[int, float], stops: Sequence[Sequence[int]], tokenizer: Tokenizer, vocabulary_size: int
) -> Any:
    """What is added to each logit: bans for what no text consists of, and what was asked for."""
    bias = np.zeros(vocabulary_size, np.float32)
    bias[len(tokenizer) :] = -np.inf
    bias[list(tokenizer.special.banned)] = -np.inf
    for token in {token for sequence in stops for token in sequence if 0 <= token < len(tokenizer)}:
        bias[token] = 0.0
    for token, value in asked.items():
        if not 0 <= token < vocabulary_size:
            raise UserError(f"--logit-bias {token}: token ids go from 0 to {vocabulary_size - 1:,}")
        bias[token] = value
    return bias
