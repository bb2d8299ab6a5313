"""Samplers from text: `top_p:p=0.9:temperature=0.8`, `top_k:k=1,5,10`, `random:temperature=0.5..1.5`, `mine.py:Mine`.

A METHOD is the name of a sampler, followed by settings: `NAME:setting=VALUES:setting=VALUES`. VALUES are one or more
values with commas between them, and a range `LOW..HIGH` stands for five evenly spaced ones, `LOW..HIGH/9` for nine.
Several values of a setting make several samplers, and several settings every combination. NAME is one of
`samplers.METHODS`, or `FILE.py:Name` for a subclass of `Sampler` in a file of the user's own.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigpt_jax import samplers
from minigpt_jax.config import Code, code, nearest
from minigpt_jax.errors import UserError
from minigpt_jax.samplers import Sampler

RANGE_SIZE = 5
"""Values in a range that names no number of them."""
MAX_METHODS = 1000


class Method(NamedTuple):
    """A sampler and the text that names it, with the settings that were given."""

    label: str
    sampler: Sampler


def parse(text: str, flag: str = "--sampler", settings: Mapping[str, Any] | None = None) -> list[Method]:
    """All samplers that a METHOD stands for.

    Args:
        text: the METHOD.
        flag: what the text was given as, for messages.
        settings: further settings of all of them, from flags of their own; None means not given.

    Raises:
        UserError: there is no such sampler, it has no such setting, or a value is not of the setting's type.
    """
    name, kind, assignments = _split(text, flag)
    taken, is_own = settings_of(kind), ".py:" in name
    values = {}
    for assignment in assignments:
        setting, equals, given = assignment.partition("=")
        setting = setting.strip().replace("-", "_")
        if not equals:
            raise UserError(f"{flag} {text}: {assignment!r} is no setting; write {name}:{_example(taken)}")
        if setting not in taken:
            raise UserError(
                f"{flag} {text}: {name} has no setting {setting}{nearest(setting, taken)}; {_takes(taken, is_own)}"
            )
        if setting in values:
            raise UserError(f"{flag} {text}: {setting} is given twice; separate several values by commas")
        values[setting] = list(_values(given, taken[setting], f"{flag} {text}: {setting}"))
    fixed = {key: value for key, value in (settings or {}).items() if value is not None}
    for setting in fixed:
        option = "--" + setting.replace("_", "-")
        if setting not in taken:
            own = f"give its settings after its name, as in {name}:{_example(taken)}"
            how = own if is_own else _takes(taken, dashes="--")
            raise UserError(f"{option} is not a setting of {flag} {name}: {how}")
        if setting in values:
            raise UserError(f"{option}: {flag} {text} gives {setting} too; drop one of the two")
    if (count := np.prod([len(several) for several in values.values()], dtype=float)) > MAX_METHODS:
        raise UserError(f"{flag} {text} stands for {count:,.0f} methods; give {MAX_METHODS:,} at most")
    needed = [field.name for field in dataclasses.fields(kind) if field.init and _has_no_default(field)]
    if lacking := [setting for setting in needed if setting not in {*values, *fixed}]:
        raise UserError(f"{flag} {text}: {lacking[0]} has no default; give {name}:{_example(lacking)}")
    methods = []
    for chosen in itertools.product(*values.values()):
        given = dict(zip(values, chosen, strict=True))
        label = ":".join([name, *(f"{setting}={shown(value)}" for setting, value in given.items())])
        methods.append(Method(label, kind(**given, **fixed)))
    return methods


def parse_one(text: str, flag: str = "--sampler", settings: Mapping[str, Any] | None = None) -> Sampler:
    """The sampler that a METHOD stands for. Raises UserError as `parse` does, and if it stands for several."""
    methods = parse(text, flag, settings)
    if len(methods) > 1:
        raise UserError(
            f"{flag} {text} stands for {len(methods)} methods; give one value for each setting, or add --compare"
        )
    return methods[0].sampler


def as_sampler(sampler: Any) -> Sampler:
    """A sampler from what a caller gave: one, a METHOD, or None for greedy search."""
    if sampler is None:
        return samplers.Greedy()
    if isinstance(sampler, str):
        return parse_one(sampler)
    if not isinstance(sampler, Sampler):
        raise UserError(f"sampler {sampler!r}: must be a sampler such as minigpt_jax.TopP(p=0.9), or the name of one")
    return sampler


def settings_in(sampler: Sampler) -> dict[str, Any]:
    """The settings of a sampler by name, without those that are None."""
    return {name: value for name in settings_of(type(sampler)) if (value := getattr(sampler, name)) is not None}


def label_of(sampler: Sampler) -> str:
    """A METHOD for the sampler: its name and the settings that differ from the defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(sampler)}
    changed = {name: value for name, value in settings_in(sampler).items() if value != defaults[name]}
    return ":".join([sampler.name, *(f"{name}={shown(value)}" for name, value in changed.items())])


