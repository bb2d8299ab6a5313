"""Everything that can be asked of generation, whatever the sampler. No JAX here: the command line's flags are this."""

import dataclasses
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from minigpt_jax.config import options
from minigpt_jax.config.options import check_option, checks_names, option
from minigpt_jax.errors import UserError

Stop = str | int | Sequence[int]
"""A string, a token id, or a sequence of token ids."""
Processor = Callable[..., Any]
"""A pure function (logits_BV, tokens_BS, length_B, step_B) -> logits_BV; `samplers.Processor` describes it."""

MAX_NEW_TOKENS = 2**20
MAX_RETURN_SEQUENCES = 100_000
MAX_BIAS = 1e6  # as `samplers.interface.GREATEST_BIAS`, which cannot be imported without JAX
MAX_PENALTY = 1e4  # beyond it a penalised logit overflows float32
_ROW_ID_END = 2**32


@checks_names
@dataclass(frozen=True)
class GenerationSettings:
    """What is asked of generation, apart from the prompts and the sampler.

    Every field is a keyword of `LanguageModel.generate` and, except for `processors`, a flag of `minigpt sample`.
    Values are checked and converted to plain Python types when an instance is made: NumPy's numbers are accepted, and a
    single stop or processor stands for a sequence of one.

    Raises:
        UserError: a name that is no setting, or a value that no model allows.
    """

    max_new_tokens: int | None = option(None, at_least=1, at_most=MAX_NEW_TOKENS)
    """Maximum number of tokens to generate; by default, up to the end of the training window."""
    min_new_tokens: int = option(0, at_least=0)
    """A stop can end a text only after this many new tokens. Before that, a stop string is ignored, and a token that
    would complete a stop of token ids is banned."""
    seed: int = option(0, at_least=-(2**63), below=2**64)
    """Seed of the random draws. A row's text depends on the seed, the row's id and its prompt alone."""
    stop: Sequence[Stop] = ()
    """A string that ends a text at the token that completes it. It is looked for in the new text alone. Beam search
    takes token ids only."""
    repetition_penalty: float = option(1.0, at_least=1 / MAX_PENALTY, at_most=MAX_PENALTY)
    """Divides the positive and multiplies the negative logits of all tokens so far, the prompt's included; 1: none."""
    presence_penalty: float = option(0.0, at_least=-MAX_PENALTY, at_most=MAX_PENALTY)
    """Subtracted from the logits of tokens generated before; 0: none."""
    frequency_penalty: float = option(0.0, at_least=-MAX_PENALTY, at_most=MAX_PENALTY)
    """Subtracted from a token's logit for each time it was generated; 0: none."""
    no_repeat_ngram: int = option(0, at_least=0)
    """No sequence of this many tokens occurs twice, the prompt included; 0: they may."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """A token id and what is added to its logit; -inf bans the token. The tokenizer's special tokens, such as [PAD]
    and [BOS], and ids without a piece are banned unless they are named here or as a stop."""
    num_return_sequences: int = option(1, at_least=1, at_most=MAX_RETURN_SEQUENCES)
    """Texts for each prompt: independent draws, or the best of beam search."""
    top_logprobs: int = option(0, at_least=0)
    """For each new token, also return this many of the most probable tokens in its place; 0: none."""
    processors: Sequence[Processor] = ()
    """Logit processors of your own: pure functions (logits, tokens, length, step) -> logits, called in this order after
    penalties and biases and before the temperature."""

    def __post_init__(self) -> None:
        self._set("stop", _stops(self.stop))
        self._set("logit_bias", _bias(self.logit_bias))
        self._set("processors", _processors(self.processors))
        for one in options(self):
            if one.name in _NOT_NUMBERS or one.value is one.default:
                continue
            self._set(one.name, _plain(one.value))
            check_option(one._replace(value=getattr(self, one.name)))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def stop_strings(self) -> list[str]:
        """The stops that are strings."""
        return [one for one in self.stop if isinstance(one, str)]

    @property
    def stop_sequences(self) -> list[list[int]]:
        """The stops that are token ids, each as a sequence."""
        return [[one] if isinstance(one, int) else list(one) for one in self.stop if not isinstance(one, str)]

    def replace(self, **changes: Any) -> "GenerationSettings":
        """These settings with some of them changed.

        Raises:
            UserError: a name that is no setting, or a value that is not allowed.
        """
        return dataclasses.replace(self, **changes)


SETTINGS = tuple(field.name for field in dataclasses.fields(GenerationSettings))
"""The names of all settings."""
_NOT_NUMBERS = ("stop", "logit_bias", "processors")


def as_int(value: Any, name: str) -> int:
    """A whole number, NumPy's included. Raises UserError for anything else."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise UserError(f"{name} {value!r}: must be a whole number") from error


