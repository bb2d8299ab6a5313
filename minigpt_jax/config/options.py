"""An option: a field of an experiment, with its type, its help text, its bounds and other facts.

The annotation is its type, the string under it is its help text, and `option` declares the rest. The values of flags,
experiment files, sweep axes and config.json are all checked against this declaration, by `problem`.
"""

import dataclasses
import difflib
import functools
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from minigpt_jax.errors import UserError

Config = typing.TypeVar("Config", bound=type)
_INT32_MAX = 2**31 - 1
CODE = "FILE.py:Name"
_CODE = re.compile(r".*[^/]\.py:[A-Za-z_]\w*")
_FLOAT32 = np.finfo(np.float32)


@dataclasses.dataclass(frozen=True)
class Alias:
    """An earlier name of a field, which experiment files, flags, sweep axes and config.json may still use.

    Attributes:
        name: the earlier name, without its section.
        kind: the type of values under this name, if it is not the field's.
        convert: converts a value under this name to the field's; None if both are the same.
    """

    name: str
    kind: Any = None
    convert: Callable[[Any], Any] | None = None

    def current(self, value: Any, section: str = "") -> Any:
        """The field's value for a value under this name. Raises UserError if that is not of `kind`."""
        if self.kind is not None:
            check_option(Option(f"{section}.{self.name}".lstrip("."), self.kind, value, Facts()))
        return value if self.convert is None else self.convert(value)


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about an option besides its type, default and help text.

    Attributes:
        at_least, above, at_most, below: the bounds of a number; None for no bound.
        traced: whether the value is an argument of the compiled train step, so that trials that differ in it share one
            program.
        resumable: whether a run may be resumed with another value.
        caches: the caches on disk that depend on the value: `tokenizer` (trained pieces) and `store` (tokenised rows).
            Fields that determine the text are part of the corpus' fingerprint instead.
        newer: whether the field is newer than existing caches. At its default value it is not part of their keys, so
            that they are still found.
        code: whether the value may also be the name of code of the user's own, FILE.py:Name.
        adjustable: whether training may start from the weights of a model with another value of this field.
        aliases: earlier names of the field.
        of_tokenizer: None stands for what the tokenizer has, which is filled in once the tokenizer is known.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    traced: bool = False
    resumable: bool = False
    caches: tuple[Literal["tokenizer", "store"], ...] = ()
    newer: bool = False
    code: bool = False
    adjustable: bool = False
    aliases: tuple[Alias, ...] = ()
    of_tokenizer: bool = False

    def range_problem(self, value: float) -> str | None:
        """The bounds that a number violates, in words, or None."""
        rules = (
            ("at least", self.at_least, operator.ge),
            ("above", self.above, operator.gt),
            ("at most", self.at_most, operator.le),
            ("below", self.below, operator.lt),
        )
        given = [(words, bound, holds) for words, bound, holds in rules if bound is not None]
        if all(holds(value, bound) for _, bound, holds in given):
            return None
        return "must be " + " and ".join(f"{words} {bound:,}" for words, bound, _ in given)


def option(default: Any, *, aliases: tuple[str | Alias, ...] = (), **facts: Any) -> Any:
    """A dataclass field with this default and these `Facts`. An alias may be a string, if only the name changed."""
    named = tuple(Alias(alias) if isinstance(alias, str) else alias for alias in aliases)
    return dataclasses.field(default=default, metadata={"facts": Facts(aliases=named, **facts)})


def checks_names(cls: Config) -> Config:
    """Has a dataclass raise a UserError, which suggests the nearest field, for a keyword that is not a field."""
    names = [field.name for field in dataclasses.fields(cls)]
    init = cls.__init__

    @functools.wraps(init)
    def with_known_names(self: Any, *values: Any, **named: Any) -> None:
        for name in named:
            if name not in names:
                hint = nearest(name, names) or f"; its fields are {', '.join(names)}"
                raise UserError(f"{name} is not a field of {cls.__name__}{hint}")
        init(self, *values, **named)

    cls.__init__ = with_known_names
    return cls


def accepts_aliases(cls: Config) -> Config:
    """Lets a dataclass of options accept the earlier names of its fields too, which older experiment files use.

    Other unknown names raise a UserError, see `checks_names`.
    """
    cls = checks_names(cls)
    earlier = {
        alias.name: (field.name, alias)
        for field in dataclasses.fields(cls)
        for alias in field.metadata.get("facts", Facts()).aliases
    }
    init = cls.__init__

    @functools.wraps(init)
    def with_aliases(self: Any, *values: Any, **named: Any) -> None:
        for name in named.keys() & earlier.keys():
            current, alias = earlier[name]
            named[current] = alias.current(named.pop(name))
        init(self, *values, **named)

    cls.__init__ = with_aliases
    return cls


class Option(NamedTuple):
    """One field of an experiment: its dotted name, its type, its value in this experiment, its facts and default."""

    name: str
    type: Any
    value: Any
    facts: Facts
    default: Any = None


