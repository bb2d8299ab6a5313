"""The Unicode rules of KerasHub's `WordPieceTokenizer`: split the text first, fold case word by word afterwards.

In KerasHub's own words (RE2 and ICU run by TensorFlow):

1. Blanks (space, control `Cc` and format `Cf` characters) separate words and are dropped. A no-break space is neither.
2. ASCII that is no letter or digit, Unicode punctuation `P`, and CJK ideographs are words of one character.
3. Each word is then mapped by Unicode's NFKC_Casefold, which also deletes default-ignorable characters.

A word's fold is never split again: "½" is the one word "1⁄2", "…" the one word "...". Normalising the text first, as
Hugging Face's BERT parts do, would cut those up. Accents are kept, as the tutorial keeps them. One difference is left:
TensorFlow Text loses what follows a NUL, which is a blank here as rule 1 has it.
"""

import unicodedata

# The blocks of ideographs that BERT split into single characters; later extensions are ordinary letters to it.
_CJK_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)

# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt), which unicodedata does not know.
_IGNORABLE_RANGES = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)

_CUT = "\0"  # marks the cuts; a NUL of the text itself is a blank, and stands as a space from here on


def is_blank(char: str) -> bool:
    """Whether the character separates words and is dropped."""
    return char == " " or unicodedata.category(char) in ("Cc", "Cf")


def is_single(char: str) -> bool:
    """Whether the character is a word of its own, whatever its neighbours."""
    if char.isascii():
        return "!" <= char <= "~" and not char.isalnum()
    return unicodedata.category(char).startswith("P") or _within(char, _CJK_RANGES)


def split(text: str) -> list[str]:
    """Cuts the text into chunks whose concatenation has the text's UTF-8 length.

    A chunk is empty, one blank, a word, or one blank and a word. An unpaired surrogate, which no UTF-8 text holds,
    becomes U+FFFD (three bytes, as it would be itself).
    """
    return text.translate(_SPLIT).split(_CUT)


def word_of(chunk: str) -> str:
    """The word of a chunk made by `split`; empty if there is none."""
    return chunk[1:] if chunk and is_blank(chunk[0]) else chunk


def fold(word: str) -> str:
    """Unicode's toNFKC_Casefold (The Unicode Standard, section 3.13, R5): map each character, then compose.

    Folding the whole string with `str.casefold` between two normalisations would differ: it reorders combining marks
    before the ignorable characters that kept them apart are gone.
    """
    return unicodedata.normalize("NFC", word.translate(_FOLD))


def _within(char: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(char) <= last for first, last in ranges)


class _Split(dict[int, str]):
    """A table for `str.translate` that puts cuts around characters; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if unicodedata.category(char) == "Cs":
            char = "\ufffd"
        if is_blank(char):
            self[code] = _CUT + (" " if char == _CUT else char)
        else:
            self[code] = f"{_CUT}{char}{_CUT}" if is_single(char) else char
        return self[code]


class _Fold(dict[int, str]):
    """A table for `str.translate`: Unicode's NFKC_Casefold of each character; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        char = unicodedata.normalize("NFKC", chr(code)).casefold()
        char = unicodedata.normalize("NFKC", char)
        self[code] = "".join(c for c in char if not _within(c, _IGNORABLE_RANGES))
        return self[code]


_SPLIT, _FOLD = _Split(), _Fold()
