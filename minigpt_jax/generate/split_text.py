"""The text of each token of a text, so that together they are the text."""

import itertools
from collections.abc import Sequence

from minigpt_jax.generate.texts import Decode

_CONTEXT = 32
"""Tokens of context that determine the spacing of the next one, apart from rare cases."""


class TextSplitter:
    """Splits the text of a prompt and the tokens after it at the tokens' ends, while tokens arrive.

    A tokenizer may join pieces with or without a space, depending on the pieces around them, and a character may take
    several tokens. A token's text is what the text up to it adds to the text before it, so it begins with the space
    before the token. It is empty for a token without text, and for all but the last token of a character.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode, self._prompt = decode, list(prompt)
        self._until: list[str] = [decode(self._prompt)]

    def split(self, tokens: Sequence[int]) -> tuple[str, list[str]]:
        """The text of the prompt, and that of each token. The tokens have to continue those of the last call."""
        for end in range(len(self._until), len(tokens) + 1):
            self._until.append(self._decode([*self._prompt, *tokens[:end]]))
        whole = self._until[len(tokens)]
        visible = _visible(whole)
        ends = [0]
        for until in self._until[: len(tokens)]:
            ends.append(max(ends[-1], end_of(until.rstrip("\ufffd"), whole, visible)))
        ends = [*ends[1:], len(whole)]
        return whole[: ends[0]], [whole[start:end] for start, end in itertools.pairwise(ends)]


def text_after(decode: Decode, before: Sequence[int], token: int) -> str:
    """What a token adds to the text before it, of which only the last tokens matter."""
    return TextSplitter(decode, before[-_CONTEXT:]).split([token])[1][0]


def offsets(decode: Decode, before: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """Where the text of each token begins in the text of `before` and the tokens, in characters.

    The time is proportional to the number of tokens, as only the last tokens before each one are decoded. Where spaces
    depend on tokens further back, as those around a quotation mark do, an offset may differ by such a space.
    """
    found, end, all_tokens = [], len(decode(list(before)).rstrip("\ufffd")), [*before, *tokens]
    for start in range(len(before), len(all_tokens), _CONTEXT):
        context, part = all_tokens[max(0, start - _CONTEXT) : start], all_tokens[start : start + _CONTEXT]
        pieces = TextSplitter(decode, context).split(part)[1]
        pieces[-1] = pieces[-1].rstrip("\ufffd")  # of a character that a later token ends
        found += itertools.accumulate(map(len, pieces[:-1]), initial=end)
        end = found[-1] + len(pieces[-1])
    return found


def end_of(part: str, whole: str, visible: list[int] | None = None) -> int:
    """Where the beginning of a text ends in the whole. If they are spaced differently, spaces do not count.

    Args:
        visible: the indices of the characters of the whole that are no spaces, if they are known.
    """
    if whole.startswith(part):
        return len(part)
    visible = _visible(whole) if visible is None else visible
    count = len(_visible(part))
    return visible[count - 1] + 1 if 0 < count <= len(visible) else 0 if not count else len(whole)


def _visible(text: str) -> list[int]:
    return [at for at, character in enumerate(text) if not character.isspace()]
