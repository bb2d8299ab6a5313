"""A body of OpenAI's completions API, checked and turned into prompts, a sampler and settings.

Beside OpenAI's fields it may have this project's: `sampler` names a method, whose settings are fields too (`top_k`,
`min_p`, `typical_p`, `num_beams`, `length_penalty`, `alpha`, …), and the penalties and limits of `GenerationSettings`.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minigpt_jax import samplers
from minigpt_jax.config import nearest
from minigpt_jax.errors import UserError
from minigpt_jax.generate import GenerationSettings
from minigpt_jax.generate.methods import settings_of
from minigpt_jax.samplers import Sampler

MAX_LOGPROBS = 20
MAX_STOPS = 16
DEFAULT_MAX_TOKENS = 16  # OpenAI's

_IGNORED = ("user", "metadata", "store", "service_tier")
_UNSUPPORTED = {"suffix": (None, ""), "best_of": (None, 1)}
"""Fields of OpenAI's that have no counterpart here, and the values at which they ask for nothing."""
_ALIASES = {
    "top_k": {"top_k": "k"},
    "top_p": {"top_p": "p"},
    "min_p": {"min_p": "p"},
    "typical": {"typical_p": "p"},
    "contrastive": {"top_k": "k"},
}
"""By the method: fields that are also taken for one of its settings."""
_METHOD_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "k",
    "p",
    "num_beams",
    "length_penalty",
    "alpha",
)
_SETTINGS = ("repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram", "min_new_tokens", "seed")
FIELDS = (
    *("model", "prompt", "max_tokens", "n", "stream", "stream_options", "stop", "logprobs", "echo", "logit_bias"),
    *("sampler", "stop_token_ids"),
    *_METHOD_FIELDS,
    *_SETTINGS,
    *_UNSUPPORTED,
    *_IGNORED,
)


class FieldError(UserError):
    """A field of a body is not allowed."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Completion:
    """What a body asks for."""

    prompts: list[str | list[int]]
    sampler: Sampler
    settings: GenerationSettings
    generates: bool
    """Whether there are new tokens at all; if not, the body asks only for an echo."""
    echo: bool
    logprobs: int | None
    stream: bool
    include_usage: bool


def parse(body: Any) -> Completion:
    """Reads the body of a request for a completion.

    Raises:
        UserError: a field is unknown, has the wrong type, or a value that is not allowed.
    """
    if not isinstance(body, dict):
        raise FieldError("the body must be a JSON object")
    body = {name: value for name, value in body.items() if value is not None}
    for name in body:
        if name not in FIELDS:
            raise FieldError(f"there is no field {name}{nearest(name, FIELDS)}", name)
    for name, neutral in _UNSUPPORTED.items():
        if body.get(name) not in neutral:
            raise FieldError(f"{name} is not supported by this server; leave it out", name)
    stream = _typed(body, "stream", bool, False)
    max_tokens = _typed(body, "max_tokens", int, DEFAULT_MAX_TOKENS)
    echo = _typed(body, "echo", bool, False)
    if max_tokens == 0 and not echo:
        raise FieldError("max_tokens 0: must be 1 or more, unless echo is true", "max_tokens")
    logprobs = _typed(body, "logprobs", int, None)
    if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
        raise FieldError(f"logprobs {logprobs}: must be 0 to {MAX_LOGPROBS}", "logprobs")
    options = _typed(body, "stream_options", dict, {})
    settings = {name: body[name] for name in _SETTINGS if name in body}
    if "seed" not in settings:  # the same request gives another text each time, as OpenAI's does
        settings["seed"] = secrets.randbits(63)
    return Completion(
        prompts=_prompts(body.get("prompt", "")),
        sampler=_sampler(body),
        settings=GenerationSettings(
            max_new_tokens=max(max_tokens, 1) if max_tokens >= 0 else max_tokens,
            stop=_stops(body),
            logit_bias=_bias(_typed(body, "logit_bias", dict, {})),
            num_return_sequences=_typed(body, "n", int, 1),
            top_logprobs=logprobs or 0,
            **settings,
        ),
        generates=max_tokens != 0,
        echo=echo,
        logprobs=logprobs,
        stream=stream,
        include_usage=bool(options.get("include_usage", False)),
    )


def as_fields(message: str) -> str:
    """An error message with the names of fields where it names flags of the command line."""
    message = re.sub(r"--max-new-tokens\b", "max_tokens", message)
    message = re.sub(r"--num-return-sequences\b", "n", message)
    message = re.sub(r"--top-logprobs\b", "logprobs", message)
    return re.sub(r"--([a-z][a-z-]*)", lambda match: match[1].replace("-", "_"), message)


def field_of(message: str) -> str | None:
    """The field that an error message is about, if it begins with the name of a flag."""
    found = re.match(r"--[a-z][a-z-]*", message)
    return as_fields(found[0]) if found else None


def _typed(body: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """The value of a field, which must be of this type."""
    value = body.get(name, default)
    words = {bool: "true or false", int: "a whole number", dict: "an object", str: "a string", float: "a number"}
    kinds = (int, float) if kind is float else kind
    if value is not default and (not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool)):
        raise FieldError(f"{name} {value!r}: must be {words[kind]}", name)
    return value


def _prompts(prompt: Any) -> list[str | list[int]]:
    """One prompt or several: strings or lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    is_ids = lambda one: isinstance(one, list) and all(type(token) is int for token in one)  # noqa: E731
    if isinstance(prompt, list) and prompt:
        if is_ids(prompt):
            return [prompt]
        if all(isinstance(one, str) for one in prompt) or all(map(is_ids, prompt)):
            return prompt
    raise FieldError("prompt: must be a string, a list of strings, a list of token ids, or a list of those", "prompt")


