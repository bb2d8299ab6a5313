"""Tokenizers with one small interface: WordPiece, SentencePiece (unigram or byte-pair encoding), and Hugging Face's.

All encode texts as ids without special tokens (`encode_batch`), also with the number of UTF-8 bytes of text up to the
end of each token (`encode_batch_with_ends`), and decode ids (`decode`). `special` has the ids of their special tokens.
Tokenizers with equal fingerprints give equal ids.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from minigpt_jax.config import Experiment, TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import huggingface_file, lossless, sentencepiece, wordpiece
from minigpt_jax.tokenizer.huggingface import HuggingFace
from minigpt_jax.tokenizer.huggingface_file import from_huggingface, summary
from minigpt_jax.tokenizer.lossless import byte
from minigpt_jax.tokenizer.sentencepiece import SentencePiece
from minigpt_jax.tokenizer.settings import DESCRIPTION_FILE, read_settings
from minigpt_jax.tokenizer.special import SpecialIds
from minigpt_jax.tokenizer.wordpiece import WordPiece
from minigpt_jax.utf8 import check_encoding

__all__ = [
    "HuggingFace",
    "SentencePiece",
    "SpecialIds",
    "Tokenizer",
    "WordPiece",
    "byte",
    "from_file",
    "from_huggingface",
    "load",
    "summary",
    "train",
    "with_tokenizer",
]

Tokenizer = WordPiece | SentencePiece | HuggingFace


def train(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains a tokenizer with `config.vocabulary_size` pieces, or possibly fewer unless `config.exact` is set.

    The same texts give the same tokenizer.

    Raises:
        UserError: the texts have too few words, or too many characters, for this number of pieces.
    """
    if config.kind == "wordpiece":
        return wordpiece.train(texts, config.rows, config.lowercase, config.exact)
    if config.kind == "byte_bpe":
        return lossless.train_byte_bpe(texts, config.rows, config.exact)
    if config.kind == "char":
        return lossless.train_char(texts, config.vocabulary_size, config.exact)
    if config.kind == "byte":
        return byte()
    assert config.kind != "huggingface", "a tokenizer.json is not trained here"
    return sentencepiece.train(texts, config.rows, config.kind, config.exact)


def from_file(config: TokenizerConfig) -> Tokenizer:
    """Loads the tokenizer of `config.file`: WordPiece pieces, one per line, a SentencePiece `.model`, or a
    tokenizer.json, whose name or contents tell that it is one.

    Raises:
        UserError: the file cannot be read, is malformed, or has more pieces than `config.vocabulary_size`.
    """
    assert config.file is not None, "from_file needs config.file"
    path = config.file.expanduser()
    if path.exists() and not path.is_file():  # reading a pipe would block, and a device may have no end
        raise UserError(f"--tokenizer.file {config.file} is a folder, a pipe or a device; give a file")
    try:
        tokenizer = _of_content(path.read_bytes(), path, config)
    except OSError as error:
        raise UserError(f"--tokenizer.file {config.file} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--tokenizer.file {config.file} is not UTF-8 text; give a file with one piece per line, "
            "or --tokenizer.kind unigram or bpe if it is a SentencePiece model"
        ) from error
    except UserError as error:
        raise UserError(f"--tokenizer.file {config.file}: {error}") from error
    most = config.vocabulary_size if isinstance(tokenizer, HuggingFace) else config.size
    if most is not None and len(tokenizer) > most:
        raise UserError(
            f"--tokenizer.file {config.file} has {len(tokenizer)} pieces, more than --tokenizer.vocabulary-size "
            f"{most}; give --tokenizer.vocabulary-size {len(tokenizer)} or more"
        )
    return tokenizer


def _of_content(content: bytes, path: Path, config: TokenizerConfig) -> Tokenizer:
    if config.kind == "huggingface" or path.suffix == ".json" or content.lstrip().startswith(b"{"):
        return huggingface_file.from_bytes(content, path.parent, config.start_id)
    if config.kind == "wordpiece":
        check_encoding(content, "it")
        return WordPiece(wordpiece.read_vocabulary(path), config.lowercase)
    if config.kind in ("unigram", "bpe"):
        return SentencePiece.from_bytes(content)
    raise UserError(f"--tokenizer.kind {config.kind} takes no file; leave it out, or give --tokenizer.kind huggingface")


def with_tokenizer(experiment: Experiment, tokenizer: Tokenizer) -> Experiment:
    """The experiment with the settings filled in that follow from its tokenizer.

    Raises:
        UserError: it asks for another start token than the tokenizer has, or for too small a vocabulary.
    """
    config, start = experiment.tokenizer, tokenizer.special.start
    if config.start_id not in (None, start):
        raise UserError(f"--tokenizer.start-id {config.start_id}: texts of this tokenizer start with {start}; drop it")
    if config.file is not None and isinstance(tokenizer, HuggingFace):
        config = replace(config, kind="huggingface")
    size = config.size or len(tokenizer)
    if len(tokenizer) > size:
        raise UserError(
            f"--tokenizer.vocabulary-size {size}: the tokenizer has {len(tokenizer)} pieces; give {len(tokenizer)} or "
            "more"
        )
    return replace(experiment, tokenizer=replace(config, start_id=start, vocabulary_size=size))


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
        elif settings["kind"] == "huggingface":
            description = Path(folder, DESCRIPTION_FILE).read_text(encoding="utf-8")
            special = SpecialIds.from_json(settings["special"])
            tokenizer = HuggingFace(description, special, settings["reserved_words"])
        else:
            tokenizer = SentencePiece(Path(folder, sentencepiece.MODEL_FILE))
        intact = tokenizer.fingerprint == settings["fingerprint"]
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); restore this file of the saved tokenizer"
        ) from error
    except (ValueError, KeyError, TypeError, UserError, RecursionError) as error:
        raise UserError(f"{folder}: the saved tokenizer is damaged ({error}); restore the folder") from error
    if not intact:
        raise UserError(f"{folder}: the tokenizer differs from the one that was saved; restore the folder")
    return tokenizer
