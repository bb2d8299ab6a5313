"""The processes of one run: which one is the first, and how they exchange results."""

import collections
import contextlib
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # the key-value store that the processes share has no public name

from minigpt_jax.errors import UserError
from minigpt_jax.parallel.devices import AXIS, compile, local_devices, put_batch

JsonValue = str | int | float | bool | Sequence[Any] | None
T = TypeVar("T")
J = TypeVar("J", bound=JsonValue)
_LONGEST_WAIT = 7 * 24 * 3600 * 1000  # for the first process to prepare a large corpus, in ms
_calls = itertools.count()


def is_first() -> bool:
    """Whether this is process 0, the one that writes files and prints."""
    return jax.process_index() == 0


def from_first(function: Callable[[], J]) -> J:
    """Runs `function` in the first process only, and returns its result in all processes.

    Every process has to make the call. A UserError or an OSError of the first process is raised in all of them. The
    result is sent as JSON, so that tuples arrive as lists. JSON never runs code, which matters as anyone who can reach
    the coordinator's port can write to the store.
    """
    client = distributed.global_state.client
    if jax.process_count() == 1 or client is None:
        return function()
    key, value, error = f"minigpt/{next(_calls)}", None, None
    if is_first():
        try:
            value = function()
        except (UserError, OSError) as raised:
            error = raised
        client.key_value_set(key, _encoded(value, error))
    else:
        value, error = _decoded(client.blocking_key_value_get(key, _LONGEST_WAIT))
    if error is not None:
        # The store ends with the first process, so the others have to read the error before it is raised there.
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # raise it even if some of them do not come to read it
            client.wait_at_barrier(f"{key}/read", 10_000)
        raise error
    return value  # pyright: ignore[reportReturnType]


def _encoded(value: JsonValue, error: UserError | OSError | None) -> str:
    if error is None:
        return json.dumps({"value": value})
    file = getattr(error, "filename", None)  # it is missing from `args`
    arguments = error.args if file is None else (*error.args, file)
    kind = "UserError" if isinstance(error, UserError) else "OSError"
    return json.dumps({"error": kind, "arguments": arguments}, default=str)


def _decoded(text: str) -> tuple[Any, UserError | OSError | None]:
    try:
        message = json.loads(text)
        if "error" not in message:
            return message["value"], None
        return None, {"UserError": UserError, "OSError": OSError}[message["error"]](*message["arguments"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "the message from process 0 of this run cannot be read; start all processes with the same version of "
            "minigpt_jax"
        ) from error


def first_then_others(function: Callable[[], T]) -> T:
    """Runs `function` in the first process, then in the others, and returns each one's result.

    It is for functions that write files: the other processes find the files of the first one if they share its disk,
    and write their own if they do not.
    """
    results: list[T] = []
    from_first(lambda: results.append(function()))  # `append` returns None, so the result itself is not sent
    return results[0] if results else function()


def any_process() -> Callable[[bool], bool]:
    """Returns a function that all processes call repeatedly: is the argument true in any of them?

    All processes get the same answer. If there is more than one, the answer is that to the previous call, so that no
    process has to wait for the others.
    """
    if jax.process_count() == 1:
        return lambda mine: mine
    answers: collections.deque[Any] = collections.deque()
    count = compile(lambda _, flags: jax.lax.psum(flags.sum(), AXIS))

    def ask(mine: bool) -> bool:
        answers.append(count((), put_batch(np.full(local_devices(), mine, np.int32))))
        return len(answers) > 1 and bool(jax.device_get(answers.popleft()))

    return ask
