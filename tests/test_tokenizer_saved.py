"""The folder of a saved tokenizer: what Hugging Face reads of it, and folders of earlier versions."""

import pytest
from corpus_files import tales
from tokenizers import Tokenizer as Library

from minigpt_jax import tokenizer
from minigpt_jax.config import BOS_ID, TokenizerConfig


@pytest.fixture(scope="module", params=["wordpiece", "unigram", "bpe"])
def trained(request) -> tokenizer.Tokenizer:
    return tokenizer.train(TokenizerConfig(kind=request.param, vocabulary_size=360), tales())


def test_hugging_face_reads_a_saved_tokenizer(trained, tmp_path):
    """With the same ids, except for what is rare in text: see `tokenizer.description`."""
    trained.save(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    texts = [*tales(), "Ka lo, MISTER 1984's!", "  two  spaces ", "(é🙂 中文)", "a\tb\nc"]
    got, expected = [one.ids for one in library.encode_batch(texts)], trained.encode_batch(texts)
    differing = [text for text, one, other in zip(texts, got, expected, strict=True) if one != other]
    assert len(differing) <= len(texts) // 100  # unigram pieces of equal probability
    rare = ["wait… no", "a\x0bb\x1fc", "STRASSE Straße", "\u200bka\ufe0f lo", "ka  lo\n\n"]
    assert [one.ids for one in library.encode_batch(rare)] == trained.encode_batch(rare)
    assert [library.decode(ids) for ids in got] == [library.decode(ids) for ids in expected]
    assert [library.id_to_token(token) for token in range(360)] == [trained.piece(token) for token in range(360)]
    assert library.decode([BOS_ID, *trained.encode_batch(["ka lo"])[0]]) == "ka lo"


def test_a_folder_of_an_earlier_version_opens(trained, tmp_path):
    """Its settings were in tokenizer.json, which is a file for Hugging Face today."""
    trained.save(tmp_path)
    (tmp_path / "settings.json").rename(tmp_path / "tokenizer.json")
    assert tokenizer.load(tmp_path).fingerprint == trained.fingerprint
