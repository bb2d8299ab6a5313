"""What generation does with text on the host: prompts, stops, and the part of a text that is settled."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from minigpt_jax.errors import UserError
from minigpt_jax.generate.settings import GenerationSettings

Decode = Callable[[list[int]], str]


def as_texts(texts: Any, name: str) -> list[str]:
    """A string as one text, or the strings of any iterable. Raises UserError for anything else."""
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | dict):
        raise UserError(f"{name}: must be a string or several of them, not {type(texts).__name__}")
    found = [str(text) if isinstance(text, str) else text for text in texts]  # of NumPy's strings, plain ones
    for text in found:
        if not isinstance(text, str):
            raise UserError(f"{name}: {text!r} is not a string; give strings, such as ['once upon a time']")
    return found


def as_prompts(prompts: Any) -> list[str | list[int]]:
    """A string as one prompt, or those of any iterable: strings and sequences of token ids.

    Raises:
        UserError: it is anything else.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Iterable) or isinstance(prompts, bytes | dict):
        return [*as_texts(prompts, "prompts")]
    found: list[str | list[int]] = []
    for prompt in prompts:
        if isinstance(prompt, Sequence | np.ndarray) and not isinstance(prompt, str | bytes):
            if not all(isinstance(token, int | np.integer) for token in prompt):
                raise UserError("prompts: a list within the list must be token ids; give strings, or lists of ids")
            found.append([int(token) for token in prompt])
        else:
            found += as_texts([prompt], "prompts")
    return found


class StopScanner:
    """Looks for stop strings in one row's text as its tokens arrive. What it finds is independent of the chunks.

    A string counts if it is completed by a token after the first `min_new_tokens` new ones. As later tokens may change
    the spacing of a text, it is searched as it stood after each token; but only if the string is there at all, apart
    from spaces.

    Attributes:
        tokens: new tokens up to the one that completes a stop string, once there is one.
        text: their text up to where that string begins.
    """

    def __init__(self, strings: Sequence[str], decode: Decode, min_new_tokens: int) -> None:
        self._strings, self._decode, self._least = strings, decode, min_new_tokens + 1
        self._scanned = self._least - 1
        self._early: int | None = None
        self.tokens: int | None = None
        self.text = ""

    @classmethod
    def of(cls, settings: GenerationSettings, decode: Decode) -> "StopScanner | None":
        """The scanner of a row with these settings; None if no string ends it."""
        strings = settings.stop_strings
        return cls(strings, decode, settings.min_new_tokens) if strings else None

    def scan(self, tokens: Sequence[int]) -> bool:
        """Scans the new ones of the tokens so far; True once a stop string is complete."""
        if self._early is None and len(tokens) >= self._least:
            # What is complete in the text before the first token that counts never counts.
            self._early = len(self._decode(list(tokens[: self._least - 1])))
        if self._scanned < len(tokens) and not self._may_contain(tokens):
            self._scanned = len(tokens)
        while self.tokens is None and self._scanned < len(tokens):
            self._scanned += 1
            text = self._decode(list(tokens[: self._scanned]))
            early = self._early or 0
            begins = [text.find(one, max(0, early - len(one) + 1) if early else 0) for one in self._strings]
            if found := [begin for begin in begins if begin >= 0]:
                self.tokens, self.text = self._scanned, text[: min(found)]
        return self.tokens is not None

    def _may_contain(self, tokens: Sequence[int]) -> bool:
        """Whether the text of the tokens, or of some of the first ones, may contain a stop string."""
        text = self._decode(list(tokens)).replace(" ", "")
        return any("\ufffd" in one or one.replace(" ", "") in text for one in self._strings)


def without_partial_stop(text: str, strings: Sequence[str]) -> str:
    """An unfinished text without the end that may turn out to begin a stop string.

    Spaces do not count, as later tokens may still remove them.
    """
    joined = [one.replace(" ", "") for one in strings]
    for length in range(min(2 * max(map(len, strings), default=0), len(text)), 0, -1):
        if any(one.startswith(text[-length:].replace(" ", "")) for one in joined):
            return text[:-length]
    return text


def stop_overlap(tokens: Sequence[int], sequences: Sequence[Sequence[int]]) -> int:
    """How many of the last tokens are the beginning, or all, of one of the stop sequences."""
    longest = min(max(map(len, sequences), default=0), len(tokens))
    return next((n for n in range(longest, 0, -1) if any(list(one[:n]) == list(tokens[-n:]) for one in sequences)), 0)


def stop_length(tokens: Sequence[int], sequences: Sequence[Sequence[int]]) -> int:
    """The length of the longest stop sequence that the tokens end in; 0 if they end in none."""
    complete = (len(one) for one in sequences if one and list(tokens[-len(one) :]) == list(one))
    return max(complete, default=0)


def settled(text: str) -> str:
    """The part of an unfinished text that later tokens will not change: whole characters and whole words.

    A wide character, such as a Chinese one, is a word of its own. An apostrophe before the last word is left out too,
    because that word may still grow into one that changes the space before it.
    """
    text = text.rstrip("\ufffd")
    for end in range(len(text), 0, -1):
        if text[end - 1] == " ":
            return text[:end].rstrip(" '’")
        if unicodedata.east_asian_width(text[end - 1]) in "WF":
            return text[:end]
    return ""


def abbreviated(text: str) -> str:
    """A text's first characters, for a message."""
    return text if len(text) <= 40 else text[:37] + "…"
