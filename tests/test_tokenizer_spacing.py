"""Text back from WordPiece's pieces: spaces around punctuation."""

import random

import pytest

from minigpt_jax.config import RESERVED_PIECES, UNK_ID
from minigpt_jax.tokenizer import WordPiece


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("hello , world !", "hello, world!"),
        ("is it so ? yes ; no : maybe . . . then", "is it so? yes; no: maybe... then"),
        ('" i am , " said he . " go ! "', '"i am," said he. "go!"'),
        ('he said , " go " ; ( it " was " late )', 'he said, "go"; (it "was" late)'),
        ("don ' t , it ' s we ' ll , i ' ve", "don't, it's we'll, i've"),
        ("don ’ t say “ the boys ’ hats ” — ‘ why ? ’", "don’t say “the boys’ hats”—‘why?’"),
        ("the boys ' hats , goin ' home", "the boys' hats, goin' home"),
        ("o ' clock , ma ' am , d ' artagnan", "o'clock, ma'am, d'artagnan"),
        ("' tis so , tell ' em .", "'tis so, tell 'em."),
        ("“ ’ tis so , ” said he", "“’tis so,” said he"),
        (
            "' i am , ' said he . ' the boys ' hats are here , ' he said",
            "'i am,' said he. 'the boys' hats are here,' he said",
        ),
        ("he said ' come here ' to them", "he said 'come here' to them"),
        ("\" he said ' no ' ! \"", "\"he said 'no'!\""),
        ("well - known men - - and -", "well-known men--and -"),
        ("it was — or is – so", "it was—or is–so"),
        ("a _ very _ old [ and torn ] { note }", "a _very_ old [and torn] {note}"),
        ("at 10 : 30 , $ 1 , 000 . 50 is 5 %", "at 10:30, $1,000.50 is 5%"),
        ("he is 10 . then", "he is 10. then"),
        ("日 本 の 本 、 漢 字 。 the 本", "日本の本、漢字。 the 本"),
        ("すき やき", "すき やき"),  # kana are not cut apart, so this space was written
        ("1 + 1 = 2 & * * *", "1 + 1 = 2 & * * *"),
        (". start", ". start"),
        ("", ""),
    ],
)
def test_tidy_text(words, text):
    pieces = [*RESERVED_PIECES, *sorted(set(words.split()))]
    wordpiece = WordPiece(pieces)
    ids = [pieces.index(word) for word in words.split()]
    assert wordpiece.decode(ids) == text
    assert wordpiece.decode(ids, tidy=False) == words
    assert wordpiece.encode_batch([text]) == [ids]


def test_tidying_never_changes_the_ids():
    marks = list(".,;:!?()[]{}%\"'_-/$&*#@^`~|\\<>=+") + list("“”‘’«»„…—–―、。「」日本")
    words = [*"a s t o in ing tis 1 000 の ax 11 inx".split(), *marks]
    wordpiece = WordPiece([*RESERVED_PIECES, *words, "##x", "##1"], lowercase=False)
    rng = random.Random(0)
    for _ in range(3000):
        (ids,) = wordpiece.encode_batch([" ".join(rng.choices(words, k=rng.randint(0, 10)))])
        assert UNK_ID not in ids
        assert wordpiece.encode_batch([wordpiece.decode(ids)])[0] == ids
