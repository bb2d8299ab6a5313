"""A Hugging Face tokenizer.json: ids against the library, the ends of its tokens, and what begins and ends a text."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_files
from corpus_files import tales
from tokenizer_files import MAKERS, ODD
from tokenizers import Tokenizer

from minigpt_jax import tokenizer
from minigpt_jax.config import TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import HuggingFace, WordPiece, from_huggingface

TEXTS = [*tales()[:50], *ODD]
WELL_FORMED = [text for text in TEXTS if "\ud800" not in text]
each_form = pytest.mark.parametrize("form", MAKERS)


def of(form: str, folder: Path, **beside: Any) -> HuggingFace:
    return from_huggingface(tokenizer_files.write(folder, form, **beside))


@each_form
def test_ids_are_those_of_the_library(form: str, tmp_path: Path) -> None:
    """Reserved words in the text included: they are special tokens where the file has them."""
    ours, theirs = of(form, tmp_path), Tokenizer.from_str(tokenizer_files.description(form))
    expected = [one.ids for one in theirs.encode_batch(WELL_FORMED, add_special_tokens=False)]
    assert ours.encode_batch(WELL_FORMED) == expected
    assert len(ours) == theirs.get_vocab_size()
    assert [ours.piece(token) for token in (0, 1, 150)] == [theirs.id_to_token(token) for token in (0, 1, 150)]
    if form in ("gpt2", "bert"):
        named = theirs.token_to_id("<|endoftext|>" if form == "gpt2" else "[CLS]")
        assert any(named in ids for ids in ours.encode_batch(ODD))


@each_form
def test_ends_are_bytes_of_the_text(form: str, tmp_path: Path) -> None:
    ours, theirs = of(form, tmp_path), Tokenizer.from_str(tokenizer_files.description(form))
    for text, (ids, ends) in zip(WELL_FORMED, ours.encode_batch_with_ends(WELL_FORMED), strict=True):
        assert ids.tolist() == ours.encode_batch([text])[0]
        assert (np.diff(ends, prepend=0) >= 0).all()
        if form == "gpt2":
            assert ends.max(initial=0) == len(text.encode())
        else:
            offsets = [end for _, end in theirs.encode(text, add_special_tokens=False).offsets]
            assert ends.tolist() == [len(text[:end].encode()) for end in np.maximum.accumulate([0, *offsets])[1:]]


def test_byte_level_ends_cut_inside_a_character(tmp_path: Path) -> None:
    ours, text = of("gpt2", tmp_path), "ka 🙂é"
    [(ids, ends)] = ours.encode_batch_with_ends([text])
    assert ends.tolist() == np.cumsum([len(ours.piece(int(token)) or "") for token in ids]).tolist()
    assert len(set(ends.tolist())) == len(ids) > 4
    assert ours.decode(ids[:-1]).endswith("\ufffd")


@pytest.mark.parametrize("in_a_sequence", [False, True])
def test_a_text_that_begins_within_a_word_has_no_prefix(tmp_path: Path, in_a_sequence: bool) -> None:
    own = WordPiece(["[PAD]", "[UNK]", "[BOS]", "ka", "##ra", "##"])
    own.save(tmp_path)
    if in_a_sequence:
        description = json.loads((tmp_path / "tokenizer.json").read_text())
        description["decoder"] = {"type": "Sequence", "decoders": [description["decoder"]]}
        (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    theirs = from_huggingface(tmp_path / "tokenizer.json")
    for ids in ([4], [4, 3, 4], [3, 4], [2, 4], [5], []):
        assert theirs.decode(ids) == own.decode(ids)


@each_form
def test_decoding_skips_special_tokens(form: str, tmp_path: Path) -> None:
    ours, text = of(form, tmp_path), tales()[0]
    ids = ours.encode_batch([text])[0]
    expected = Tokenizer.from_str(tokenizer_files.description(form)).decode(ids, skip_special_tokens=False)
    assert ours.decode([ours.special.start, *ids, *ours.special.banned, 10_000, -1]) == ours.decode(ids) == expected
    assert expected.replace(" ", "") == text.replace(" ", "")


@each_form
def test_saved_and_sent_tokenizers_are_the_same(form: str, tmp_path: Path) -> None:
    ours = of(form, tmp_path)
    ours.save(tmp_path / "saved")
    for other in (tokenizer.load(tmp_path / "saved"), pickle.loads(pickle.dumps(ours))):
        assert (other.fingerprint, other.special) == (ours.fingerprint, ours.special)
        assert other.encode_batch(TEXTS) == ours.encode_batch(TEXTS)
    theirs = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert theirs.to_str() == Tokenizer.from_str(tokenizer_files.description(form)).to_str()


SPECIAL = {
    # form, files beside it: the start, what ends a line, what ends a packed text, and others that are never drawn
    "gpt2": ("gpt2", {}, "<|endoftext|>", "<|endoftext|>", [], []),
    "bert": ("bert", {}, "[CLS]", "[SEP]", ["[SEP]"], ["[PAD]", "[MASK]"]),
    "t5": ("t5", {}, "</s>", "</s>", [], ["<pad>"]),
    "llama": ("llama", {}, "<s>", "</s>", ["</s>"], []),
    "named": ("bert", {"tokenizer_config": {"bos_token": "[MASK]"}}, "[MASK]", "[SEP]", ["[SEP]"], ["[CLS]"]),
    "an object": ("bert", {"special_tokens_map": {"eos_token": {"content": "[PAD]"}}}, "[CLS]", "[PAD]", ["[PAD]"], []),
    "an id": ("t5", {"config": {"bos_token_id": 0, "eos_token_id": [1, 2]}}, "<pad>", "</s>", ["</s>"], []),
    "nonsense": ("llama", {"config": [3], "tokenizer_config": {"bos_token": None}}, "<s>", "</s>", ["</s>"], []),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_a_text_begins_and_ends_with_the_files_own_tokens(case: str, tmp_path: Path) -> None:
    form, beside, start, line_end, ends, others = SPECIAL[case]
    ours = of(form, tmp_path, **beside)
    assert ours.piece(ours.special.start) == start
    assert [ours.piece(token) for token in ours.special.ends("lines")] == [line_end]
    assert [ours.piece(token) for token in ours.special.ends("packed")] == [start, *ends]
    banned = [ours.piece(token) for token in ours.special.banned]
    assert {start, line_end, *others} <= set(banned)
    assert not {"[UNK]", "<unk>"} & set(banned)
    assert start in tokenizer.summary(ours)


def test_a_file_without_a_start_gets_a_piece_that_no_text_has(tmp_path: Path) -> None:
    value = json.loads(tokenizer_files.description("gpt2"))
    value["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    ours = from_huggingface(tmp_path)
    size = len(value["model"]["vocab"])
    assert (ours.special.start, ours.special.line_end, len(ours)) == (size, size, size + 1)
    assert ours.piece(size) == "[BOS]"
    assert size not in ours.encode_batch(["[BOS] ka"])[0]
    assert ours.decode([size, *ours.encode_batch(["[BOS] ka"])[0]]) == "[BOS] ka"
    assert "added" in tokenizer.summary(ours)
    ours.save(tmp_path / "saved")
    assert tokenizer.load(tmp_path / "saved").fingerprint == ours.fingerprint


def test_a_start_of_the_users_own(tmp_path: Path) -> None:
    path = tokenizer_files.write(tmp_path, "gpt2")
    ours = from_huggingface(path, start_id=5)
    assert (ours.special.start, ours.special.text_ends) == (5, (ours.encode_batch(["<|endoftext|>"])[0][0],))
    with pytest.raises(UserError, match=r"--tokenizer.start-id 5000: .* 0 to 400"):
        from_huggingface(path, start_id=5000)


def test_truncation_and_padding_have_no_effect(tmp_path: Path) -> None:
    theirs = Tokenizer.from_str(tokenizer_files.description("gpt2"))
    theirs.enable_truncation(3)
    theirs.enable_padding(length=3)
    theirs.save(str(tmp_path / "tokenizer.json"))
    [ids, none] = from_huggingface(tmp_path).encode_batch([tales()[0], ""])
    assert len(ids) > 3
    assert none == []


BAD = {
    "not JSON": (b"{", "not JSON"),
    "text": (b"the\ncat\n", "not JSON"),
    "binary": (b"\x80\x81", "not UTF-8"),
    "UTF-16": ('{"model": {}}'.encode("utf-16"), "UTF-16"),
    "a list": (b"[]", "no vocabulary"),
    "no model": (b"{}", "no vocabulary"),
    "no vocabulary": (b'{"model": {"type": "BPE", "merges": []}}', "no vocabulary"),
    "an empty vocabulary": (b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "no vocabulary"),
    "an unknown model": (b'{"model": {"type": "Odd", "vocab": {"a": 0}}}', "cannot be used"),
    "no unknown piece": (
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "x"}}',
        "cannot be used",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = BAD[case]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    for load in (from_huggingface, lambda path: tokenizer.from_file(TokenizerConfig(file=path))):
        with pytest.raises(UserError, match=message) as error:
            load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_the_size_follows_the_file_unless_it_is_given(tmp_path: Path) -> None:
    path = tokenizer_files.write(tmp_path, "gpt2")
    assert len(tokenizer.from_file(TokenizerConfig(file=path))) == 401
    assert len(tokenizer.from_file(TokenizerConfig(file=path, vocabulary_size=500))) == 401
    with pytest.raises(UserError, match=r"has 401 pieces, more than --tokenizer.vocabulary-size 400; give .* 401"):
        tokenizer.from_file(TokenizerConfig(file=path, vocabulary_size=400))
    with pytest.raises(UserError, match="cannot be read"):
        tokenizer.from_file(TokenizerConfig(file=tmp_path / "none.json"))
