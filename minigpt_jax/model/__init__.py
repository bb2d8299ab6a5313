"""The GPT: `gpt` is the whole of it and what is asked of it, `blocks` and `pointer` what it is made of."""

from minigpt_jax.model.blocks import DropoutCall
from minigpt_jax.model.gpt import (
    GPT,
    build,
    compute_dtype,
    hidden,
    logits,
    output,
    output_parameters,
    parameter_shapes,
    shares,
    training_mask,
    untied,
)

__all__ = [
    "GPT",
    "DropoutCall",
    "build",
    "compute_dtype",
    "hidden",
    "logits",
    "output",
    "output_parameters",
    "parameter_shapes",
    "shares",
    "training_mask",
    "untied",
]
