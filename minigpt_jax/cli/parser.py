"""The parser of the commands' flags: tyro, with help texts that wrap as paragraphs and name no default of None."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from minigpt_jax.cli import repeated

REGISTRY = ConstructorRegistry()
"""How values are made from words, beyond tyro's own rules."""
RunDir = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
SEVERAL = tyro.conf.arg(help_behavior_hint="(required)")
"""For a positional argument with one word or more, which tyro takes for an optional one."""
RunDirs = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN_DIR …"), SEVERAL]


def parse(kind: Any, arguments: list[str], prog: str, default: Any = None) -> Any:
    """An instance of a dataclass from the words of a command line. Ends the process for --help and for mistakes.

    A flag that takes several values may be given several times.

    Args:
        kind: the dataclass, or an annotation of it.
        prog: the command, as help and errors name it.
        default: the values of flags that are not given; those of the dataclass by default.
    """
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    words = repeated.joined(arguments, repeated.flags_of(kind))
    return tyro.cli(kind, args=words, prog=prog, registry=REGISTRY, **defaults)


_in_rule: list[bool] = []


@REGISTRY.struct_rule
def _with_joined_help(info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's own rule for a class, with the lines of each field's docstring joined.

    tyro keeps the line breaks of a docstring before lines that are indented, as all lines but the first are. It also
    ends the help of a flag with "(default: None)", which says nothing where None stands for what the docstring says.
    """
    if _in_rule:
        return None
    _in_rule.append(True)  # so that the next line applies tyro's rule and not this one
    try:
        spec = ConstructorRegistry.get_struct_spec(info)
    finally:
        _in_rule.pop()
    if not isinstance(spec, StructConstructorSpec):
        return None
    fields = (dataclasses.replace(field, helptext=_joined(field.helptext)) for field in spec.fields)
    return dataclasses.replace(spec, fields=tuple(map(_without_none, fields)))


def _without_none(field: StructFieldSpec) -> StructFieldSpec:
    if field.default is not None:
        return field
    return dataclasses.replace(field, type=Annotated[field.type, tyro.conf.arg(help_behavior_hint="")])


def _joined(text: Any) -> Any:
    """A help text, or a function that returns one, with single spaces in place of line breaks."""
    if callable(text):
        return lambda: _joined(text())
    return text and " ".join(text.split())
