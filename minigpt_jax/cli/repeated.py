"""Flags that take several values: those of a dataclass, and command lines that give one of them several times."""

import collections
import dataclasses
import re
import typing
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import tyro

LIKE_A_FLAG = re.compile(r"--?[^\s\d-]\S*|--")
"""A word that the parser takes for a flag."""


def flags_of(kind: Any, prefix: str = "") -> set[str]:
    """The flags that take any number of values at once, such as --data.files.

    Args:
        kind: a dataclass. For an annotated one (`UseAppendAction`) the set is empty, as there each value has a flag.
        prefix: stands before the names of its fields.
    """
    found: set[str] = set()
    if not dataclasses.is_dataclass(kind):
        return found
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        marks: tuple[Any, ...] = getattr(hint, "__metadata__", ())
        inner = typing.get_args(hint)[0] if marks else hint
        name = next((mark.name for mark in marks if getattr(mark, "name", None) is not None), name)
        flag = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(inner):
            found |= flags_of(inner, f"{flag}." if name else prefix)
        elif (typing.get_origin(inner) is Sequence or Ellipsis in typing.get_args(inner)) and not {
            tyro.conf.Positional,
            tyro.conf.UseAppendAction,
        }.intersection(marks):
            found.add(f"--{flag}")
    return found


def joined(words: Sequence[str], flags: AbstractSet[str]) -> list[str]:
    """The words of a command line in which each of these flags is given once, with all of its values.

    tyro keeps only the values of the last one. A flag without a value drops the values before it.

    >>> joined(["run", "--files", "a", "b", "--seed", "1", "--files=c"], {"--files"})
    ['run', '--seed', '1', '--files', 'a', 'b', 'c']
    """
    end = words.index("--") if "--" in words else len(words)
    times = collections.Counter(map(_flag, words[:end]))
    given: dict[str, list[list[str]]] = {flag: [] for flag in flags if times[flag] > 1}
    others: list[str] = []
    place = others
    for word in words[:end]:
        if (flag := _flag(word)) in given:
            _, equals, value = word.partition("=")
            given[flag].append([value] if equals else [])
            place = others if equals else given[flag][-1]
            continue
        if LIKE_A_FLAG.fullmatch(word):
            place = others
        place.append(word)
    for flag, groups in given.items():
        begin = max((i for i, group in enumerate(groups) if not group), default=0)
        others += [flag, *(value for group in groups[begin:] for value in group)]
    return [*others, *words[end:]]


def repeated(words: Sequence[str], flags: AbstractSet[str]) -> list[str]:
    """The words of a command line in which each of these flags is given once for each of its values.

    >>> repeated(["run", "--prompt", "a", "b", "--seed", "1"], {"--prompt"})
    ['run', '--prompt', 'a', '--prompt', 'b', '--seed', '1']
    """
    given: list[str] = []
    flag: str | None = None
    for word in words:
        if LIKE_A_FLAG.fullmatch(word):
            flag = word if _flag(word) in flags and "=" not in word else None
        elif flag is not None and given[-1] != flag:
            given.append(flag)
        given.append(word)
    return given


def _flag(word: str) -> str:
    return word.partition("=")[0].replace("_", "-")
