"""Exported tokenizers: as `tokenizers` and Transformers run them, against those that they came from."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Theirs

from minigpt_jax import tokenizer
from minigpt_jax.config import BOS_ID, DataConfig, TokenizerConfig
from minigpt_jax.corpora import open_corpus
from minigpt_jax.interchange import tokenizer_files
from minigpt_jax.tokenizer import Tokenizer, WordPiece

STORIES = list(open_corpus(DataConfig(corpus="stories", stories=150), Path()).documents("train"))
ODD = [
    "",
    " ",
    "  two  spaces, \ttabs and\nlines ",
    "Once upon a time: “Well…” he said—don't!",
    "naïve café, Straße, ΟΔΟΣ",
    "日本語のtext",
    "\U0001f600 x\u0301y",
    "1/2 x² 10° №5",
]
KINDS = ("wordpiece", "unigram", "bpe", "byte_bpe", "char", "byte")


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    texts = [*STORIES, "… “ ” — " * 200]  # often enough that … is one piece
    return {
        kind: tokenizer.train(TokenizerConfig(kind=kind, vocabulary_size=500, exact=False), texts) for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts(kind: str, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    ours = trained[kind]
    tokenizer_files.write_tokenizer(ours, tmp_path, BOS_ID, 128)
    theirs = Theirs.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    texts = [*ODD, *STORIES[:50]]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert theirs.encode(text).ids == [BOS_ID, *ids]
        if kind not in ("wordpiece", "char"):  # one guesses the spacing, the other has no such characters
            assert theirs.decode([BOS_ID, *ids]) == ours.decode(ids)


def test_case_is_folded_where_letters_become_others() -> None:
    ours = WordPiece(["[PAD]", "[UNK]", "[BOS]", "strasse", "οδοσ", "fi"])
    theirs = tokenizer_files.converted(ours)
    texts = ["Straße STRASSE", "ΟΔΟΣ οδος", "ﬁ FI"]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert 1 not in ids
        assert theirs.encode(text, add_special_tokens=False).ids == ids


def test_words_that_differ_are_counted() -> None:
    """A no-break space is part of a word here, and separates words there."""
    ours = WordPiece(["[PAD]", "[UNK]", "[BOS]", "a", "b"])
    theirs = tokenizer_files.converted(ours)
    assert tokenizer_files.differing_lines(ours, theirs, ["a b", "a\u00a0b", "B"]) == (1, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_as_transformers_runs_it(kind: str, trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra huggingface is not installed")
    ours = trained[kind]
    tokenizer_files.write_tokenizer(ours, tmp_path, BOS_ID, 128)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "once upon a time, there was a fox."
    ids = [BOS_ID, *ours.encode_batch([text])[0]]
    assert theirs(text).input_ids == ids
    assert theirs.decode(ids, skip_special_tokens=True) == text
    spelled = "the [BOS] fox [PAD]"  # is text, as here
    assert theirs(spelled).input_ids == [BOS_ID, *ours.encode_batch([spelled])[0]]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (BOS_ID, BOS_ID, 0)
    assert theirs.model_max_length == 128
    padded = theirs([text, "a"], padding=True, return_tensors="np")
    assert np.sum(padded["attention_mask"][1]) < len(ids)
