"""This project's side of the comparison of tokenizers, in a module that worker processes can import."""

import itertools
from collections.abc import Iterable

import numpy as np

from minigpt_jax.tokenizer import Tokenizer


def flat_ids(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """The ids of all texts in one array, which is cheap to send to another process."""
    return np.fromiter(itertools.chain.from_iterable(tokenizer.encode_batch(texts)), np.uint16)
