"""Writing the files of a corpus, and reading what it makes of them."""

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
