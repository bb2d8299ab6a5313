"""Axes: the fields of an experiment that a sweep varies. They are parsed and checked before anything runs.

An axis is `optimizer.learning_rate=1e-3,3e-3` (values) or `optimizer.learning_rate=1e-4..1e-2:log` (a range).
"""

import contextlib
import dataclasses
import io
import math
import re
import shlex
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from minigpt_jax import config
from minigpt_jax.config import Experiment
from minigpt_jax.errors import UserError

SEED = "seed"
MAX_CHECKED = 4096
"""Combinations of values that are checked before a sweep starts, at most."""
_RANGE = re.compile(r"(?P<low>.+?)\.\.(?P<high>.+?)(?P<log>:log)?")


@dataclass(frozen=True)
class Axis:
    """A field of the experiment, and its `values`, or for a range the numbers from `low` to `high`.

    Attributes:
        log: whether numbers of the range are drawn uniformly in their logarithm.
    """

    field: str
    values: tuple[Any, ...] = ()
    low: Any = None
    high: Any = None
    log: bool = False

    @property
    def is_range(self) -> bool:
        return not self.values

    def with_code(self, folders: Sequence[Path]) -> "Axis":
        """The axis with the user's code loaded, if its values name some.

        Raises:
            UserError: as `config.code.load` does.
        """
        values = (v if isinstance(v, tuple) else config.code.load_value(self.field, v, folders) for v in self.values)
        return dataclasses.replace(self, values=tuple(values))

    def to_json(self) -> dict[str, Any]:
        """The axis as it is written to sweep.json."""
        if self.is_range:
            return {"field": self.field, "low": self.low, "high": self.high, "log": self.log}
        return {"field": self.field, "values": [plain(value) for value in self.values]}


def plain(value: Any) -> Any:
    """A field's value for JSON: unchanged if JSON has its type, else text, with a tuple quoted as in a shell."""
    if isinstance(value, tuple):
        return shlex.join(map(str, value))
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def parse(texts: Sequence[str]) -> list[Axis]:
    """Parses the axes of the command line.

    Raises:
        UserError: there is no axis; an axis is malformed or given twice; its field does not exist (the message suggests
            the most similar one); or a value has the wrong type.
    """
    if not texts:
        raise UserError("a sweep needs an axis, such as optimizer.learning_rate=1e-3,3e-3 or model.num_layers=1,2")
    axes = [_parse_axis(text) for text in texts]
    for axis, others in ((axis, axes[:i]) for i, axis in enumerate(axes)):
        if axis.field in [other.field for other in others]:
            raise UserError(f"{axis.field} is given twice; put all its values on one axis")
    return axes


def field_types() -> dict[str, Any]:
    """The type of every field of an experiment, by dotted name."""
    types: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(Experiment).items():
        if dataclasses.is_dataclass(kind):
            types |= {f"{name}.{inner}": inner_kind for inner, inner_kind in typing.get_type_hints(kind).items()}
        elif name != "name":  # results do not depend on the experiment's name
            types[name] = kind
    return types


