"""One prompt under several methods, with the figures in which they differ."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt_jax.generate import measures
from minigpt_jax.generate.generation import FinishReason
from minigpt_jax.generate.language_model import LanguageModel
from minigpt_jax.generate.methods import settings_in
from minigpt_jax.generate.settings import GenerationSettings
from minigpt_jax.samplers import Sampler


@dataclass(frozen=True)
class Compared:
    """A method's text and its figures.

    Attributes:
        sampler: the method's name.
        settings: its settings by name.
        text: without the prompt.
        full_text: prompt and text decoded as one.
        repeated_4grams: share of the 4-grams of new tokens that occurred before; greedy search has a high one.
        distinct_2: distinct pairs of successive new tokens, divided by all pairs.
        mean_logprob: the model's own, in nats per token.
        tokens_per_second: of this one text, once the method is compiled.
    """

    sampler: str
    settings: dict[str, float]
    text: str
    full_text: str
    finish_reason: FinishReason
    repeated_4grams: float
    distinct_2: float
    mean_logprob: float
    tokens_per_second: float


def compare(
    lm: LanguageModel, prompt: str, methods: Sequence[Sampler], settings: GenerationSettings | None = None
) -> Iterator[Compared]:
    """Yields each method's text for the prompt as it is made.

    Raises:
        UserError: as `generate` does.
    """
    for method in methods:
        call = lambda method=method: lm.generate([prompt], method, settings=settings)  # noqa: E731
        call()  # compiles
        start = time.perf_counter()
        generation = call()[0]
        seconds = time.perf_counter() - start
        tokens = generation.tokens
        yield Compared(
            sampler=method.name,
            settings=settings_in(method),
            text=generation.text,
            full_text=generation.full_text,
            finish_reason=generation.finish_reason,
            repeated_4grams=measures.repeated_ngrams(tokens, 4),
            distinct_2=measures.distinct_ngrams(tokens, 2),
            mean_logprob=sum(generation.logprobs) / max(len(tokens), 1),
            tokens_per_second=len(tokens) / seconds,
        )
