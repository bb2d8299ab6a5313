"""Documents to token ids, on all cores."""

import itertools
import os
from collections.abc import Iterator
from typing import Any

import joblib

from minigpt_jax.data.rows import Encoded
from minigpt_jax.tokenizer import Tokenizer

DOCUMENTS_A_CHUNK = 1024
CHARACTERS_A_CHUNK = 1 << 21
BYTES_A_WORKER = 40_000_000


def encode_all(texts: Iterator[str], tokenizer: Tokenizer, total_bytes: int) -> Iterator[Encoded]:
    """Encodes the documents one by one.

    If there is enough text to make it worth starting processes, all cores encode chunks of documents.
    """
    chunks = _chunks(texts)
    workers = min(joblib.cpu_count(), total_bytes // BYTES_A_WORKER + 1)
    work = (joblib.delayed(encode)(tokenizer, chunk, workers > 1) for chunk in chunks)
    encoded: Any = joblib.Parallel(workers, return_as="generator")(work)
    yield from itertools.chain.from_iterable(encoded)


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    """Groups documents: a group ends at `DOCUMENTS_A_CHUNK` of them, or once it has `CHARACTERS_A_CHUNK` characters."""
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if len(chunk) == DOCUMENTS_A_CHUNK or size >= CHARACTERS_A_CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def encode(tokenizer: Tokenizer, texts: list[str], one_of_many: bool = False) -> list[Encoded]:
    """Encodes documents in this process. `one_of_many` says that processes like it do so on all cores."""
    if one_of_many:  # the processes divide the cores, so that each of them needs no threads of its own
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoded = tokenizer.encode_batch_with_ends(texts)
    return [(ids, ends, len(text.encode())) for text, (ids, ends) in zip(texts, encoded, strict=True)]
