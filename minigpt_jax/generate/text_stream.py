"""The text of a generation as it grows, in pieces that later tokens do not change."""

from collections.abc import Sequence

from minigpt_jax.generate.generation import Generation
from minigpt_jax.generate.settings import GenerationSettings
from minigpt_jax.generate.split_text import end_of
from minigpt_jax.generate.texts import settled, stop_overlap, without_partial_stop
from minigpt_jax.tokenizer import Tokenizer


class TextStream:
    """Turns the growing generations of one text into pieces: whole words, whole characters.

    What may turn out to begin a stop is held back until it is known. Joined, the pieces are the last generation's text;
    only a space may differ, if a tokenizer changes it later than `settled` expects.

    Args:
        prompt_ids: the prompt's ids without the start token, to stream `full_text`; None to stream `text`.
    """

    def __init__(
        self, tokenizer: Tokenizer, settings: GenerationSettings, prompt_ids: Sequence[int] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._strings, self._sequences = settings.stop_strings, settings.stop_sequences
        self._prompt_ids = prompt_ids
        self._given = ""

    def piece(self, generation: Generation, finished: bool) -> str:
        """What can be added to the pieces so far, now that the text has grown to this; "" if nothing can yet."""
        text = generation.text if self._prompt_ids is None else generation.full_text
        if not finished:
            tokens = generation.tokens
            if held := stop_overlap(tokens, self._sequences):
                text = self._tokenizer.decode([*(self._prompt_ids or ()), *tokens[: len(tokens) - held]])
            text = without_partial_stop(settled(text), self._strings)
        piece = text[end_of(self._given, text) :]
        if piece:
            self._given = text
        return piece
