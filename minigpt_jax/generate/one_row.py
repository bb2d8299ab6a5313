"""A single prompt as the one row of a compiled program, for the programs that look into sampling."""

from typing import TYPE_CHECKING, Any, NamedTuple

from minigpt_jax.generate import requests
from minigpt_jax.generate.settings import GenerationSettings
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import Processor, Request, Sampler

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
    plan = lm.plan([prompt], sampler, [settings])
    sizes = requests.sizes(plan.rows[:1], lm.model.sequence_length)
    request = requests.request(plan.rows[:1], sizes, lm.tokenizer, lm.model.vocabulary_size)
    return OneRow(plan.rows[0], sizes, devices.split_rows(request), *lm.decode_form, plan.processors)