def _stops(body: Mapping[str, Any]) -> list[str | int]:
    stop, ids = body.get("stop", []), body.get("stop_token_ids", [])
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(one, str) for one in strings):
        raise FieldError("stop: must be a string or a list of strings", "stop")
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise FieldError("stop_token_ids: must be a list of token ids", "stop_token_ids")
    if len(strings) + len(ids) > MAX_STOPS:
        raise FieldError(f"stop: {len(strings) + len(ids)} given; give {MAX_STOPS} at most", "stop")
    return [*(one for one in strings if one), *ids]


def _bias(bias: Mapping[str, Any]) -> dict[int, Any]:
    """Token ids and numbers. JSON's names are strings."""
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError as error:
        raise FieldError("logit_bias: the names must be token ids", "logit_bias") from error


def _sampler(body: Mapping[str, Any]) -> Sampler:
    """The sampler that a body asks for."""
    given = {name: _typed(body, name, float, None) for name in _METHOD_FIELDS if name in body}
    name = _typed(body, "sampler", str, None)
    name = name and name.strip().replace("-", "_").lower()
    if name in (None, "random"):  # a filter at the value of other servers' default is off
        given = {key: value for key, value in given.items() if not (key == "top_k" and value <= 0)}
    if name is None:
        name = "beam" if "num_beams" in given else "contrastive" if "alpha" in given else "random"
    if name not in samplers.METHODS:  # in particular no file of code
        known = ", ".join(samplers.METHODS)
        hint = nearest(name, samplers.METHODS)
        raise FieldError(f"sampler {name!r} is not known{hint}; give one of {known}", "sampler")
    kind = samplers.METHODS[name]
    taken, chosen = settings_of(kind), {}
    for field, value in given.items():
        setting = _ALIASES.get(name, {}).get(field, field)
        if setting not in taken:
            if field in ("temperature", "top_p") and value == 1:
                continue  # OpenAI's defaults, which some clients always send
            known = ", ".join(taken) or "none"
            raise FieldError(f"{field} is not a setting of the sampler {name}, which takes {known}", field)
        try:
            chosen[setting] = taken[setting](value)
        except (ValueError, OverflowError):  # NaN, an infinite number, or a whole one that no float holds
            raise FieldError(
                f"{field}: must be a {'whole' if taken[setting] is int else 'finite'} number", field
            ) from None
        if taken[setting] is int and value != chosen[setting]:
            raise FieldError(f"{field} {value}: must be a whole number", field)
    if name == "random" and chosen.get("top_p") == 1:
        del chosen["top_p"]
    return kind(**chosen)
