"""Earlier names of fields, in flags, sweep axes and config.json. For experiment files see `options.accepts_aliases`."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

from minigpt_jax.config.experiment import Experiment
from minigpt_jax.config.options import Alias, flag_name, options
from minigpt_jax.errors import UserError


class Renamed(NamedTuple):
    """A field that has an earlier name: its current dotted name, and the alias."""

    field: str
    alias: Alias


@functools.cache
def earlier_names() -> dict[str, Renamed]:
    """All earlier names, with their sections, such as `train.tensorboard`."""
    return {
        f"{option.name.rpartition('.')[0]}.{alias.name}".lstrip("."): Renamed(option.name, alias)
        for option in options(Experiment(name=""))
        for alias in option.facts.aliases
    }


def current_name(name: str) -> str:
    """The current dotted name of a field."""
    return earlier_names()[name].field if name in earlier_names() else name


def current_flags(words: Iterable[str]) -> list[str]:
    """The words of a command line with current flags, such as `--train.trackers` for `--train.no-tensorboard`."""
    return [current for word in words for current in _current_flag(word)]


def _current_flag(word: str) -> list[str]:
    if not word.startswith("--"):
        return [word]
    flag, equals, value = word[2:].partition("=")
    section, dot, leaf = flag.replace("-", "_").rpartition(".")
    is_on = f"{section}{dot}{leaf}" in earlier_names()
    renamed = earlier_names().get(f"{section}{dot}{leaf if is_on else leaf.removeprefix('no_')}")
    if renamed is None:
        return [word]
    if renamed.alias.kind is bool:
        if equals:
            raise UserError(f"--{flag}: takes no value; leave out ={value}")
        return [f"--{flag_name(renamed.field)}", *renamed.alias.current(is_on)]
    section, dot, leaf = renamed.field.rpartition(".")
    current = section + dot + ("" if is_on else "no_") + leaf
    return [f"--{flag_name(current)}{equals}{value}"]


def current_json(value: Any) -> Any:
    """The JSON of an experiment with current names. A value of another type than an object is returned unchanged.

    Raises:
        UserError: the value under an earlier name is of the wrong type.
    """
    if not isinstance(value, dict):
        return value
    value = {name: dict(part) if isinstance(part, dict) else part for name, part in value.items()}
    for name, renamed in earlier_names().items():
        section, _, old = name.rpartition(".")
        new = renamed.field.rpartition(".")[2]
        part = value.get(section) if section else value
        if isinstance(part, dict) and old in part and new not in part:
            part[new] = renamed.alias.current(part.pop(old), section)
    return value
