"""Train small GPT language models from scratch in JAX, and sample from them.

>>> lm = minigpt_jax.load("runs/simplebooks")
>>> lm.generate(["once upon a time"], sampler=minigpt_jax.TopP(p=0.9), max_new_tokens=80, seed=0)[0].text
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt_jax.config import Experiment as Experiment
    from minigpt_jax.errors import UserError as UserError
    from minigpt_jax.generate import Generation as Generation
    from minigpt_jax.generate import LanguageModel as LanguageModel
    from minigpt_jax.generate import load as load
    from minigpt_jax.samplers import Beam as Beam
    from minigpt_jax.samplers import Contrastive as Contrastive
    from minigpt_jax.samplers import Greedy as Greedy
    from minigpt_jax.samplers import MinP as MinP
    from minigpt_jax.samplers import Random as Random
    from minigpt_jax.samplers import TopK as TopK
    from minigpt_jax.samplers import TopP as TopP
    from minigpt_jax.samplers import Typical as Typical

_HOMES = {
    "config": ["Experiment"],
    "errors": ["UserError"],
    "generate": ["Generation", "LanguageModel", "load"],
    "samplers": ["Beam", "Contrastive", "Greedy", "MinP", "Random", "TopK", "TopP", "Typical"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __dir__() -> list[str]:
    return [*globals(), *_HOME]


def __getattr__(name: str) -> Any:
    # On first use, so that what only needs the tokenizer or a corpus does not wait for JAX.
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
