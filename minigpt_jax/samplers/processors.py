"""Logit processors: changes of the logits that are the same for every method.

`control` applies a request's penalties, bans and bias, and then the user's processors. Banned tokens get a logit of
-inf. The temperature and the truncation come after that, and belong to the method.

Letters: B rows, V vocabulary, S positions of a row's history (prompt and generated tokens, contiguous), K candidates,
E stop sequences, L their greatest length.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from minigpt_jax.config import code
from minigpt_jax.errors import UserError, place_of, reason_of
from minigpt_jax.samplers.interface import Processor, Request

Logits = Float[Array, "B V"]


def checked(processors: Sequence[Processor] | Processor) -> tuple[Processor, ...]:
    """Processors as a tuple of functions. Each tuple has a compiled program of its own.

    Raises:
        UserError: one of them is no function of four arguments, or has no hash.
    """
    processors = (processors,) if callable(processors) else tuple(processors)
    for one in processors:
        if not callable(one):
            raise UserError(
                f"processors: {one!r} is not callable; give functions (logits, tokens, length, step) -> logits"
            )
        try:
            hash(one)
        except TypeError as error:
            raise UserError(
                f"processors: {type(one).__name__} has no hash, by which its compiled program is found again; give a "
                "function or a @dataclass(frozen=True)"
            ) from error
        code.check_call(one, "logits, tokens, length, step", f"the processor {_name(one)}")
    return processors


def control(
    request: Request,
    logits: Logits,
    tokens: Int[Array, "B S"],
    step: Int[Array, "B"],
    processors: Sequence[Processor] = (),
) -> Logits:
    """Applies the penalties, bans and bias of a request, and then the processors. Returns float32 logits.

    `tokens` are the rows' histories: the first `request.length` of each are the prompt and the next `step` are
    generated. A penalty or ban that no row uses takes almost no time, and using one does not recompile.
    """
    penalised = (request.repetition_penalty != 1) | (request.presence_penalty != 0) | (request.frequency_penalty != 0)
    penalised = penalised.any()
    unrepeated = (request.no_repeat_ngram > 0).any()
    early_B = step < request.min_new_tokens
    early = early_B.any()

    def when(active: Array, process: Callable[[Logits], Logits], logits: Logits) -> Logits:
        return lax.cond(active, process, lambda logits: logits, logits)

    def apply(logits: Logits) -> Logits:
        length = request.length
        logits = when(penalised, lambda x: penalise(request, x, tokens, step), logits)
        logits = when(unrepeated, lambda x: ban_ngrams(x, tokens, length + step, request.no_repeat_ngram), logits)
        return when(early, lambda x: ban_stops(x, request.stops, tokens, length, step, early_B), logits)

    logits = when(penalised | unrepeated | early, apply, logits.astype(jnp.float32))
    logits = logits + request.logit_bias
    for process in processors:
        logits = _called(process, logits, tokens, request.length, step)
    return logits


def _called(process: Processor, logits: Array, *history: Array) -> Array:
    label = f"the processor {_name(process)}"
    processed = traced(process, label, "use jnp.where on its arguments", logits, *history)
    if getattr(processed, "shape", None) != logits.shape:
        got = f"an array of shape {list(processed.shape)}" if hasattr(processed, "shape") else type(processed).__name__
        raise UserError(f"{label} returned {got}: it must return logits of shape [B, V], here {list(logits.shape)}")
    return processed.astype(jnp.float32)


def _name(process: Processor) -> str:
    return getattr(process, "__name__", type(process).__name__)


def traced(function: Callable[..., Any], label: str, mend: str, *arguments: Any) -> Any:
    """Calls a function that may be the user's own, whose arguments are traced.

    Args:
        label: what the function is, for the message.
        mend: what to do where it needs the value of a traced array.

    Raises:
        UserError: the function needs such a value, as `if`, `range` and slices do.
    """
    try:
        return function(*arguments)
    except (TypeError, IndexError) as error:
        if not isinstance(error, jax.errors.JAXTypeError | jax.errors.JAXIndexError) and "Tracer" not in str(error):
            raise
        source = getattr(inspect.unwrap(function), "__code__", None)
        place = source and place_of(error, {source.co_filename})
        where = f" ({place})" if place else ""
        raise UserError(
            f"{label}{where} needs a value that is known only at run time, {reason_of(error)}; {mend}"
        ) from error


def penalise(request: Request, logits: Logits, tokens: Int[Array, "B S"], step: Int[Array, "B"]) -> Logits:
    """Makes tokens that a row already contains less likely (or more likely, by the opposite values).

    The repetition penalty (Keskar et al. 2019) divides positive logits and multiplies negative ones, for every token of
    the prompt and the text. The presence penalty is subtracted once from every generated token, and the frequency
    penalty once for each time that it was generated.
    """
    rows_B1, position_1S = jnp.arange(tokens.shape[0])[:, None], jnp.arange(tokens.shape[1])[None]
    length_B1, end_B1 = request.length[:, None], (request.length + step)[:, None]
    known_BS = position_1S < end_B1
    generated_BS = (position_1S >= length_B1) & known_BS
    count_BV = jnp.zeros(logits.shape, jnp.int32).at[rows_B1, tokens].add(generated_BS.astype(jnp.int32))
    known_BV = jnp.zeros(logits.shape, bool).at[rows_B1, tokens].max(known_BS)
    penalty_B1 = request.repetition_penalty[:, None]
    logits = jnp.where(known_BV, jnp.where(logits > 0, logits / penalty_B1, logits * penalty_B1), logits)
    presence_B1, frequency_B1 = request.presence_penalty[:, None], request.frequency_penalty[:, None]
    return logits - frequency_B1 * count_BV - presence_B1 * (count_BV > 0)


def ban_ngrams(logits: Logits, tokens: Int[Array, "B S"], end: Int[Array, "B"], size: Int[Array, "B"]) -> Logits:
    """Bans each token that would repeat an n-gram of `size` tokens among the first `end` of its row; 0: off."""
    rows_B1, position_1S = jnp.arange(tokens.shape[0])[:, None], jnp.arange(tokens.shape[1])[None]
    end_B1, size_B1 = end[:, None], size[:, None]

    def compare(back: Array, same_BS: Array) -> Array:
        # Whether the token `back` before each position equals the one `back` before the end.
        then_B1 = jnp.take_along_axis(tokens, end_B1 - back, axis=1)
        return same_BS & ((jnp.roll(tokens, back, axis=1) == then_B1) | (back >= size_B1))

    inside_BS = (position_1S >= size_B1 - 1) & (position_1S < end_B1) & (size_B1 > 0)
    # An n-gram longer than the history repeats nothing, so the loop need not compare that far back.
    longest = jnp.minimum(jnp.max(size), tokens.shape[1])
    repeats_BS = lax.fori_loop(1, longest, compare, inside_BS)
    return logits.at[rows_B1, tokens].min(jnp.where(repeats_BS, -jnp.inf, jnp.inf))


def ban_stops(
    logits: Logits,
    stops: Int[Array, "B E L"],
    tokens: Int[Array, "B S"],
    length: Int[Array, "B"],
    step: Int[Array, "B"],
    rows: Bool[Array, "B"],
) -> Logits:
    """Bans, in the rows where `rows` is true, each token that would complete a stop sequence."""
    begun_BE, last_BE = _stops_begun(stops, tokens, length, step)
    rows_B1 = jnp.arange(tokens.shape[0])[:, None]
    return logits.at[rows_B1, last_BE].min(jnp.where(begun_BE & rows[:, None], -jnp.inf, jnp.inf))


def stops_at(
    candidates: Int[Array, "B K"],
    stops: Int[Array, "B E L"],
    tokens: Int[Array, "B S"],
    length: Int[Array, "B"],
    step: Int[Array, "B"],
) -> Bool[Array, "B K"]:
    """Which candidates for the next token would complete a stop sequence among the generated tokens."""
    begun_BE, last_BE = _stops_begun(stops, tokens, length, step)
    return jnp.any(begun_BE[:, None] & (candidates[:, :, None] == last_BE[:, None]), axis=2)


def _stops_begun(stops_BEL: Array, tokens_BS: Array, length_B: Array, step_B: Array) -> tuple[Array, Array]:
    """Whether the generated tokens end in a stop sequence without its last token; and those last tokens."""
    size_BE = jnp.sum(stops_BEL >= 0, axis=2)
    index_11L = jnp.arange(stops_BEL.shape[2])[None, None]
    # The position in the row of each token of the sequence, if its last one is the next token.
    position_BEL = (length_B + step_B)[:, None, None] - size_BE[:, :, None] + 1 + index_11L
    present_BEL = tokens_BS[jnp.arange(len(tokens_BS))[:, None, None], position_BEL]
    equal_BEL = (present_BEL == stops_BEL) & (position_BEL >= length_B[:, None, None])
    begun_BE = jnp.all(equal_BEL | (index_11L >= size_BE[:, :, None] - 1), axis=2) & (size_BE > 0)
    return begun_BE, jnp.take_along_axis(stops_BEL, jnp.maximum(size_BE - 1, 0)[:, :, None], axis=2)[:, :, 0]
