"""Tokenizers: ids and byte ends by hand, text back from ids, training, files, and the mistakes a user can make."""

import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpus_files import tales

from minigpt_jax import tokenizer
from minigpt_jax.config import BOS_ID, PAD_ID, RESERVED_PIECES, UNK_ID, TokenizerConfig
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import SentencePiece, WordPiece
from minigpt_jax.tokenizer import sentencepiece as our_sentencepiece

SMALL = [*RESERVED_PIECES, *"the un ##able ##a ##ble cat a t ##t ' s , é 1 ##⁄ ##2".split()]

NASTY = [
    "",
    " ",
    "  two  spaces, and a tab\tand\nlines\r\n",
    "½ cup of ﬁne caﬀé, e\u0301clair e\u0301\u0323; İstanbul, Straße, ΑΣΣ",
    "“Don’t,” he said—‘why?’… ´a`",
    "soft\u00adhyphen zero\u200bwidth no\u00a0break byte\ufeffmark joined\u034funtil\u2060here \ufe0f",
    "日本の本、漢字ｶﾞ Ｆｕｌｌ　ｗｉｄｔｈ（！） 한국어 \u1112\u1161\u11ab",
    "cost $5 ^ 3 `x` £4 €2 #1 a_b_c <tag> [PAD] [UNK] [BOS] ##s <0x41> \u2581 \u2585 \u2047",
    "emoji 🙂 👩‍👩‍👧 🇫🇷 nul\0bell\x07del\x7f",
    "x" * 100 + " " + "y" * 101 + " " + "é" * 50 + " " + "é" * 51,
    "\u0301leading mark \u0345\u0301 ᾳ\u0345",
    "broken \ud800 surrogate",
]


def random_text(rng: random.Random) -> str:
    pools = ["abc ,.'-", "éÅßİ½ﬁ ", "\u0301\u0323\u200b\u00ad\u034f\ufe0f", "日、。漢の", "🙂\u2581\n\t\0"]
    return "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 12)))


@pytest.fixture(scope="module", params=["wordpiece", "unigram", "bpe"])
def trained(request) -> tokenizer.Tokenizer:
    return tokenizer.train(TokenizerConfig(kind=request.param, vocabulary_size=360), tales())


# WordPiece: text to ids


@pytest.mark.parametrize(
    ("text", "pieces", "ends"),
    [
        ("", [], []),
        (" \t ", [], []),
        ("The cat", ["the", "cat"], [3, 7]),
        ("the  cat ", ["the", "cat"], [3, 8]),  # blanks go to the token after them, the last to none
        ("unable", ["un", "##able"], [2, 6]),  # the longest piece first
        ("UNABLET", ["un", "##able", "##t"], [2, 6, 7]),
        ("dog cat", ["[UNK]", "cat"], [3, 7]),
        ("cat's,cat", ["cat", "'", "s", ",", "cat"], [3, 4, 5, 6, 9]),
        ("e\u0301 É", ["é", "é"], [3, 6]),  # composed after folding; two bytes and two bytes
        ("½,a", ["1", "##⁄", "##2", ",", "a"], [0, 1, 2, 3, 4]),  # two bytes folded to five, in proportion
        ("a\u00adt", ["a", "t"], [1, 4]),  # a soft hyphen is a blank, as format characters are
        ("a\u034ft", ["a", "##t"], [2, 4]),  # a grapheme joiner is none, and is deleted
        ("\ufe0f cat", ["cat"], [7]),  # folds to nothing; its bytes are not lost
        ("\0cat\ud800", ["[UNK]"], [7]),
    ],
)
def test_wordpiece_ids_and_ends(text, pieces, ends):
    wordpiece = WordPiece(SMALL)
    expected = [SMALL.index(piece) for piece in pieces]
    assert wordpiece.encode_batch([text, "cat"])[0] == expected
    ids, byte_ends = wordpiece.encode_batch_with_ends([text])[0]
    assert (ids.tolist(), byte_ends.tolist()) == (expected, ends)


def test_wordpiece_keeps_case_if_told():
    pieces = [*RESERVED_PIECES, "The", "the", "½"]
    assert WordPiece(pieces, lowercase=False).encode_batch(["The the ½ THE"]) == [[3, 4, 5, UNK_ID]]


