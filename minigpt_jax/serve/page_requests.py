"""What the page asks for, and what it is told, as JSON: from a request's body to a prompt, a method and settings."""

import ast
import dataclasses
import inspect
import math
import re
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from minigpt_jax import samplers
from minigpt_jax.config import nearest
from minigpt_jax.config.options import options
from minigpt_jax.errors import UserError
from minigpt_jax.generate import GenerationSettings, LanguageModel, methods
from minigpt_jax.samplers import Sampler
from minigpt_jax.serve.engine import Engine

SETTINGS = (
    "max_new_tokens",
    "min_new_tokens",
    "stop",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram",
)
"""The settings that the page offers for all columns, apart from the seed."""
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "text"}
_FLAG = re.compile(r"--(?!sampler)([a-z][\w-]*)")


class Asked(NamedTuple):
    """A request for text."""

    prompt: list[int]
    """Token ids without the start token: the prompt's, and after them those of the branch."""
    branch: list[int]
    """Tokens that the user has chosen after the prompt."""
    sampler: Sampler
    settings: GenerationSettings


def parse(body: Mapping[str, Any], engine: Engine, lm: LanguageModel) -> Asked:
    """The request in a body with `prompt`, `method`, and optionally `method_settings`, `settings`, `stop_at_end` and
    `branch`.

    Args:
        lm: the model of the engine that is asked.

    Raises:
        UserError: a part of it is not allowed, or it is more than the engine takes.
    """
    prompt, branch = _field(body, "prompt", str, ""), token_ids(body, "branch")
    given = _field(body, "settings", dict, {})
    for name in given:
        if name not in (*SETTINGS, "seed"):
            raise UserError(f"settings: {name} is no setting of the page{nearest(name, (*SETTINGS, 'seed'))}")
    settings = GenerationSettings(**{name: value for name, value in given.items() if value is not None})
    if _field(body, "stop_at_end", bool, False):
        settings = settings.replace(stop=[*settings.stop, *lm.end_ids])
    sampler = _sampler(body)
    engine.check(1, sampler, settings)
    ids = lm.tokenizer.encode_batch([prompt])[0]
    if branch and lm.model.config.positions == "learned" and settings.max_new_tokens is not None:
        # A branch makes the text longer than the prompt alone would; it ends with the positions.
        room = lm.model.sequence_length - len(ids) - len(branch)
        settings = settings.replace(max_new_tokens=max(1, min(settings.max_new_tokens, room)))
    return Asked([*ids, *branch], branch, sampler, settings)


def token_ids(body: Mapping[str, Any], name: str) -> list[int]:
    """A list of token ids in a body; empty if it is not given. Raises UserError for anything else."""
    tokens = _field(body, name, list, [])
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
        raise UserError(f"{name}: must be a list of token ids")
    return tokens


def field_of(message: str) -> str | None:
    """The setting that an error message names by its flag, so that the page can show the message beside it."""
    found = _FLAG.match(message)
    return found[1].replace("-", "_") if found else None


def offered_methods() -> list[dict[str, Any]]:
    """All methods, each with its settings, their types and their defaults."""
    return [
        {
            "name": kind.name,
            "class": kind.__name__,
            "description": _first_sentence(kind.__doc__),
            "streams": kind.streams,
            "draws": kind.draws,
            "ranks": kind.ranks,
            "settings": [
                {"name": name, "type": _TYPES[plain], "default": defaults[name]}
                for defaults in [{field.name: field.default for field in dataclasses.fields(kind)}]
                for name, plain in methods.settings_of(kind).items()
            ],
        }
        for kind in samplers.METHODS.values()
    ]


def offered_settings() -> list[dict[str, Any]]:
    """The settings of `SETTINGS`, with their types, defaults, bounds and help."""
    found = {one.name: one for one in options(GenerationSettings())}
    helps = _attribute_docs(GenerationSettings)
    return [
        {
            "name": name,
            "type": "texts" if name == "stop" else "number" if found[name].type is float else "integer",
            "default": None if name == "stop" else found[name].value,
            "at_least": found[name].facts.at_least,
            "at_most": found[name].facts.at_most,
            "help": helps[name],
        }
        for name in SETTINGS
    ]


def plain(value: Any) -> Any:
    """A value of dataclasses, tuples and numbers as JSON can hold it. Numbers that are not finite become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(one) for name, one in value._asdict().items()}  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sampler(body: Mapping[str, Any]) -> Sampler:
    """The sampler of a body. Only methods by name, and settings that are no part of a METHOD's text, in which a file of
    code could be named that would be run."""
    name, given = _field(body, "method", str, "greedy"), _field(body, "method_settings", dict, {})
    if name not in samplers.METHODS:
        raise UserError(f"method {name} is not known{nearest(name, samplers.METHODS)}")
    return methods.parse_one(name, settings=given)


def _field(body: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = body.get(name)
    value = default if value is None else value
    if not isinstance(value, kind):
        raise UserError(f"{name}: must be {_WORDS[kind]}")
    return value


_WORDS = {str: "a text", dict: "an object", bool: "true or false", list: "a list"}


def _first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, without the code that may follow its colon."""
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    return paragraph.split(": `")[0].replace("`", "").rstrip(".") + "."


def _attribute_docs(kind: type) -> dict[str, str]:
    """The strings under the fields of a dataclass."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            string = text.value if isinstance(text, ast.Expr) else None
            found[field.target.id] = " ".join(str(string.value).split()) if isinstance(string, ast.Constant) else ""
    return found
