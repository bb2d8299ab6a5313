"""The kinds that are made here and run by Hugging Face `tokenizers`: byte-level BPE, characters and bytes."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpus_files import tales
from tokenizer_files import ODD
from tokenizers import Tokenizer as Library

from minigpt_jax import tokenizer
from minigpt_jax.config import RESERVED_PIECES, UNK_ID, TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import HuggingFace
from minigpt_jax.tokenizer.special import OWN

KINDS = {"byte_bpe": 400, "char": None, "byte": None}
WELL_FORMED = [text for text in ODD if "\ud800" not in text]


def trained(kind: str, texts: list[str] | None = None, **settings: object) -> HuggingFace:
    config = TokenizerConfig(**{"kind": kind, "vocabulary_size": KINDS[kind], **settings})  # type: ignore[arg-type]
    made = tokenizer.train(config, tales() + WELL_FORMED if texts is None else texts)
    assert isinstance(made, HuggingFace)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_comes_back_exactly(kind: str) -> None:
    made, rng = trained(kind), random.Random(0)
    characters = sorted({char for text in WELL_FORMED for char in text})
    texts = [*WELL_FORMED, *tales()[:9], *("".join(rng.choices(characters, k=9)) for _ in range(300))]
    for text, (ids, ends) in zip(texts, made.encode_batch_with_ends(texts), strict=True):
        assert ids.tolist() == made.encode_batch([text])[0]
        assert made.decode([OWN.start, *ids, OWN.line_end, 10_000]) == text
        assert ids.min(initial=9) > OWN.start  # also where the text spells out [BOS]
        assert ends.max(initial=0) == len(text.encode())
        assert (np.diff(ends, prepend=0) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_reserved_pieces_come_first_and_hugging_face_reads_the_rest(kind: str, tmp_path: Path) -> None:
    made = trained(kind)
    assert tuple(made.piece(token) for token in range(3)) == RESERVED_PIECES
    assert made.special == OWN
    made.save(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    assert [one.ids for one in library.encode_batch(tales())] == made.encode_batch(tales())
    assert library.get_vocab_size() == len(made)
    assert library.decode([OWN.start, *made.encode_batch(["ka lo"])[0]]) == "ka lo"
    assert tokenizer.load(tmp_path).encode_batch(ODD) == made.encode_batch(ODD)


def test_a_byte_has_the_id_of_its_number() -> None:
    text = "".join(map(chr, range(128))) + "é🙂"
    assert trained("byte").encode_batch([text]) == [[3 + byte for byte in text.encode()]]
    assert len(trained("byte")) == 259


def test_characters_of_the_training_text_are_pieces_and_others_unknown() -> None:
    made = trained("char", ["bac", "é\n[BOS]"])
    assert [made.piece(token) for token in range(3, len(made))] == sorted("bacé\n[BOS]")
    [(ids, ends)] = made.encode_batch_with_ends(["ax🙂é"])
    assert [made.piece(int(token)) for token in ids] == ["a", "[UNK]", "[UNK]", "é"]
    assert ids[1] == UNK_ID
    assert ends.tolist() == [1, 2, 6, 8]
    assert made.decode(ids) == "a[UNK][UNK]é"


def test_the_commonest_characters_fill_a_small_vocabulary() -> None:
    texts = ["aaa bb c"]
    with pytest.raises(UserError, match=r"-size 6 is too small for the 4 characters .* at least 7"):
        trained("char", texts, vocabulary_size=6)
    made = trained("char", texts, vocabulary_size=6, exact=False)
    assert [made.piece(token) for token in range(3, 6)] == [" ", "a", "b"]


def test_byte_level_bpe_has_the_size_that_was_asked_for() -> None:
    assert len(trained("byte_bpe", tales())) == 400
    with pytest.raises(UserError, match=r"258 is too small .* 259"):
        trained("byte_bpe", vocabulary_size=258)
    with pytest.raises(UserError, match="at most") as error:
        trained("byte_bpe", ["the cat sat on the mat"], vocabulary_size=5000)
    assert len(trained("byte_bpe", ["the cat sat on the mat"], vocabulary_size=5000, exact=False)) == int(
        str(error.value).rsplit(" ", 1)[1]
    )


@pytest.mark.parametrize("kind", ["byte_bpe", "char"])
@pytest.mark.parametrize("texts", [[], ["", " \n\t"]])
def test_training_without_words_is_refused(kind: str, texts: list[str]) -> None:
    with pytest.raises(UserError, match="no word"):
        trained(kind, texts)


_FINGERPRINT = """
from test_tokenizer_lossless import trained
print(trained("byte_bpe").fingerprint)
"""


def test_training_again_elsewhere_gives_the_same() -> None:
    command = [sys.executable, "-c", _FINGERPRINT]
    output = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert output.stdout.split() == [trained("byte_bpe").fingerprint]
    shuffled = tales() + WELL_FORMED
    random.Random(0).shuffle(shuffled)
    assert trained("byte_bpe", shuffled).fingerprint == trained("byte_bpe").fingerprint
