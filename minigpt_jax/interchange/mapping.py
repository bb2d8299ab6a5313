"""How an architecture of Hugging Face and a `ModelConfig` correspond: settings to fields, tensors to arrays.

`architectures` has the tables. They can be read in both directions.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minigpt_jax.config import ModelConfig
from minigpt_jax.errors import UserError

_ROTARY_SHARE = "partial_rotary_factor"
REQUIRED = object()
"""The default of a setting that config.json has to have."""


class Setting(NamedTuple):
    """A setting of config.json that gives a field.

    Attributes:
        field: a field of `ModelConfig`, or `vocabulary_size` or `sequence_length`.
        key: the name of the setting.
        default: the value that Transformers uses if config.json lacks the setting.
        values: the field's value for each value of the setting, if they differ.
    """

    field: str
    key: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None


class Fixed(NamedTuple):
    """A setting of config.json of which only some values can be described.

    Attributes:
        default: the value that Transformers uses if config.json lacks the setting.
        allowed: the values that can be described.
    """

    key: str
    default: Any
    allowed: tuple[Any, ...]


class Tensor(NamedTuple):
    """A tensor of the weights and the arrays of the parameter tree that it holds.

    Attributes:
        name: the tensor's name, in which {i} is the index of the block.
        paths: the arrays, dotted. The tensor holds their concatenation along their last axis.
        transposed: whether the tensor is the transpose of that.
        extra_rows: the number of rows at the tensor's start that the arrays lack.
    """

    name: str
    paths: tuple[str, ...]
    transposed: bool = False
    extra_rows: int = 0

    def shape(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The tensor's shape, from those of the arrays."""
        shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        shape = shape[::-1] if self.transposed else shape
        return (shape[0] + self.extra_rows, *shape[1:])

    def arrays(self, tensor: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> dict[str, np.ndarray]:
        """The arrays that the tensor holds, by their paths."""
        tensor = tensor[self.extra_rows :]
        ends = np.cumsum([shape[-1] for shape in shapes])[:-1]
        return dict(zip(self.paths, np.split(tensor.T if self.transposed else tensor, ends, axis=-1), strict=True))

    def tensor(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor that holds these arrays, which are in the order of the paths; the rows that they lack are 0."""
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
        joined = joined.T if self.transposed else joined
        return np.pad(joined, [(self.extra_rows, 0), *[(0, 0)] * (joined.ndim - 1)]) if self.extra_rows else joined


OUTPUT = Tensor("lm_head.weight", ("output.kernel",), transposed=True)
"""The output layer, unless it is the token embedding."""


class Model(NamedTuple):
    """What config.json says of a model."""

    config: ModelConfig
    vocabulary_size: int
    """Rows of the embedding. The tokenizer may have fewer pieces."""
    sequence_length: int
    """The number of positions."""


@dataclass(frozen=True)
class Architecture:
    """How one architecture of Hugging Face is described by a `ModelConfig`.

    Attributes:
        model_type: its name in config.json.
        class_name: the class of Transformers.
        form: the fields of `ModelConfig` that the architecture itself determines.
        settings: the settings that give the other fields.
        fixed: the settings of which only some values can be described.
        equal: pairs of settings that have to be equal if config.json has both.
        prefix: what the names of tensors start with, except that of the output layer. Some folders omit it.
        tensors: all tensors but the output layer's, without `prefix`.
        rope: the defaults of `rope_parameters`, or None without rotary positions.
        ignored: endings of the names of tensors that hold no parameters.
    """

    model_type: str
    class_name: str
    form: Mapping[str, Any]
    settings: tuple[Setting, ...]
    prefix: str
    tensors: tuple[Tensor, ...]
    fixed: tuple[Fixed, ...] = ()
    equal: tuple[tuple[str, str], ...] = ()
    rope: Mapping[str, Any] | None = None
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)

    def model(self, settings: Mapping[str, Any]) -> Model:
        """The model that the settings of config.json describe.

        Raises:
            UserError: a setting is missing, is of another type, or has a value that no `ModelConfig` can describe.
        """
        for fixed in self.fixed:
            if (value := settings.get(fixed.key, fixed.default)) not in fixed.allowed:
                raise _cannot(fixed.key, value, fixed.allowed)
        kinds = settings.get("layer_types") or []
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise _cannot("layer_types", kinds, ("full_attention",))
        for one, other in self.equal:
            if settings.get(one, settings.get(other)) != settings.get(other):
                raise _cannot(one, settings[one], (settings.get(other),))
        fields = {**self.form, **{one.field: self._value(one, settings) for one in self.settings}}
        if self.rope is not None:
            fields["rope_theta"] = self._rope_theta(settings)
        if fields["feed_forward"] is None:  # GPT-2 may leave it out, and any may have null
            fields["feed_forward"] = 4 * fields["width"]
        vocabulary_size, sequence_length = fields.pop("vocabulary_size"), fields.pop("sequence_length")
        return Model(ModelConfig(**fields), vocabulary_size, sequence_length)

    def settings_of(self, model: Model) -> dict[str, Any]:
        """The settings of config.json that describe a model.

        If the architecture cannot express one of its fields, they describe the nearest model that it can. `model` of
        the settings gives that model.
        """
        config = model.config
        values = {
            **{field.name: getattr(config, field.name) for field in dataclasses.fields(config)},
            "head_width": config.head_size,
            "num_kv_heads": config.kv_heads,
            "feed_forward": config.feed_forward_width,
            **{f"{part}_bias": config.has_bias(part) for part in ("qkv", "norm", "output")},
            "vocabulary_size": model.vocabulary_size,
            "sequence_length": model.sequence_length,
        }
        settings = {}
        for one in self.settings:
            value = values[one.field]
            if one.values is not None:
                value = next((key for key, meant in one.values.items() if meant == value), next(iter(one.values)))
            settings[one.key] = value
        settings |= {one.key: one.allowed[0] for one in self.fixed}
        settings |= {one: settings[other] for one, other in self.equal}
        if self.rope is not None:
            rope = {"rope_type": "default", "rope_theta": config.rope_theta}
            if _ROTARY_SHARE in self.rope:
                rope[_ROTARY_SHARE] = settings[_ROTARY_SHARE] = 1.0
            settings |= {"rope_theta": config.rope_theta, "rope_parameters": rope}
        return settings

    def named(self, layers: int) -> Iterator[Tensor]:
        """All tensors that a model of so many blocks may have, with their names and paths in full."""
        for tensor in (*self.tensors, OUTPUT):
            name = tensor.name if tensor is OUTPUT else self.prefix + tensor.name
            for i in range(layers if "{i}" in name else 1):
                yield tensor._replace(name=name.format(i=i), paths=tuple(path.format(i=i) for path in tensor.paths))

    def _value(self, setting: Setting, settings: Mapping[str, Any]) -> Any:
        value = settings.get(setting.key, setting.default)
        if value is REQUIRED:
            raise UserError(f"it has no {setting.key}, which a {self.model_type} has")
        if setting.values is None:
            return value
        if not isinstance(value, str | bool) or value not in setting.values:
            raise _cannot(setting.key, value, tuple(setting.values))
        return setting.values[value]

    def _rope_theta(self, settings: Mapping[str, Any]) -> Any:
        """The base of the rotary wavelengths, at the top or, since version 5 of Transformers, in `rope_parameters`."""
        key = next((key for key in ("rope_parameters", "rope_scaling") if settings.get(key)), "rope_parameters")
        rope, defaults = settings.get(key) or {}, self.rope or {}
        if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
            raise _cannot(key, rope, ("one set of parameters for all layers",))
        kind = rope.get("rope_type", rope.get("type", "default")) if rope else defaults.get("rope_type", "default")
        if kind != "default":
            raise _cannot(f"{key}.rope_type", kind, ("default",))
        places = (rope, settings, defaults)
        share = next((place[_ROTARY_SHARE] for place in places if _ROTARY_SHARE in place), 1.0)
        if share != 1:
            raise _cannot(_ROTARY_SHARE, share, (1.0,))
        return next((place["rope_theta"] for place in places if "rope_theta" in place), 10_000.0)


def _cannot(key: str, value: Any, allowed: Sequence[Any]) -> UserError:
    shown = "not set" if value is None else str(value)
    listed = " or ".join("not set" if one is None else str(one) for one in allowed)
    return UserError(f"{key} is {shown}, and models here have {listed}; take another model")
