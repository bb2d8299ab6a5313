"""The GPT: `gpt` has the whole model and the functions that apply it; `blocks` and `pointer` have its parts;
`decode_form` has the form that is sampled from."""

from minigpt_jax.model.blocks import DropoutCall, Params
from minigpt_jax.model.decode_form import for_decoding
from minigpt_jax.model.gpt import (
    GPT,
    build,
    compute_dtype,
    hidden,
    logits,
    output,
    output_parameters,
    parameter_shapes,
    pointer_mixture,
    training_mask,
)

__all__ = [
    "GPT",
    "DropoutCall",
    "Params",
    "build",
    "compute_dtype",
    "for_decoding",
    "hidden",
    "logits",
    "output",
    "output_parameters",
    "parameter_shapes",
    "pointer_mixture",
    "training_mask",
]
