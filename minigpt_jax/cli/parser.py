"""The parser of the commands' flags: tyro, with help texts that wrap as paragraphs."""

import dataclasses
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

REGISTRY = ConstructorRegistry()
"""How values are made from words, beyond tyro's own rules."""


def parse(kind: Any, arguments: list[str], prog: str, default: Any = None) -> Any:
    """An instance of a dataclass from the words of a command line. Ends the process for --help and for mistakes.

    Args:
        prog: the command, as help and errors name it.
        default: the values of flags that are not given; those of the dataclass by default.
    """
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(kind, args=arguments, prog=prog, registry=REGISTRY, **defaults)


_in_rule: list[bool] = []


@REGISTRY.struct_rule
def _with_joined_help(info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's own rule for a class, with the lines of each field's docstring joined.

    tyro keeps the line breaks of a docstring before lines that are indented, as all lines but the first are.
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
    fields = tuple(dataclasses.replace(field, helptext=_joined(field.helptext)) for field in spec.fields)
    return dataclasses.replace(spec, fields=fields)


def _joined(text: Any) -> Any:
    """A help text, or a function that returns one, with single spaces in place of line breaks."""
    if callable(text):
        return lambda: _joined(text())
    return text and " ".join(text.split())
