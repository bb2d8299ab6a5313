"""Spaces around punctuation, guessed back from words alone: `don ' t , " he said` becomes `don't, "he said`.

WordPiece forgets where the spaces were. The rules here suit English prose:

- Stops and closing brackets join the word before, opening brackets the word after, dashes both.
- Straight quotes open and close in turn; curly ones say which they are.
- An apostrophe joins both sides in contractions (`don't`, `o'clock`), the word after in elisions (`'tis`), the word
  before in plurals and dropped letters (`boys'`, `goin'`); else a straight one is a single quote.
- Points, commas and colons join digits; hyphens join words; ideographs stand close.

A space goes only where one side is a character that the tokenizer cuts off anyway, so that the text, encoded again, has
the same ids. A word's spacing depends on the words before it and the one after.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from minigpt_jax.tokenizer.characters import is_single

_CLOSING = frozenset(", . ; : ! ? ) ] } % ” » … ... 、 。 」 』".split())
_OPENING = frozenset("( [ { “ ‘ « „ $ 「 『".split())
_DASHES = frozenset("— – ― /".split())
_TOGGLES = frozenset('" _'.split())
_IN_NUMBERS = frozenset(". , :".split())
_APOSTROPHES = frozenset("' ’".split())

_AFTER_APOSTROPHE = frozenset("s t d m ll re ve er".split())  # it's, don't, he'd, i'm, we'll, they're, i've, ne'er
_BEFORE_APOSTROPHE = frozenset("o d l y ma th".split())  # o'clock, d'artagnan, l'état, y'all, ma'am, th'other
_ELISIONS = frozenset("tis twas twere twill twould em til cause bout un".split())


@dataclass
class _Quotes:
    """Which kinds of straight quote are open."""

    toggles: frozenset[str] = frozenset()
    single: bool = False


def tidy_join(words: Sequence[str]) -> str:
    """Joins words and lone punctuation marks to text, with spaces where English prose has them.

    >>> tidy_join(["we", "'", "ll", "see", ",", "she", "said", "."])
    "we'll see, she said."
    """
    quotes = _Quotes()
    text: list[str] = []
    before, joined = "", True  # the word before, and whether it takes no space after it
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else ""
        joins_before, joins_after = _joins(before, word, after, quotes)
        if not (joined or joins_before or _stand_close(before, word)):
            text.append(" ")
        text.append(word)
        before, joined = word, joins_after
    return "".join(text)


def _joins(before: str, word: str, after: str, quotes: _Quotes) -> tuple[bool, bool]:
    """Whether the word stands close to the one before and to the one after; "" is an end of the text."""
    if word in _APOSTROPHES:
        return _apostrophe_joins(before, word, after, quotes)
    if word in _TOGGLES:
        closes = word in quotes.toggles
        quotes.toggles ^= {word}
        return closes, not closes
    if word == "-":
        joins = "-" in (before, after) or (_is_word(before) and _is_word(after))
        return joins, joins
    if word in _DASHES:
        return True, True
    in_number = word in _IN_NUMBERS and before[-1:].isdigit() and after[:1].isdigit()
    return word in _CLOSING, word in _OPENING or in_number


def _apostrophe_joins(before: str, word: str, after: str, quotes: _Quotes) -> tuple[bool, bool]:
    between = _is_word(before) and _is_word(after)
    if between and (after.lower() in _AFTER_APOSTROPHE or before.lower() in _BEFORE_APOSTROPHE):
        return True, True
    if after.lower() in _ELISIONS:
        return False, True
    if word == "’":
        return True, False
    shortened = between and before.endswith(("s", "in"))
    opens = not quotes.single and _is_word(after) and not shortened
    if not shortened:
        quotes.single = opens
    return not opens, opens


def _is_word(word: str) -> bool:
    return any(map(str.isalnum, word))


def _stand_close(before: str, word: str) -> bool:
    """Chinese and Japanese are written without spaces; the tokenizer cuts off each ideograph."""
    last, first = before[-1], word[0]
    return _is_wide(last) and _is_wide(first) and (is_single(last) or is_single(first))


def _is_wide(char: str) -> bool:
    """Whether the character is from the East Asian blocks: their punctuation, kana, ideographs."""
    return "\u3000" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" or "\U00020000" <= char <= "\U0002fa1f"
