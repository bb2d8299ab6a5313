"""A single prompt as the one row of a compiled program, for the programs that look into sampling."""

from typing import TYPE_CHECKING, Any, NamedTuple

from minigpt_jax.generate import requests
from minigpt_jax.generate.settings import GenerationSettings
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import Processor, Request, Sampler, checked

if TYPE_CHECKING:
    from minigpt_jax.generate.language_model import LanguageModel


class OneRow(NamedTuple):
    """What a program for the prompt needs."""

    row: requests.Row
    sizes: requests.Sizes
    request: Request
    """Split over the devices; the rows after the first generate nothing."""
    model: Any
    weights: Any
    processors: tuple[Processor, ...]


def prepare(lm: "LanguageModel", prompt: str | list[int], sampler: Sampler, settings: GenerationSettings) -> OneRow:
    """The program's arguments for the first of a prompt's texts.

    Raises:
        UserError: a setting that is not allowed, or a prompt that leaves no room in the window.
    """
    sampler.validate(len(lm.tokenizer))
    [ids], text = lm.prompt_ids([prompt]), prompt if isinstance(prompt, str) else lm.tokenizer.decode(prompt)
    row = requests.rows([text], [ids], [0], sampler, [settings], lm.model)[0]
    sizes = requests.sizes([row], lm.model.sequence_length)
    request = devices.split_rows(requests.request([row], sizes, lm.tokenizer, lm.model.vocabulary_size))
    return OneRow(row, sizes, request, *lm.stepped, checked(settings.processors))