def settings_of(kind: type[Sampler]) -> dict[str, type]:
    """The settings of a class of samplers and their types (float, int, bool or str), in the order of its fields."""
    return {field.name: _plain_type(field.type) for field in dataclasses.fields(kind) if field.init}


@functools.cache
def _plain_type(annotation: Any) -> type:
    # Read as text, since an annotation may be a string whose names cannot be looked up from here.
    words = re.findall(r"\w+", annotation if isinstance(annotation, str) else str(annotation))
    return next((plain for plain in (float, int, bool) if plain.__name__ in words), str)


def _split(text: str, flag: str) -> tuple[str, type[Sampler], list[str]]:
    """The name, the class and the assignments of a METHOD."""
    file, is_file, rest = text.partition(".py:")
    if is_file:
        name, *assignments = rest.split(":")
        return f"{file}.py:{name}", _load(f"{file}.py", name, flag), assignments
    if text.endswith(".py"):
        raise UserError(f"{flag} {text}: name the sampler in the file too: {text}:Name")
    name, *assignments = text.split(":")
    known = name.strip().replace("-", "_").lower()
    if known not in samplers.METHODS:
        hint = nearest(name, samplers.METHODS)
        raise UserError(
            f"{flag} {name} is not known{hint}; give one of {', '.join(samplers.METHODS)}, or FILE.py:Name for your own"
        )
    return known, samplers.METHODS[known], assignments


def _load(file: str, name: str, flag: str) -> type[Sampler]:
    """The class of this name in a file of the user's own, which is run."""
    value = code.load_value(flag.removeprefix("--"), f"{file}:{name}", [Path()])
    kind = value.value if isinstance(value, Code) else None
    if not isinstance(kind, type) or not issubclass(kind, Sampler):
        raise UserError(f"{flag} {file}:{name} is no sampler; make it a subclass of minigpt_jax.Sampler")
    return kind


def _values(text: str, kind: type, label: str) -> Iterator[Any]:
    """The values that `1,5,10`, `0.5..1.5` or `0.5..1.5/9` stands for, without repetitions."""
    found: list[Any] = []
    for item in text.split(","):
        ends, slash, count = item.partition("/")
        low, dots, high = ends.partition("..")
        if not dots or kind not in (int, float):
            found.append(_value(item, kind, label))
            continue
        size = _value(count, int, f"{label}={item}: the number of values") if slash else RANGE_SIZE
        if not 2 <= size <= MAX_METHODS:
            raise UserError(f"{label}={item}: a range has 2 to {MAX_METHODS:,} values; write LOW..HIGH/{RANGE_SIZE}")
        first, last = (_value(end, float, label) for end in (low, high))
        if not math.isfinite(last - first):
            raise UserError(f"{label}={item}: the ends of a range must be finite numbers")
        spaced = np.linspace(first, last, size)
        if kind is int:
            found += [int(value) for value in np.rint(spaced)]
        else:
            found += [float(f"{value:.12g}") for value in spaced]
    yield from dict.fromkeys(found)


def _value(text: str, kind: type, label: str) -> Any:
    text = text.strip()
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (KeyError, ValueError):
        raise UserError(f"{label}={text}: must be {words[kind]}") from None


def _takes(taken: Mapping[str, type], is_own: bool = False, dashes: str = "") -> str:
    """Which settings a sampler takes; of one of the user's own, how it gets them too."""
    names = [dashes + (name.replace("_", "-") if dashes else name) for name in taken]
    how = " (a setting is an annotated field of a @dataclass(frozen=True))" if is_own else ""
    return f"it takes {', '.join(names) or 'no settings'}{how}"


def _example(settings: Iterable[str]) -> str:
    return f"{next(iter(settings), 'setting')}=…"


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def shown(value: Any) -> str:
    """The value of a setting with as many digits as it takes to tell it from every other.

    >>> shown(0.90), shown(1e-5), shown(2.0), shown(0.90000001)
    ('0.9', '1e-05', '2', '0.90000001')
    """
    if not isinstance(value, float):
        return str(value)
    return short if float(short := f"{value:g}") == value else repr(float(value))
