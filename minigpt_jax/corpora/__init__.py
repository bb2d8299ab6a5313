"""Sources of text: SimpleBooks, generated stories, any text files, or a corpus class of the user's own."""

import os
from pathlib import Path

from minigpt_jax.config import DataConfig
from minigpt_jax.corpora.base import SPLITS, Corpus, Split, document_bytes
from minigpt_jax.corpora.custom import Custom
from minigpt_jax.corpora.simplebooks import SimpleBooks
from minigpt_jax.corpora.simplebooks_download import download
from minigpt_jax.corpora.stories import Stories
from minigpt_jax.corpora.text import Text, read_files

__all__ = [
    "SPLITS",
    "Corpus",
    "Custom",
    "SimpleBooks",
    "Split",
    "Stories",
    "Text",
    "document_bytes",
    "open_corpus",
    "read_files",
]


def open_corpus(config: DataConfig, cache: Path) -> Corpus:
    """Opens and checks the configured corpus. SimpleBooks is downloaded into `cache` if it is not there yet.

    Raises:
        UserError: the text is missing or cannot be used.
    """
    if config.corpus == "text":
        return Text(config.files, config.document, config.text_field, config.held_out, config.separator, cache)
    if config.corpus == "stories":
        return Stories(config.stories, config.stories_seed)
    if config.corpus != "simplebooks":
        return Custom(config)
    if config.archive:
        return SimpleBooks(Path(os.path.expanduser(config.archive)), config.simplebooks)
    archive, unpacked = download(cache)
    return SimpleBooks(archive, config.simplebooks, unpacked, source=str(archive))
