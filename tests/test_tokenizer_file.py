"""A tokenizer of the user's own, `--tokenizer.file`: what is taken, and what is refused in one line."""

import os
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from corpus_files import tales

from minigpt_jax import tokenizer
from minigpt_jax.config import BOS_ID, UNK_ID, TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import SentencePiece


def test_a_vocabulary_file_is_used_as_it_is(tmp_path, monkeypatch):
    file = tmp_path / "vocabulary.txt"
    file.write_bytes("\ufeff[PAD]\r\n[UNK]\r\n[BOS]\r\nthe\r\ncafé".encode())
    monkeypatch.setenv("HOME", str(tmp_path))
    given = tokenizer.from_file(TokenizerConfig(file=Path("~/vocabulary.txt")))
    assert len(given) == 5  # fewer pieces than rows is well
    assert given.encode_batch(["The Café x"]) == [[3, 4, UNK_ID]]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("wordpiece", None, "cannot be read: No such file"),
        ("wordpiece", b"[PAD]\n[UNK]\n[BOS]\nfianc\xe9\n", "not UTF-8"),
        ("wordpiece", b"the\ncat\n", r"piece 0 .* must be \[PAD\], but it is 'the'"),
        ("wordpiece", b"[PAD]\n[UNK]\n", r"piece 2 .* must be \[BOS\], but it is nothing"),
        ("wordpiece", b"", r"piece 0 .* nothing"),
        ("wordpiece", b"[PAD]\n[UNK]\n[BOS]\na\nb\na\n", "pieces 3 and 5 .* both 'a'"),
        ("wordpiece", b"[PAD]\n[UNK]\n[BOS]\n\nb\n", "piece 3 .* empty"),
        ("wordpiece", b"[PAD]\n[UNK]\n[BOS]\n" + b"\n".join(b"%d" % i for i in range(8)), "11 pieces, .*-size 10;"),
        ("wordpiece", "[PAD]\n[UNK]\n[BOS]\na\n".encode("utf-16"), "it is UTF-16, not UTF-8"),
        ("wordpiece", "[PAD]\n[UNK]\n[BOS]\na\n".encode("utf-16-be"), "it is UTF-16, not UTF-8"),
        ("unigram", None, "cannot be read"),
        ("unigram", b"", "not a SentencePiece model"),
        ("bpe", b"[PAD]\n[UNK]\n[BOS]\n", "not a SentencePiece model"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, kind, content, message):
    file = tmp_path / "pieces"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        tokenizer.from_file(TokenizerConfig(kind=kind, file=file, vocabulary_size=10))
    assert str(error.value).startswith(f"--tokenizer.file {file}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(os.devnull, path)])
def test_a_pipe_or_device_as_tokenizer_file_is_refused_without_blocking(tmp_path, kind, make):
    make(tmp_path / "pieces")
    with pytest.raises(UserError, match=r"--tokenizer\.file .*pieces is a folder, a pipe or a device"):
        tokenizer.from_file(TokenizerConfig(kind=kind, file=tmp_path / "pieces"))


def train_foreign(path: Path, **settings) -> Path:
    """A model as the library's defaults make it: normalised, a space put before, no bytes."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tales()), model_prefix=str(path / "foreign"), vocab_size=60, minloglevel=2, **settings
    )
    return path / "foreign.model"


def test_a_sentencepiece_model_file_is_used_as_it_is(tmp_path):
    file = train_foreign(tmp_path, pad_id=0, unk_id=1, bos_id=2, eos_id=3)
    config = TokenizerConfig(kind="unigram", file=file, vocabulary_size=60)
    given = tokenizer.from_file(config)
    assert given.fingerprint == SentencePiece(file).fingerprint
    assert given.piece(BOS_ID) == "<s>"
    text = "  ka  ｍister é"  # the blanks are dropped, the wide letter (three bytes) is normalised, the last unknown
    ids, ends = given.encode_batch_with_ends([text])[0]
    assert ids.tolist() == given.encode_batch([text])[0]
    assert given.decode(ids).startswith("ka mister")
    assert (np.diff(ends) >= 0).all()
    assert ends[-1] == len(text.encode())
    ka = [i for i in range(len(ids)) if given.decode(ids[: i + 1]) == "ka"]
    assert len(b"  ka") <= ends[ka[0]] <= len(b"  ka  ")
    with pytest.raises(UserError, match=r"60 pieces, .*-size 59;"):
        tokenizer.from_file(TokenizerConfig(kind="unigram", file=file, vocabulary_size=59))


def test_model_with_other_reserved_ids_is_refused(tmp_path):
    file = train_foreign(tmp_path)  # the library's defaults: unk 0, bos 1, no pad
    with pytest.raises(UserError, match="ids -1, 0 and 1") as error:
        SentencePiece(file)
    assert str(error.value).startswith(str(file))
    with pytest.raises(UserError, match="cannot be read"):
        SentencePiece(tmp_path / "nothing.model")