def apply(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with these fields, given by dotted name, replaced."""
    for name, value in values.items():
        section, _, inner = name.partition(".")
        if inner:
            value = dataclasses.replace(getattr(experiment, section), **{inner: value})
        experiment = dataclasses.replace(experiment, **{section: value})
    return experiment


def points(axes: Sequence[Axis]) -> int:
    """The number of combinations of values."""
    return math.prod(len(axis.values) for axis in axes)


def point(axes: Sequence[Axis], index: int) -> dict[str, Any]:
    """The combination of values with this index, from 0.

    The first axis changes slowest, so trials that share a program follow each other.
    """
    values: dict[str, Any] = dict.fromkeys(axis.field for axis in axes)
    for axis in reversed(axes):
        index, i = divmod(index, len(axis.values))
        values[axis.field] = axis.values[i]
    return values


def grid(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """The combinations of values in order, at most the first MAX_CHECKED of them."""
    return (point(axes, index) for index in range(min(points(axes), MAX_CHECKED)))


def corners(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """The first MAX_CHECKED combinations of the axes, in which a range has only its two ends as values."""
    ends = [Axis(axis.field, (axis.low, axis.high)) if axis.is_range else axis for axis in axes]
    return grid(ends)


def check(axes: Sequence[Axis], experiment: Experiment) -> None:
    """Validates the experiment for the combinations of `corners`.

    Raises:
        UserError: the first combination that is invalid.
    """
    for values in corners(axes):
        try:
            config.validate(apply(experiment, values))
        except UserError as error:
            if len(axes) == 1:
                raise
            combination = " ".join(f"{name}={plain(value)}" for name, value in values.items())
            raise UserError(f"the combination {combination} is invalid: {error}") from error


def _parse_axis(text: str) -> Axis:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UserError(f"{text} is not an axis; write FIELD=VALUE,VALUE or FIELD=LOW..HIGH[:log]")
    name, types = name.strip().lstrip("-").replace("-", "_"), field_types()
    earlier = config.earlier_names().get(name)
    if earlier is not None and earlier.alias.kind is None:
        name = earlier.field
    elif earlier is not None:
        values = tuple(_read(name, earlier.alias.kind, item.strip()) for item in value.split(","))
        return Axis(earlier.field, tuple(map(earlier.alias.current, values)))
    if name not in types:
        raise UserError(f"{name} is not a field of an experiment; {_nearest(name, types)}")
    kind = types[name]
    numeric = next((t for t in (int, float) if t is kind or t in typing.get_args(kind)), None)
    match = _RANGE.fullmatch(value)
    if match and numeric:
        return _parse_range(name, numeric, match)
    texts = value.split(",")
    values = tuple(_read(name, kind, item.strip()) for item in texts)
    for i, item in enumerate(values):
        if item in values[:i]:
            raise UserError(f"{name}={value}: {plain(item)} is given twice; remove one")
    return Axis(name, values)


def _parse_range(name: str, kind: type, match: re.Match[str]) -> Axis:
    if name == SEED:
        raise UserError(f"{name}={match[0]}: seeds are replicates of each configuration; list them, as in seed=0,1,2")
    low, high = (_read(name, kind, match[end]) for end in ("low", "high"))
    log = match["log"] is not None
    if not low < high:
        raise UserError(f"{name}={match[0]}: the range must go from a lower number to a higher one")
    if log and low <= 0:
        raise UserError(f"{name}={match[0]}: a logarithmic range must start above 0")
    if high == float("inf"):
        raise UserError(f"{name}={match[0]}: the range must have a finite end")
    return Axis(name, low=low, high=high, log=log)


def _read(name: str, kind: Any, text: str) -> Any:
    """Parses a value of the field's type, by the same rules as the flags of the command line."""
    text = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            value = tyro.cli(kind, args=["--", text] if text.startswith("-") else [text], console_outputs=False)
    except SystemExit:
        value = float("nan")
    if isinstance(value, float) and value != value:
        choices = _choices(kind)
        hint = config.nearest(text, choices)
        raise UserError(f"{name}={text}: {text or 'nothing'} is not {' or '.join(choices)}{hint}")
    return value


def _choices(kind: Any) -> list[str]:
    if typing.get_origin(kind) is typing.Literal:
        return list(map(str, typing.get_args(kind)))
    if typing.get_args(kind) and typing.get_origin(kind) is not tuple:
        return [choice for inner in typing.get_args(kind) for choice in _choices(inner)]
    names = {int: "a whole number", float: "a number", bool: "True or False", type(None): "None"}
    return [names.get(kind, getattr(kind, "__name__", str(kind)))]


def _nearest(name: str, types: Mapping[str, Any]) -> str:
    sections = sorted({known.partition(".")[0] for known in types if "." in known})
    if name in sections:
        inner = ", ".join(known for known in types if known.startswith(f"{name}."))
        return f"it is a group of fields: {inner}"
    fields = {known.rpartition(".")[2]: known for known in list(types)[::-1]}  # the first of equals
    last = name.rpartition(".")[2]
    near = fields.get(last) or config.closest(name, types) or fields.get(config.closest(last, fields) or "")
    return f"did you mean {near}?" if near else "FILE.py --help lists them"
