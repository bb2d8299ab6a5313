"""The folder of a saved tokenizer: what Hugging Face reads of it, and folders of earlier versions."""

import io

import pytest
import sentencepiece
from corpus_files import tales
from tokenizers import Tokenizer as Library

from minigpt_jax import tokenizer
from minigpt_jax.config import BOS_ID, TokenizerConfig
from minigpt_jax.tokenizer import SentencePiece, WordPiece


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


def test_punctuation_that_folds_to_several_characters_keeps_its_piece(tmp_path):
    ours = WordPiece(["[PAD]", "[UNK]", "[BOS]", "a", "...", "\ue000", "?!"])
    ours.save(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    texts = ["a…a", "……", "a…⁈", "\ue000 a", "a\ue001a", "\ue001…", "..."]
    assert [one.ids for one in library.encode_batch(texts)] == ours.encode_batch(texts)
    assert [library.id_to_token(token) for token in range(7)] == [ours.piece(token) for token in range(7)]


def from_a_file(**settings) -> SentencePiece:
    """A model that SentencePiece trained by its own command, with its own names of the reserved pieces."""
    model, ids = io.BytesIO(), {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tales()), model_writer=model, hard_vocab_limit=False, minloglevel=2, **ids, **settings
    )
    return SentencePiece.from_bytes(model.getvalue())


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("bytes_too", [False, True])
def test_a_model_from_a_file_keeps_its_own_reserved_pieces(kind: str, bytes_too: bool, tmp_path):
    size = 420 if bytes_too else 150
    ours = from_a_file(model_type=kind, vocab_size=size, byte_fallback=bytes_too)
    ours.save(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    assert library.get_vocab_size() == len(ours)
    assert [library.id_to_token(token) for token in range(4)] == ["<pad>", "<unk>", "<s>", "</s>"]
    texts = [tales()[0], "a 中 b"]
    assert [one.ids for one in library.encode_batch(texts)] == ours.encode_batch(texts)
    assert library.decode([2, *ours.encode_batch(["ka lo"])[0], 3]) == "ka lo"


@pytest.mark.parametrize("setting", [{"treat_whitespace_as_suffix": True}, {"model_type": "word"}])
def test_a_model_that_hugging_face_cannot_run_is_saved_without_its_file(setting: dict, tmp_path):
    from_a_file(vocab_size=100, **setting).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"sentencepiece.model", "settings.json"}
    assert len(tokenizer.load(tmp_path)) <= 100


def test_a_folder_of_an_earlier_version_opens(trained, tmp_path):
    """Its settings were in tokenizer.json, which is a file for Hugging Face today."""
    trained.save(tmp_path)
    (tmp_path / "settings.json").rename(tmp_path / "tokenizer.json")
    assert tokenizer.load(tmp_path).fingerprint == trained.fingerprint