def test_wordpiece_gives_up_on_words_of_more_than_100_bytes():
    wordpiece = WordPiece([*RESERVED_PIECES, "a", "##a", "é", "##é"])
    ids = wordpiece.encode_batch(["a" * 100, "a" * 101, "é" * 50, "é" * 51, "a" * 101 + " a"])
    assert [len(row) for row in ids] == [100, 1, 50, 1, 2]
    assert ids[1] == ids[3] == [UNK_ID]
    assert wordpiece.encode_batch_with_ends(["é" * 51 + " a"])[0][1].tolist() == [102, 104]


def test_ends_agree_with_the_text_cut_there(trained):
    """Encoding the text up to a token's end gives the tokens up to it, wherever that end is between two words."""
    for text in [*tales(seed=1, lines=20), "ka, lo. mister 's  benka"]:
        (ids,) = trained.encode_batch([text])
        other_ids, ends = trained.encode_batch_with_ends([text])[0]
        assert (ids, len(text)) == (other_ids.tolist(), ends[-1])
        cuts = [i for i, end in enumerate(ends) if text[end : end + 1] in (" ", "")]
        assert len(cuts) >= 3
        for i in cuts:
            assert trained.encode_batch([text[: ends[i]]])[0] == ids[: i + 1]


@pytest.mark.parametrize("text", NASTY)
def test_ends_never_fall_and_stay_inside_the_text(trained, text):
    ids, ends = trained.encode_batch_with_ends([text])[0]
    assert ids.tolist() == trained.encode_batch([text])[0]
    assert (ids.dtype, ends.dtype, ids.shape) == (np.int32, np.int64, ends.shape)
    assert (np.diff(ends, prepend=0) >= 0).all()
    assert ends.max(initial=0) <= len(text.encode(errors="surrogatepass"))


# Ids to text


def test_decoding_skips_special_tokens_and_unknown_ids():
    wordpiece = WordPiece(SMALL)
    un, able, ble = (SMALL.index(piece) for piece in ("un", "##able", "##ble"))
    assert wordpiece.decode(np.array([BOS_ID, un, PAD_ID, able, len(SMALL), 4999, -1])) == "unable"
    assert wordpiece.decode([ble, un, UNK_ID]) == "ble un [UNK]"
    assert wordpiece.decode([]) == wordpiece.decode([PAD_ID], tidy=False) == ""


def test_spaced_text_comes_back_exactly(trained):
    text = "ka lo . mister , thaben lolo ? kathe !"
    assert trained.decode(trained.encode_batch([text])[0], tidy=False) == text


# Training


def test_reserved_pieces_come_first_and_the_size_is_the_one_asked_for(trained):
    assert [trained.piece(token) for token in (PAD_ID, UNK_ID, BOS_ID)] == list(RESERVED_PIECES)
    assert len(trained) == 360
    assert len({trained.piece(token) for token in range(360)}) == 360
    assert trained.piece(360) is trained.piece(-1) is None
    ids = [token for row in trained.encode_batch(tales()) for token in row]
    assert min(ids) > BOS_ID
    assert max(ids) < 360


def test_whole_words_are_learnt():
    texts = ["the king was dead"] * 5
    wordpiece = tokenizer.train(TokenizerConfig(vocabulary_size=32), texts)
    assert [wordpiece.piece(token) for token in wordpiece.encode_batch(["The KING was dead"])[0]] == texts[0].split()


def test_the_commonest_pair_is_merged_first():
    wordpiece = tokenizer.train(TokenizerConfig(vocabulary_size=10), ["ab"] * 1500 + ["cd"] * 2500)
    assert [wordpiece.piece(token) for token in range(10)] == [*RESERVED_PIECES, *"a b c d ##b ##d cd".split()]


_FINGERPRINT = """
import sys
from test_tokenizer import tales
from minigpt_jax import tokenizer
from minigpt_jax.config import TokenizerConfig
print(tokenizer.train(TokenizerConfig(kind=sys.argv[1], vocabulary_size=360), tales()).fingerprint)
"""


def test_training_again_elsewhere_gives_the_same(trained):
    kind = "wordpiece" if isinstance(trained, WordPiece) else "unigram"
    if trained.fingerprint == tokenizer.train(TokenizerConfig(kind="bpe", vocabulary_size=360), tales()).fingerprint:
        kind = "bpe"
    command = [sys.executable, "-c", _FINGERPRINT, kind]
    output = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert output.stdout.split() == [trained.fingerprint]
    assert output.stderr == ""  # training is quiet


def test_the_order_of_words_does_not_matter_to_wordpiece():
    config = TokenizerConfig(vocabulary_size=200)
    texts = tales()
    expected = tokenizer.train(config, texts).fingerprint
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        assert tokenizer.train(config, iter(texts)).fingerprint == expected


