"""How many tokens a pool generates between two looks at its texts."""

CHUNK_SECONDS = 0.04
"""A chunk takes about this long, so that the work between chunks costs little, and nobody sees a text halt."""
_FIRST, _MOST = 8, 128
_LEAST = 4
"""Chunks of fewer tokens tell little, because starting a chunk takes time too."""


class Pace:
    """The number of tokens of a pool's next chunk, from the time that its chunks take.

    Attributes:
        tokens: new tokens of a row, with which a chunk should take `CHUNK_SECONDS`.
    """

    def __init__(self) -> None:
        self.tokens = _FIRST

    def part_of(self, rest: int) -> int:
        """The number of tokens of the next chunk, if `rest` are still to be generated.

        They are divided evenly, so that the last chunk is not a short one.
        """
        return -(-rest // max(1, round(rest / self.tokens)))

    def observe(self, tokens: int, seconds: float, waited: bool) -> None:
        """Learns from a chunk of so many tokens.

        Args:
            seconds: from the start of the chunk until its end was seen.
            waited: whether somebody waited for the end. Else the chunk may have taken less time.
        """
        if tokens < min(_LEAST, self.tokens):
            return
        fitting = tokens * CHUNK_SECONDS / seconds if waited else 2 * self.tokens
        self.tokens = max(1, min(round(fitting), 2 * self.tokens, _MOST))
