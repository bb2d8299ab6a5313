"""What generation does with text on the host: stop strings, and the part of a text that is settled."""

from collections.abc import Sequence
from typing import Any

from minigpt_jax.errors import UserError

Stop = str | int | Sequence[int]


def sorted_stops(stop: Sequence[Stop] | Stop) -> tuple[list[str], list[list[int]]]:
    """Stop strings, and stop sequences of ids. Raises UserError for an empty string."""
    stops: Sequence[Any] = [stop] if isinstance(stop, str | int) else stop
    strings = [one for one in stops if isinstance(one, str)]
    if "" in strings:
        raise UserError("--stop '': an empty string stops nothing; leave it out")
    sequences = [[one] if isinstance(one, int) else list(one) for one in stops if not isinstance(one, str)]
    return strings, sequences


def first_stop(text: str, strings: Sequence[str]) -> tuple[int, str] | None:
    """Where the earliest stop string begins in a text, and which it is."""
    return min(((text.find(one), one) for one in strings if one in text), default=None)


def settled(text: str) -> str:
    """The part of an unfinished text that later tokens will not change: all before the last word."""
    return text[: text.rstrip().rfind(" ") + 1].rstrip()


def head(text: str) -> str:
    """A text's first words, for a message."""
    return text if len(text) <= 40 else text[:37] + "…"
