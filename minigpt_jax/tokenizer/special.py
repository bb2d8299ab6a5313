"""The special tokens of a tokenizer: what begins a text, what ends it, and what no text consists of."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from minigpt_jax.config import BOS_ID, PAD_ID, Experiment

if TYPE_CHECKING:
    from minigpt_jax.tokenizer import Tokenizer


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

    @property
    def banned(self) -> tuple[int, ...]:
        """The tokens that no text consists of. They are sampled only if the user asks for them."""
        return tuple(sorted({self.start, self.line_end, *self.text_ends, *self.controls}))

    def ends(self, layout: Literal["lines", "packed"]) -> tuple[int, ...]:
        """The tokens that end a text of a model that was trained in this layout, the most usual one first."""
        return (self.line_end,) if layout == "lines" else (self.start, *self.text_ends)


OWN = SpecialIds(start=BOS_ID, line_end=PAD_ID)
"""The special tokens of the tokenizers that are trained here."""


def with_tokenizer(experiment: Experiment, tokenizer: "Tokenizer") -> Experiment:
    """The experiment with the settings filled in that follow from its tokenizer."""
    return replace(experiment, tokenizer=replace(experiment.tokenizer, start_id=tokenizer.special.start))
