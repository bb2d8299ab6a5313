"""The architectures of llama.cpp that a `ModelConfig` can describe.

They are those of Transformers, but the code of llama.cpp leaves less to be chosen: each architecture has one
activation, and some have all biases or one width of a head. All tensors have the shapes of PyTorch's, as GPT-2's have
not in Transformers.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minigpt_jax.interchange.architectures import APERTUS, ARCEE, GPT2, LLAMA, QWEN2, QWEN3, STABLELM, STARCODER2
from minigpt_jax.interchange.mapping import Architecture


def _narrowed(architecture: Architecture, activation: str = "", form: Mapping[str, Any] | None = None) -> Architecture:
    """An architecture with only one of its activations, and with fields that it determines itself."""
    form = form or {}
    settings = []
    for one in architecture.settings:
        if one.field == "activation" and activation and one.values is not None:
            one = one._replace(values={key: value for key, value in one.values.items() if value == activation})
        if one.field not in form:
            settings.append(one)
    return replace(architecture, form={**architecture.form, **form}, settings=tuple(settings))


_ONE_HEAD_WIDTH = {"head_width": None}
_GPT2 = _narrowed(GPT2, "gelu")
LLAMA_CPP = (
    replace(
        _GPT2,
        tensors=tuple(one._replace(transposed=one.paths[0].endswith(".kernel")) for one in _GPT2.tensors),
    ),
    LLAMA,
    _narrowed(QWEN2, form=_ONE_HEAD_WIDTH),
    _narrowed(LLAMA, form={"use_bias": True, "output_bias": False}),
    QWEN3,
    _narrowed(ARCEE, "relu2"),
    _narrowed(APERTUS, "relu2"),
    _narrowed(STABLELM, form=_ONE_HEAD_WIDTH),
    _narrowed(STARCODER2, "gelu", form={"use_bias": True, **_ONE_HEAD_WIDTH}),
    replace(
        _narrowed(STARCODER2, "relu2", form=_ONE_HEAD_WIDTH),
        model_type="nemotron",
        class_name="NemotronForCausalLM",
    ),
)
"""By their names there, which are the `model_type` of config.json."""
PAIRS_OF_NEIGHBOURS = frozenset({"llama", "arcee"})
"""Those whose rotary positions turn neighbouring features of a head, not those half a head apart."""
OUTPUT_REQUIRED = frozenset({"apertus", "stablelm", "nemotron"})
"""Those whose output layer is a tensor of its own also where it is the token embedding."""