def check_row_ids(row_ids: Any, prompts: int) -> list[int]:
    """One id of 32 bits per prompt; 0, 1, 2 … by default. Raises UserError for anything else."""
    if row_ids is None:
        return list(range(prompts))
    if not isinstance(row_ids, Iterable):
        raise UserError(f"row_ids {row_ids!r}: give several whole numbers, one per prompt")
    ids = [as_int(row, "row_ids") for row in row_ids]
    if len(ids) != prompts:
        raise UserError(f"row_ids: {len(ids)} given for {prompts} prompts; give one per prompt")
    if not all(0 <= row < _ROW_ID_END for row in ids):
        raise UserError(f"row_ids: give whole numbers from 0 to {_ROW_ID_END - 1:,}, one per prompt")
    return ids


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python number; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _stops(stop: Any) -> tuple[Stop, ...]:
    """Stops of any iterable, or one stop, as strings, ids and tuples of ids."""
    if isinstance(stop, bytes | Mapping):
        raise UserError(f"--stop: must be strings, token ids or sequences of ids, not {type(stop).__name__}")
    if isinstance(stop, str) or not isinstance(stop, Iterable):
        stop = (stop,)
    stops = tuple(_one_stop(one) for one in stop)
    if "" in stops:
        raise UserError("--stop '': an empty string stops nothing; leave it out")
    if () in stops:
        raise UserError("--stop []: an empty sequence stops nothing; leave it out")
    return stops


def _one_stop(stop: Any) -> Stop:
    if isinstance(stop, str):
        return str(stop)
    if isinstance(stop, Iterable):
        return tuple(as_int(token, "--stop") for token in stop)
    return as_int(stop, "--stop")


def _bias(bias: Any) -> dict[int, float]:
    if bias is None:
        return {}
    if not isinstance(bias, Mapping):
        raise UserError(f"--logit-bias {bias!r}: must map token ids to numbers, such as {{5: 2.0}}")
    plain = {as_int(token, "--logit-bias"): _plain(value) for token, value in bias.items()}
    for token, value in plain.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (abs(value) <= MAX_BIAS or value == -math.inf):
            shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}…"
            raise UserError(
                f"--logit-bias {token} {shown}: must be a number from -{MAX_BIAS:,.0f} to {MAX_BIAS:,.0f}, or -inf to "
                "ban the token"
            )
    return plain


def _processors(processors: Any) -> tuple[Processor, ...]:
    found = (processors,) if callable(processors) else processors
    if not isinstance(found, Iterable) or isinstance(found, str):
        raise UserError(f"processors {processors!r}: must be functions (logits, tokens, length, step) -> logits")
    found = tuple(found)
    for one in found:
        if not callable(one):
            raise UserError(f"processors: {one!r} is no function; give functions (logits, tokens, length, step)")
    return found


F = TypeVar("F", bound=Callable[..., Any])


def signature_of_settings(function: F) -> F:
    """Lists the settings in place of `**changes` in a function's signature, as `help` and notebooks show it."""
    shown = inspect.signature(function)
    keywords = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default if field.default is not dataclasses.MISSING else None,
            annotation=field.type,
        )
        for field in dataclasses.fields(GenerationSettings)
        if field.name not in shown.parameters
    ]
    explicit = [one for one in shown.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = shown.replace(parameters=[*explicit, *keywords])  # type: ignore[attr-defined]
    return function
