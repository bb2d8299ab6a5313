"""Tokenizers with one small interface: WordPiece, and SentencePiece (unigram or byte-pair encoding).

Both encode texts as ids without special tokens (`encode_batch`), also with the number of UTF-8 bytes of text up to the
end of each token (`encode_batch_with_ends`), and decode ids (`decode`). `special` has the ids of their special tokens.
Tokenizers with equal fingerprints give equal ids.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from minigpt_jax.config import TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import sentencepiece, wordpiece
from minigpt_jax.tokenizer.sentencepiece import SentencePiece
from minigpt_jax.tokenizer.settings import read_settings
from minigpt_jax.tokenizer.special import SpecialIds, with_tokenizer
from minigpt_jax.tokenizer.wordpiece import WordPiece
from minigpt_jax.utf8 import check_encoding

__all__ = ["SentencePiece", "SpecialIds", "Tokenizer", "WordPiece", "from_file", "load", "train", "with_tokenizer"]

Tokenizer = WordPiece | SentencePiece


def train(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains a tokenizer with `config.vocabulary_size` pieces, or possibly fewer unless `config.exact` is set.

    The same texts give the same tokenizer.

    Raises:
        UserError: the texts have too few words, or too many characters, for this number of pieces.
    """
    if config.kind == "wordpiece":
        return wordpiece.train(texts, config.vocabulary_size, config.lowercase, config.exact)
    return sentencepiece.train(texts, config.vocabulary_size, config.kind, config.exact)


def from_file(config: TokenizerConfig) -> Tokenizer:
    """Loads the tokenizer of `config.file`: WordPiece pieces, one per line, or a SentencePiece `.model`.

    Raises:
        UserError: the file cannot be read, is malformed, or has more pieces than `config.vocabulary_size`.
    """
    assert config.file is not None, "from_file needs config.file"
    path = Path(os.path.expanduser(config.file))
    if path.exists() and not path.is_file():  # reading a pipe would block, and a device may have no end
        raise UserError(f"--tokenizer.file {config.file} is a folder, a pipe or a device; give a file")
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
            f"--tokenizer.file {config.file} is not UTF-8 text; give a file with one piece per line, "
            "or --tokenizer.kind unigram or bpe if it is a SentencePiece model"
        ) from error
    except UserError as error:
        raise UserError(f"--tokenizer.file {config.file}: {error}") from error
    if len(tokenizer) > config.vocabulary_size:
        raise UserError(
            f"--tokenizer.file {config.file} has {len(tokenizer)} pieces, more than --tokenizer.vocabulary-size "
            f"{config.vocabulary_size}; give --tokenizer.vocabulary-size {len(tokenizer)} or more"
        )
    return tokenizer


def load(folder: str | Path) -> Tokenizer:
    """Loads the tokenizer that `save` wrote into the folder.

    Raises:
        UserError: a file is missing or damaged, or the tokenizer is not the one that was saved.
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
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); restore this file of the saved tokenizer"
        ) from error
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{folder}: the saved tokenizer is damaged ({error}); restore the folder") from error
    if not intact:
        raise UserError(f"{folder}: the tokenizer differs from the one that was saved; restore the folder")
    return tokenizer
