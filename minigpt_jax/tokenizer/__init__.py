"""Tokenizers behind one small interface: WordPiece, and SentencePiece (unigram or byte-pair).

Both turn texts to ids without reserved ones (`encode_batch`), tell how far into the text each token reaches, in UTF-8
bytes (`encode_batch_with_ends`), and turn ids back into text (`decode`). Equal fingerprints mean equal ids.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from minigpt_jax.config import TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import sentencepiece, wordpiece
from minigpt_jax.tokenizer.sentencepiece import SentencePiece
from minigpt_jax.tokenizer.settings import read_settings
from minigpt_jax.tokenizer.wordpiece import WordPiece
from minigpt_jax.utf8 import check_encoding

__all__ = ["SentencePiece", "Tokenizer", "WordPiece", "from_file", "load", "train"]

Tokenizer = WordPiece | SentencePiece


def train(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains a tokenizer of `config.vocabulary_size` pieces; the same texts give the same tokenizer.

    There may be fewer where `config.exact` is not set.

    Raises:
        UserError: the texts cannot fill, or do not fit, so many pieces.
    """
    if config.kind == "wordpiece":
        return wordpiece.train(texts, config.vocabulary_size, config.lowercase, config.exact)
    return sentencepiece.train(texts, config.vocabulary_size, config.kind, config.exact)


def from_file(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of `config.file`: WordPiece's pieces, one a line, or a SentencePiece `.model`.

    Raises:
        UserError: the file cannot be read, is malformed, or has more pieces than the model has rows.
    """
    assert config.file is not None, "from_file needs config.file"
    path = Path(os.path.expanduser(config.file))
    if path.exists() and not path.is_file():  # a pipe would wait for a writer, and a device need not end
        raise UserError(f"--tokenizer.file {config.file} is a folder, a pipe or a device; name a file")
    try:
        if config.kind == "wordpiece":
            check_encoding(path.read_bytes(), "it")
            tokenizer = WordPiece(wordpiece.read_vocabulary(path), config.lowercase)
        else:
            tokenizer = SentencePiece.from_bytes(path.read_bytes())
    except OSError as error:
        raise UserError(f"--tokenizer.file {config.file} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--tokenizer.file {config.file} is not UTF-8 text; give one piece a line, "
            "or --tokenizer.kind unigram or bpe if it is a SentencePiece model"
        ) from error
    except UserError as error:
        raise UserError(f"--tokenizer.file {config.file}: {error}") from error
    if len(tokenizer) > config.vocabulary_size:
        raise UserError(
            f"--tokenizer.file {config.file} has {len(tokenizer)} pieces, more than --tokenizer.vocabulary-size "
            f"{config.vocabulary_size} leaves rows for; give --tokenizer.vocabulary-size {len(tokenizer)} or more"
        )
    return tokenizer


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into the folder.

    Raises:
        UserError: something of it is missing, damaged or not what was saved.
    """
    try:
        settings = read_settings(folder)
        if settings["kind"] == "wordpiece":
            pieces = wordpiece.read_vocabulary(Path(folder, wordpiece.VOCABULARY_FILE))
            tokenizer = WordPiece(pieces, settings["lowercase"])
        else:
            tokenizer = SentencePiece(Path(folder, sentencepiece.MODEL_FILE))
        intact = tokenizer.fingerprint == settings["fingerprint"]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); a saved tokenizer needs it") from error
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{folder}: the saved tokenizer is damaged ({error}); restore the folder") from error
    if not intact:
        raise UserError(f"{folder}: the tokenizer's fingerprint is not the one it was saved with; restore the folder")
    return tokenizer
