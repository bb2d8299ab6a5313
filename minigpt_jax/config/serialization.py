"""An experiment as JSON, and back."""

import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_origin

import cattrs

from minigpt_jax.config.aliases import current_json
from minigpt_jax.config.code import Code
from minigpt_jax.config.experiment import Experiment
from minigpt_jax.config.options import options
from minigpt_jax.config.validation import validate
from minigpt_jax.errors import UserError


def to_json(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain JSON values."""
    return _converter.unstructure(experiment)


def from_json(value: Any) -> Experiment:
    """The inverse of `to_json`. Fields that an older file lacks get their defaults, and earlier names are accepted.

    Raises:
        UserError: a field is unknown, or has an invalid value.
    """
    try:
        experiment = _converter.structure(current_json(value), Experiment)
    except UserError as error:
        raise UserError(f"the experiment in config.json cannot be read: {error}") from error
    except Exception as error:  # a hand-edited file may lead to any
        reasons = "; ".join(cattrs.transform_error(error))
        raise UserError(f"the experiment in config.json cannot be read: {reasons}") from error
    try:
        validate(experiment)
    except UserError as error:
        raise UserError(f"the experiment in config.json cannot be used: {error}") from error
    return experiment


def dumps(value: Any) -> str:
    """JSON as the project writes it: indented, readable, with a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def flatten(experiment: Experiment) -> dict[str, Any]:
    """The values of fields as in JSON, by dotted name, such as `model.num_layers`."""
    return {option.name: _converter.unstructure(option.value) for option in options(experiment)}


def _structure_field(value: Any, kind: Any) -> Any:
    """A field's value from JSON, converted only if JSON lacks the type. `validate` reports invalid values."""
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and "pathlib.Path" in str(kind):
        return Path(value)
    return value


_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_unstructure_hook(Path, str)
_converter.register_unstructure_hook(Code, str)
_converter.register_structure_hook_func(lambda kind: not is_dataclass(kind), _structure_field)
for _kind in (bool, int, float, str):  # which cattrs would convert: 64.5 to 64
    _converter.register_structure_hook(_kind, _structure_field)