def test_large_corpora_are_sampled_alike_every_time(monkeypatch):
    monkeypatch.setattr(our_sentencepiece, "_MAX_SENTENCES", 50)
    sampled = [our_sentencepiece.train(iter(tales()), 300, "bpe").fingerprint for _ in range(2)]
    assert sampled[0] == sampled[1]
    monkeypatch.undo()
    assert our_sentencepiece.train(tales(), 300, "bpe").fingerprint != sampled[0]


def test_samples_are_even_and_long_texts_are_cut_between_words():
    kept = our_sentencepiece._sample(map(str, range(10_000)), 1000)
    assert len(set(kept)) == 1000
    assert abs(sum(map(int, kept)) / 1000 - 5000) < 300  # three standard errors
    sentences = list(our_sentencepiece._sentences(["words " * 400 + "\n\n" + "x" * 2500, "last"]))
    assert "".join(sentences) == "words " * 400 + "x" * 2500 + "last"
    assert [len(sentence) for sentence in sentences[3:]] == [1000, 1000, 500, 4]
    assert all(set(sentence.split()) == {"words"} for sentence in sentences[:3])


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_sizes_out_of_reach_name_the_size_that_works(kind):
    texts = ["the cat sat on the mat", "a dog ran to the cat"] * 20
    for wrong, word in ((20, "at least"), (5000, "at most")):
        with pytest.raises(UserError, match=f"--tokenizer.vocabulary-size {wrong} .* {word}") as error:
            tokenizer.train(TokenizerConfig(kind=kind, vocabulary_size=wrong), texts)
        assert "\n" not in str(error.value)
        right = int(str(error.value).rsplit(" ", 1)[1])
        assert len(tokenizer.train(TokenizerConfig(kind=kind, vocabulary_size=right), texts)) == right
        beyond = right + (1 if wrong > right else -1)
        with pytest.raises(UserError):
            tokenizer.train(TokenizerConfig(kind=kind, vocabulary_size=beyond), texts)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
def test_a_small_text_gives_what_pieces_it_can(kind):
    texts = ["the cat sat on the mat", "a dog ran to the cat"] * 20
    with pytest.raises(UserError) as error:
        tokenizer.train(TokenizerConfig(kind=kind, vocabulary_size=5000), texts)
    fitted = tokenizer.train(TokenizerConfig(kind=kind, vocabulary_size=5000, exact=False), texts)
    assert len(fitted) == int(str(error.value).rsplit(" ", 1)[1])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_text_of_many_characters_has_the_rarest_in_bytes(kind):
    common, rare = "\u5929\u5730", "".join(map(chr, range(0x4E00, 0x4F00)))
    texts = [common * 3, f"{common} cat dog bird"] * 30 + [rare]
    with pytest.raises(UserError, match=r"--tokenizer\.no-exact, or give at least"):
        tokenizer.train(TokenizerConfig(kind=kind, vocabulary_size=300), texts)
    fitted = tokenizer.train(TokenizerConfig(kind=kind, vocabulary_size=300, exact=False), texts)
    assert 259 < len(fitted) <= 300  # of unigram fewer, as what is left gives no more
    assert [fitted.decode(ids) for ids in fitted.encode_batch(texts)] == texts
    assert len(fitted.encode_batch([common])[0]) < 6
    with pytest.raises(UserError, match=r"259 is too small .*; give at least"):
        tokenizer.train(TokenizerConfig(kind=kind, vocabulary_size=259, exact=False), texts)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
@pytest.mark.parametrize("texts", [[], ["", " \n\t"]])
def test_training_without_words_is_refused(kind, texts):
    with pytest.raises(UserError, match="no word"):
        tokenizer.train(TokenizerConfig(kind=kind), texts)


# Files


def test_saved_tokenizers_load_and_pickle(trained, tmp_path):
    trained.save(tmp_path / "new" / "tokenizer")
    loaded = tokenizer.load(tmp_path / "new" / "tokenizer")
    for copy in (loaded, pickle.loads(pickle.dumps(trained))):
        assert copy.fingerprint == trained.fingerprint
        assert copy.encode_batch(NASTY) == trained.encode_batch(NASTY)


