"""The special tokens of a tokenizer: what begins a text, what ends it, and what no text consists of."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from minigpt_jax.config import BOS_ID, PAD_ID


@dataclass(frozen=True)
class SpecialIds:
    """The ids of a tokenizer's special tokens.

    Attributes:
        start: the token before every text, which also separates the documents of the packed layout.
        line_end: the token that fills a row of the lines layout after its text. A model of that layout learns it as the
            end of a text.
        text_ends: other tokens that end a text in the packed layout.
        controls: other tokens that no text consists of, such as a mask.
    """

    start: int
    line_end: int
    text_ends: tuple[int, ...] = ()
    controls: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The ids as plain JSON values, from which `from_json` makes them again."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "SpecialIds":
        return cls(value["start"], value["line_end"], tuple(value["text_ends"]), tuple(value["controls"]))

    @property
    def banned(self) -> tuple[int, ...]:
        """The tokens that no text consists of. They are sampled only if the user asks for them."""
        return tuple(sorted({self.start, self.line_end, *self.text_ends, *self.controls}))

    def ends(self, layout: Literal["lines", "packed"]) -> tuple[int, ...]:
        """The tokens that end a text of a model that was trained in this layout, the most usual one first."""
        return (self.line_end,) if layout == "lines" else (self.start, *self.text_ends)


OWN = SpecialIds(start=BOS_ID, line_end=PAD_ID)
"""The special tokens of the tokenizers that are trained here."""
