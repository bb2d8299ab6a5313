"""An experiment: the frozen dataclasses that name every choice from corpus to checkpoint.

Every field is a flag of the command line (`--model.num-layers 4`) and an axis of a sweep (`model.num_layers=2,4`).

    options        what a field declares about itself, and the one check of a value against it
    experiment     the dataclasses
    aliases        earlier names of fields
    inherit        an experiment that starts from a trained model
    code           code of the user's own, by its name
    validation     each field, then the rules across fields
    serialization  to JSON and back
"""

from minigpt_jax.config import code
from minigpt_jax.config.aliases import current_flags, current_name, earlier_names
from minigpt_jax.config.code import Code
from minigpt_jax.config.experiment import (
    BOS_ID,
    PAD_ID,
    RESERVED_PIECES,
    UNK_ID,
    DataConfig,
    Experiment,
    Layout,
    ModelConfig,
    OptimizerConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
)
from minigpt_jax.config.inherit import check_inherited, inherited
from minigpt_jax.config.options import Facts, Option, closest, flag_name, nearest, options
from minigpt_jax.config.serialization import dumps, flatten, from_json, to_json
from minigpt_jax.config.validation import check_fields, validate

__all__ = [
    "BOS_ID",
    "PAD_ID",
    "RESERVED_PIECES",
    "UNK_ID",
    "Code",
    "DataConfig",
    "Experiment",
    "Facts",
    "Layout",
    "ModelConfig",
    "OptimizerConfig",
    "Option",
    "SampleConfig",
    "TokenizerConfig",
    "TrainConfig",
    "check_fields",
    "check_inherited",
    "closest",
    "code",
    "current_flags",
    "current_name",
    "dumps",
    "earlier_names",
    "flag_name",
    "flatten",
    "from_json",
    "inherited",
    "nearest",
    "options",
    "to_json",
    "validate",
]
