"""Texts, the files of a corpus, and what it makes of them."""

import random
from pathlib import Path

from minigpt_jax.corpora import SPLITS
from minigpt_jax.errors import UserError


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def everything(corpus) -> dict[str, list[str]]:
    return {split: list(corpus.documents(split)) for split in SPLITS}


def assert_one_clear_line(error: UserError, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    for word in words:
        assert word in text


def tales(seed: int = 0, lines: int = 400) -> list[str]:
    """Lines of made-up words, so that there is something to merge."""
    rng = random.Random(seed)
    syllables = "ka lo mi ster ing un der tha ben cor".split()
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(600)]
    return [" ".join(rng.choices(words, k=12)) + rng.choice(".,?!") for _ in range(lines)]
