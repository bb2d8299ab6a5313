"""Where the text comes from: SimpleBooks, generated stories, any files of the user's, or a corpus of their own."""

import os
from pathlib import Path

from minigpt_jax.config import DataConfig
from minigpt_jax.corpora.base import SPLITS, Corpus, Split
from minigpt_jax.corpora.custom import Custom
from minigpt_jax.corpora.simplebooks import SimpleBooks
from minigpt_jax.corpora.simplebooks_download import download
from minigpt_jax.corpora.stories import Stories
from minigpt_jax.corpora.text import Text, read_files

__all__ = ["SPLITS", "Corpus", "Custom", "SimpleBooks", "Split", "Stories", "Text", "open_corpus", "read_files"]


def open_corpus(config: DataConfig, cache: Path) -> Corpus:
    """The corpus that a configuration names, checked; SimpleBooks is downloaded into `cache` unless it is there.

    Raises:
        UserError: when the text is missing or cannot be used.
    """
    if config.corpus == "text":
        return Text(config.files, config.document, config.json_field, config.held_out)
    if config.corpus == "stories":
        return Stories(config.stories, config.stories_seed)
    if config.corpus != "simplebooks":
        return Custom(config)
    if config.archive:
        return SimpleBooks(Path(os.path.expanduser(config.archive)), config.simplebooks)
    archive, unpacked = download(cache)
    return SimpleBooks(archive, config.simplebooks, unpacked, source=str(archive))
