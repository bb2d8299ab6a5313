"""Several processes of one run: which of them is the first, and how they agree."""

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

JsonValue = str | int | float | bool | Sequence["JsonValue"] | None
T = TypeVar("T")
J = TypeVar("J", bound=JsonValue)
_LONGEST_WAIT = 7 * 24 * 3600 * 1000  # for the first process to prepare a large corpus, in ms
_calls = itertools.count()


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def from_first(function: Callable[[], J]) -> J:
    """What `function` returns in the first process, given to all of them; the others do not run it.

    Every process has to make the call. A UserError or an OSError is raised in all of them. The value is sent as JSON,
    which never runs code: the store is open to whoever reaches the coordinator's port. The others get tuples as lists.
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
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # told even where not all come to read it
            client.wait_at_barrier(f"{key}/read", 10_000)  # before the first one leaves, and takes the store along
        raise error
    return value  # pyright: ignore[reportReturnType]


def _encoded(value: JsonValue, error: UserError | OSError | None) -> str:
    if error is None:
        return json.dumps({"value": value})
    file = getattr(error, "filename", None)  # which `args` lacks
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
            "what process 0 of this run sent cannot be read; start all processes with one version of minigpt_jax"
        ) from error


def first_then_others(function: Callable[[], T]) -> T:
    """What `function` returns in each process: the first one runs it before the others do, who find what it has made.

    They make their own where they do not share the first one's disk.
    """
    made: list[T] = []
    from_first(lambda: made.append(function()))  # which returns None: what is made is not sent
    return made[0] if made else function()


def any_process() -> Callable[[bool], bool]:
    """A question that all processes ask together, again and again: has any of them said yes?

    With several of them the answer is that to the call before, so that nobody waits for it; it is the same in all.
    """
    if jax.process_count() == 1:
        return lambda mine: mine
    answers: collections.deque[Any] = collections.deque()
    count = compile(lambda _, flags: jax.lax.psum(flags.sum(), AXIS))

    def ask(mine: bool) -> bool:
        answers.append(count((), put_batch(np.full(local_devices(), mine, np.int32))))
        return len(answers) > 1 and bool(jax.device_get(answers.popleft()))

    return ask
