"""The Unicode rules of KerasHub's `WordPieceTokenizer`: the text is split first, then case is folded word by word.

KerasHub implements these rules by RE2 and ICU in TensorFlow:

1. Blanks (spaces, control characters `Cc` and format characters `Cf`) separate words and are dropped. A no-break space
   is not a blank.
2. ASCII characters other than letters and digits, Unicode punctuation `P`, and CJK ideographs are words of one
   character.
3. Each word is then mapped by Unicode's NFKC_Casefold, which also deletes default-ignorable characters.

A folded word is not split again: "½" becomes the single word "1⁄2", and "…" the single word "...". Normalising the text
first, as Hugging Face's BERT normaliser does, would split these. Accents are kept, as in the tutorial. There is one
difference to KerasHub: TensorFlow Text drops the text after a NUL, which is a blank here, by rule 1.
"""

import unicodedata

# The blocks of ideographs that BERT splits into single characters. It treats later extensions as ordinary letters.
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

# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt), which unicodedata does not provide.
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

_CUT = "\0"  # marks where the text is cut; a NUL in the text itself is a blank, and is replaced by a space


def is_blank(char: str) -> bool:
    """Whether the character separates words and is dropped."""
    return char == " " or unicodedata.category(char) in ("Cc", "Cf")


def is_single(char: str) -> bool:
    """Whether the character is always a word by itself."""
    if char.isascii():
        return "!" <= char <= "~" and not char.isalnum()
    return unicodedata.category(char).startswith("P") or _within(char, _CJK_RANGES)


def split(text: str) -> list[str]:
    """Cuts the text into chunks, the concatenation of which has as many UTF-8 bytes as the text.

    A chunk is empty, a blank, a word, or a blank followed by a word. An unpaired surrogate, which cannot be encoded in
    UTF-8, becomes U+FFFD (which has three bytes, as the surrogate would have).
    """
    return text.translate(_SPLIT).split(_CUT)


def word_of(chunk: str) -> str:
    """The word of a chunk made by `split`, which is empty if the chunk has none."""
    return chunk[1:] if chunk and is_blank(chunk[0]) else chunk


def fold(word: str) -> str:
    """Unicode's toNFKC_Casefold (The Unicode Standard, section 3.13, R5): maps each character, then composes.

    Applying `str.casefold` to the whole string between two normalisations would give other results: it would reorder
    combining marks before the ignorable characters between them are removed.
    """
    return unicodedata.normalize("NFC", word.translate(_FOLD))


def _within(char: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(char) <= last for first, last in ranges)


class _Split(dict[int, str]):
    """A table for `str.translate` that inserts cuts around characters. It is filled on demand."""

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
    """A table for `str.translate` with Unicode's NFKC_Casefold of each character. It is filled on demand."""

    def __missing__(self, code: int) -> str:
        char = unicodedata.normalize("NFKC", chr(code)).casefold()
        char = unicodedata.normalize("NFKC", char)
        self[code] = "".join(c for c in char if not _within(c, _IGNORABLE_RANGES))
        return self[code]


_SPLIT, _FOLD = _Split(), _Fold()
