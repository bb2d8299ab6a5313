"""WordPiece against KerasHub's `WordPieceTokenizer`, run for real, on text made to be hard."""

import random
import unicodedata
from types import ModuleType

import pytest

from minigpt_jax.config import RESERVED_PIECES, TokenizerConfig
from minigpt_jax.tokenizer import WordPiece, train
from minigpt_jax.tokenizer.characters import fold

HARD = [
    "",
    " \t\n\r\f\v  two  blanks ",
    "The Quick brown fox's “jumps” — over ‘the’ lazy–dog… don't, don’t!",
    "½ cup, 3¼ and ⅓; ﬁne ofﬁce, ﬂow; ² ³ ⁴ ₂ ™ ℡ № ㎏ ㍿ Ⅳ ⅳ ① ⑴ a⑴b ㈱",
    "é e\u0301 É E\u0301 ñ n\u0303 ǻ a\u030a\u0301 q\u0307\u0323 q\u0323\u0307 \u0301alone ÇA Œuvre Æther",
    "soft\u00adhyphen zero\u200bwidth non\u200cjoiner joi\u200dner word\u2060joiner byte\ufefforder lrm\u200e \u061c",
    "no\u00a0break thin\u2009space ideographic\u3000space ogham\u1680 nel\u0085 line\u2028sep para\u2029sep",
    "gra\u034fpheme \u034f \ufe0f v\ufe0fs \u180emvs hangul\u115ffiller\u3164 \uffa0 tag\U000e0041",
    "İstanbul ISTANBUL ı ŞIŞ Straße STRASSE ẞ ΑΣ ας ΑΣΣ ᾳ \u1fb3\u0301 α\u0345\u0301 ΐ ŉ ǰ ʼn",
    "日本語のテキスト 漢字、かな。「括弧」 中文，標點！ 한국어 \u1112\u1161\u11ab ｶﾞ ＡＢＣ１ 豈 \U00020000 \U0002f800",
    "$5 £4 €3 ¢2 ^hat `tick` ~tilde |pipe| <b> =+ a_b c*d e/f g\\h 100% #tag @user & § ¶ ° · • ● × ÷ ± ´ ¨ a´b ¯",
    "[UNK] [PAD] [BOS] [bos] ##s # # ##",
    "🙂 👩‍👩‍👧 🇫🇷 1️⃣ ☺️ \U0001f1e6 a🙂b",
    "bell\x07 a\x01b esc\x1b del\x7f \x80\x9f c1",
    " ".join("a" * n for n in (99, 100, 101, 102)) + " " + " ".join("é" * n for n in (49, 50, 51, 99, 101)),
    "½" * 20 + " " + "½" * 19 + " " + "ﷺ" * 4 + " " + "a" * 300 + "." + "b" * 5,
    "العَرَبِيَّة עִבְרִית ไทย हिन्दी தமிழ் Ελληνικά Кириллица Ё ё Й й ქართული ᏣᎳᎩ ꭰ Ꭰ",
    "«guillemets» „low‟ ‹a› ¿qué? ¡sí! ⁂ ‽ ※ 〽 ⸘ ﹟ ＃ ﹪ ‰ ⟨a⟩ ₍a₎ ❨a❩",
]


def random_texts(count: int) -> list[str]:
    """Sequences drawn from ordinary letters, blanks, marks, everything below U+3100, and everything assigned."""
    assigned = [chr(c) for c in range(1, 0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")]
    low = [char for char in assigned if ord(char) < 0x3100]
    marks = [char for char in assigned if unicodedata.combining(char)]
    pools = [list("abcABC '.,-"), list(" \t\u00a0\u00ad\u200b\u034f\ufe0f"), marks, low, assigned]
    rng = random.Random(0)
    return ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def keras_hub() -> ModuleType:
    """Imported when a test needs it: that takes seconds, which collecting the tests should not."""
    pytest.importorskip("tensorflow_text")
    return pytest.importorskip("keras_hub")


def assert_same_ids(keras_hub: ModuleType, vocabulary: list[str], lowercase: bool, texts: list[str]) -> None:
    """Runs KerasHub as the tutorial does, inside tf.data; called eagerly, newer versions sort marks otherwise."""
    import tensorflow as tf

    layer = keras_hub.tokenizers.WordPieceTokenizer(vocabulary, lowercase=lowercase)
    batches = tf.data.Dataset.from_tensor_slices(texts).batch(256).map(layer)
    theirs = [row for batch in batches for row in batch.to_list()]
    ours = WordPiece(vocabulary, lowercase).encode_batch(texts)
    differing = [ascii(text) for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    assert not differing, f"{len(differing)} of {len(texts)} differ, such as {differing[:3]}"


@pytest.mark.parametrize("lowercase", [True, False])
def test_same_ids_where_every_character_has_a_piece(keras_hub, lowercase):
    """Nothing hides behind [UNK] here: each character of the texts and of their folds is a piece."""
    texts = HARD + random_texts(3000)
    chars = sorted({char for text in texts for char in text + fold(text)} - {" "})
    vocabulary = [*RESERVED_PIECES, *chars, *(f"##{char}" for char in chars)]
    assert_same_ids(keras_hub, vocabulary, lowercase, texts)


@pytest.mark.parametrize("lowercase", [True, False])
def test_same_ids_with_a_trained_vocabulary(keras_hub, lowercase):
    """Pieces of several characters, and pieces that hold punctuation or blanks, as folds may."""
    words = "the once upon time king queen forest castle running walked unbelievable don't “well,” said".split()
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=20)).title() for _ in range(200)] + HARD
    trained = train(TokenizerConfig(vocabulary_size=650, lowercase=lowercase), texts)
    pieces = [trained.piece(token) or "" for token in range(len(trained))]
    odd = ["...", "##...", "##(", "## ", "##1⁄2", "##aaaa"]
    assert_same_ids(keras_hub, list(dict.fromkeys(pieces + odd)), lowercase, texts + random_texts(500))


def test_same_ids_with_the_vocabulary_of_kerashubs_trainer(keras_hub):
    import tensorflow as tf

    texts = [line for line in HARD if line] * 3
    vocabulary = keras_hub.tokenizers.compute_word_piece_vocabulary(
        tf.data.Dataset.from_tensor_slices(texts),
        vocabulary_size=2000,
        lowercase=True,
        reserved_tokens=list(RESERVED_PIECES),
    )
    assert_same_ids(keras_hub, vocabulary, True, texts + random_texts(500))
