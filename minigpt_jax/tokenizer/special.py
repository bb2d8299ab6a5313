"""The special tokens of a tokenizer: what begins a text, what ends it, and what no text consists of."""

from dataclasses import asdict, dataclass
from typing import Any

from minigpt_jax.config import BOS_ID, PAD_ID, UNK_ID, Layout


@dataclass(frozen=True)
class SpecialIds:
    """The ids of a tokenizer's special tokens.

    Attributes:
        start: the token before every text, which also separates the documents of a row.
        line_end: the token that fills a row of the lines layout after its text. A model of that layout learns it as the
            end of a text.
        text_ends: other tokens that end a text in the other layouts.
        controls: other tokens that no text consists of, such as a mask.
        unknown: the token that stands for text without a piece, if there is one.
    """

    start: int
    line_end: int
    text_ends: tuple[int, ...] = ()
    controls: tuple[int, ...] = ()
    unknown: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The ids as plain JSON values, from which `from_json` makes them again."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "SpecialIds":
        ends, controls = tuple(value["text_ends"]), tuple(value["controls"])
        return cls(value["start"], value["line_end"], ends, controls, value["unknown"])

    @property
    def banned(self) -> tuple[int, ...]:
        """The tokens that no text consists of. They are sampled only if the user asks for them."""
        return tuple(sorted({self.start, self.line_end, *self.text_ends, *self.controls}))

    def ends(self, layout: Layout) -> tuple[int, ...]:
        """The tokens that end a text of a model that was trained in this layout, the most usual one first."""
        return (self.line_end,) if layout == "lines" else (self.start, *self.text_ends)


OWN = SpecialIds(start=BOS_ID, line_end=PAD_ID, unknown=UNK_ID)
"""The special tokens of the tokenizers that are trained here."""