def test_odd_pieces_survive_saving(tmp_path):
    pieces = [*RESERVED_PIECES, " ", "## ", "\u2028", "##\x85", "\u3000", "É"]
    wordpiece = WordPiece(pieces, lowercase=False)
    wordpiece.save(tmp_path)
    loaded = tokenizer.load(tmp_path)
    assert [loaded.piece(token) for token in range(len(loaded))] == pieces
    assert loaded.fingerprint == wordpiece.fingerprint


def test_fingerprints_tell_behaviours_apart():
    fingerprints = {
        WordPiece(SMALL).fingerprint,
        WordPiece(SMALL, lowercase=False).fingerprint,
        WordPiece([*SMALL[:-2], SMALL[-1], SMALL[-2]]).fingerprint,
        WordPiece([*SMALL, "dog"]).fingerprint,
        tokenizer.train(TokenizerConfig(kind="bpe", vocabulary_size=300), tales()).fingerprint,
        tokenizer.train(TokenizerConfig(kind="bpe", vocabulary_size=301), tales()).fingerprint,
    }
    assert len(fingerprints) == 6
    assert WordPiece(SMALL).fingerprint == WordPiece(tuple(SMALL)).fingerprint


@pytest.mark.parametrize("damage", ["truncate", "other", "no pieces", "no settings", "bad settings"])
def test_damaged_folders_are_refused(trained, tmp_path, damage):
    trained.save(tmp_path)
    settings = tmp_path / "settings.json"
    (pieces,) = set(tmp_path.iterdir()) - {settings, tmp_path / "tokenizer.json"}
    if damage == "truncate":
        pieces.write_bytes(pieces.read_bytes()[:1000])
    elif damage == "other":
        pieces.write_bytes(pieces.read_bytes().replace(b"mi", b"im"))
    elif damage == "bad settings":
        settings.write_text("{")
    else:
        (pieces if damage == "no pieces" else settings).unlink()
    with pytest.raises(UserError, match="tokenizer"):
        tokenizer.load(tmp_path)


# SentencePiece


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def lossless(request) -> SentencePiece:
    return our_sentencepiece.train(tales() + NASTY, 420, request.param)


def test_sentencepiece_loses_nothing(lossless):
    rng = random.Random(0)
    texts = [text for text in NASTY if "\ud800" not in text] + [random_text(rng) for _ in range(2000)]
    for text, ids, (_, ends) in zip(
        texts, lossless.encode_batch(texts), lossless.encode_batch_with_ends(texts), strict=True
    ):
        assert lossless.decode([BOS_ID, *ids, PAD_ID, 5000]) == text
        assert not {PAD_ID, UNK_ID, BOS_ID} & set(ids)
        assert ends.tolist() == [len(text.encode()[:end]) for end in ends]
        assert ends.max(initial=0) == len(text.encode())


def test_sentencepiece_ends_cut_the_text_into_its_pieces(lossless):
    text = "ka  mister é🙂\u2581lo\n"
    ids, ends = lossless.encode_batch_with_ends([text])[0]
    cuts = zip([0, *ends[:-1]], ends, strict=True)
    for token, (start, end) in zip(ids, cuts, strict=True):
        piece, part = lossless.piece(int(token)), text.encode()[start:end]
        assert piece == (f"<0x{part[0]:02X}>" if piece.startswith("<0x") else part.decode().replace(" ", "\u2581"))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_digits_are_pieces_of_their_own(kind):
    texts = [f"in 1984 {text}" for text in tales()]
    (ids,) = (trained := our_sentencepiece.train(texts, 340, kind)).encode_batch(["in 1984"])
    assert "".join(trained.piece(token) or "" for token in ids[-4:]) == "1984"


def test_an_incomplete_character_is_decoded_as_a_replacement_character(lossless):
    first, *rest = lossless.encode_batch(["\U0010fffd"])[0]
    assert len(rest) == 3
    assert lossless.decode([first, *rest[:1]]).strip("\ufffd") == ""
    assert lossless.decode([first, *rest]) == "\U0010fffd"
    assert lossless.decode([UNK_ID]) == "[UNK]"


def test_a_tokenizer_that_is_unpickled_twice_is_the_same_object():
    """So that it remembers the words of the chunks before; other pieces or settings are another's."""
    pieces = [*RESERVED_PIECES, "a", "##b"]
    sent = [pickle.loads(pickle.dumps(WordPiece(pieces, lowercase=lower))) for lower in (True, True, False)]
    assert sent[0] is sent[1] is not sent[2]
    assert sent[2].encode_batch(["A ab"]) == [[1, 3, 4]]
    assert sent[0].encode_batch(["A ab"]) == [[3, 3, 4]]