def options(config: Any, prefix: str = "") -> Iterator[Option]:
    """Yields the fields of a dataclass and of the dataclasses in it, in the order of their declaration.

    Raises:
        UserError: a section is not of its class.
    """
    hints = _type_hints(type(config))
    for field in dataclasses.fields(config):
        name, kind, value = prefix + field.name, hints[field.name], getattr(config, field.name)
        if not dataclasses.is_dataclass(kind):
            yield Option(name, kind, value, field.metadata.get("facts", Facts()), field.default)
        elif isinstance(value, typing.cast(type, kind)):
            yield from options(value, f"{name}.")
        else:
            raise UserError(f"{name} is {_shown(value)}: must be a {getattr(kind, '__name__', kind)}")


_type_hints = functools.cache(typing.get_type_hints)
"""The types of a class's fields. Looking them up takes much of the time that making an instance takes."""


def check_option(option: Option) -> None:
    """Raises UserError, naming the flag and what is allowed, if the value does not fit the option's declaration."""
    if (rule := problem(option.type, option.value, option.facts)) is not None:
        raise UserError(f"--{flag_name(option.name)} {_shown(option.value)}: {rule}")


def flag_name(name: str) -> str:
    """The spelling of a field on the command line, without the two dashes in front."""
    return name.replace("_", "-")


def problem(kind: Any, value: Any, facts: Facts) -> str | None:
    """The rule that a value violates (its type, its choices or its bounds), in words, or None."""
    if kind in (int, float):
        return _number_problem(kind, value, facts)
    if typing.get_origin(kind) is Literal:
        return _choice_problem(value, typing.get_args(kind))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(kind) if one is not type(None)]
        if value is None and len(inner) < len(typing.get_args(kind)):
            return None
        if facts.code:  # a choice or the name of code
            return None if names_code(value) else _choice_problem(value, (*typing.get_args(inner[0]), CODE))
        return problem(inner[0], value, facts)  # every other union of an experiment is of one type and None
    if typing.get_origin(kind) is tuple:
        return _tuple_problem(value, typing.get_args(kind)[0], Facts(code=facts.code))
    if kind is bool:
        return None if isinstance(value, bool) else "must be True or False"
    if kind is str:
        return None if isinstance(value, str) else "must be a text"
    if kind is Path:
        return None if isinstance(value, Path) else f"must be a path; write Path({str(value)!r})"
    raise TypeError(f"an experiment's field cannot be of type {kind}")


def names_code(value: Any) -> bool:
    """Whether a field's value is the name of code of the user's own."""
    return isinstance(value, str) and _CODE.fullmatch(value) is not None


def _choice_problem(value: Any, choices: tuple[str, ...]) -> str | None:
    if isinstance(value, str) and value in choices:
        return None
    return f"must be {_listed(choices)}{nearest(str(value), choices)}"


def nearest(value: str, choices: Iterable[str]) -> str:
    """`; did you mean …?` with the choice that a mistyped value is near to, or nothing if it is near to none.

    >>> nearest("rms_norm", ["layernorm", "rmsnorm"])
    '; did you mean rmsnorm?'
    >>> nearest("top_n_sigma", ["typical", "greedy"])
    ''
    """
    near = closest(value, choices)
    return "" if near is None else f"; did you mean {near}?"


def closest(value: str, choices: Iterable[str]) -> str | None:
    """The choice that a mistyped value is nearest to, apart from case, dashes and underscores; None if none is near."""
    spelled = {choice.replace("_", "").replace("-", "").lower(): choice for choice in choices}
    near = difflib.get_close_matches(value.replace("_", "").replace("-", "").lower(), spelled, n=1, cutoff=0.6)
    return spelled[near[0]] if near else None


def _listed(choices: tuple[str, ...]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def _tuple_problem(value: Any, inner: Any, facts: Facts) -> str | None:
    if isinstance(value, str):
        return f"must be a tuple; write ({value!r},)"
    if not isinstance(value, tuple):
        return "must be a tuple"
    return next((rule for item in value if (rule := problem(inner, item, facts)) is not None), None)


def _number_problem(kind: type, value: Any, facts: Facts) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return "must be a whole number" if kind is int else "must be a number"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if (rule := facts.range_problem(value)) is not None:
        return rule
    if kind is float and (rule := facts.range_problem(_in_float32(value, facts))) is not None:
        return f"{rule}, and in float32 it equals that bound"
    if kind is int and facts.at_most is None and facts.below is None and abs(value) > _INT32_MAX:
        return f"must be at most {_INT32_MAX:,}"
    if kind is float and value and not float(_FLOAT32.tiny) <= abs(value) <= float(_FLOAT32.max):
        return f"cannot be held in float32, whose numbers lie between {_FLOAT32.tiny:.1e} and {_FLOAT32.max:.1e}"
    return None


def _in_float32(value: float, facts: Facts) -> float:
    """The bound that the number equals in float32, if that is a bound it must not equal; otherwise the number."""
    with np.errstate(over="ignore"):  # what is too large is told elsewhere
        return next(
            (b for b in (facts.above, facts.below) if b is not None and np.float32(value) == np.float32(b)), value
        )


def _shown(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return text if len(text) <= 80 else text[:77] + "…"
