"""Guesses the spaces around punctuation from words alone: `don ' t , " he said` becomes `don't, "he said`.

WordPiece does not encode where the spaces were. These rules suit English prose:

- Stops and closing brackets are attached to the word before, opening brackets to the word after, dashes to both.
- Straight quotes alternate between opening and closing. Curly ones are opening or closing by themselves.
- An apostrophe is attached to both sides in contractions (`don't`, `o'clock`), to the word after in elisions (`'tis`),
  and to the word before in plurals and dropped letters (`boys'`, `goin'`). Any other straight one is a single quote.
- Points, commas and colons are attached to digits, hyphens to words. Ideographs have no spaces between them.

A space is removed only next to a character that the tokenizer splits off in any case, so that encoding the result gives
the same ids. The spacing of a word depends on the words before it and on the word after it.
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
_MARKS = _CLOSING | _OPENING | _DASHES | _TOGGLES | _IN_NUMBERS | _APOSTROPHES | {"-"}

_AFTER_APOSTROPHE = frozenset("s t d m ll re ve er".split())  # it's, don't, he'd, i'm, we'll, they're, i've, ne'er
_BEFORE_APOSTROPHE = frozenset("o d l y ma th".split())  # o'clock, d'artagnan, l'état, y'all, ma'am, th'other
_ELISIONS = frozenset("tis twas twere twill twould em til cause bout un".split())


@dataclass
class _Quotes:
    """The straight quotes that are open."""

    toggles: frozenset[str] = frozenset()
    single: bool = False


def tidy_join(words: Sequence[str]) -> str:
    """Joins words and single punctuation marks to a text, with spaces where English prose has them.

    >>> tidy_join(["we", "'", "ll", "see", ",", "she", "said", "."])
    "we'll see, she said."
    """
    quotes = _Quotes()
    text: list[str] = []
    before, joined = "", True  # the word before, and whether it has no space after it
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else ""
        joins_before, joins_after = _joins(before, word, after, quotes)
        if not (joined or joins_before or _stand_close(before, word)):
            text.append(" ")
        text.append(word)
        before, joined = word, joins_after
    return "".join(text)


def _joins(before: str, word: str, after: str, quotes: _Quotes) -> tuple[bool, bool]:
    """Whether the word is attached to the one before, and to the one after. "" is an end of the text."""
    if word not in _MARKS:
        return False, False
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
    """Whether there is no space between two words of Chinese or Japanese, of which the tokenizer splits ideographs."""
    last, first = before[-1], word[0]
    if last < "\u3000":  # as nearly always
        return False
    return _is_wide(last) and _is_wide(first) and (is_single(last) or is_single(first))


def _is_wide(char: str) -> bool:
    """Whether the character is in one of the East Asian blocks: punctuation, kana and ideographs."""
    return "\u3000" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" or "\U00020000" <= char <= "\U0002fa1f"
