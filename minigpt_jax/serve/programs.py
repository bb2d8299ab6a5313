"""The compiled programs of a pool. They are compiled ahead of their use, so that nobody waits for a size to grow.

A pool keeps a state on the device, with a row for each text, and the rows' requests and samplers on the host. A state
has one of a few sizes. Three programs work on states: `start` makes one from new prompts, `place` copies rows of one to
rows of another, and `advance` generates tokens. Only the last one depends on the method of sampling.
"""

import functools
import itertools
import queue
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from minigpt_jax import samplers
from minigpt_jax.generate.programs import compiler_options
from minigpt_jax.model import GPT
from minigpt_jax.samplers import Output, Processor, Request, Sampler, State


class Kind(NamedTuple):
    """What the programs of a pool depend on. Texts of the same kind share a pool."""

    gpt: GPT
    room: int
    """M, the most new tokens of a row."""
    sampler: Any
    """The tree structure of a sampler for several rows."""
    stops: tuple[int, int]
    """The shape of a row's stop table."""
    processors: tuple[Processor, ...]
    top_logprobs: int
    streams: bool
    """Whether a row's tokens are final as soon as they are generated."""


@dataclass
class Family:
    """Programs that differ only in their sizes, by their names and sizes."""

    compiled: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    """Programs, or the exceptions that compiling them raised, which those who wait have not been told yet."""
    asked: set[tuple[Any, ...]] = field(default_factory=set)


class Compiler:
    """Compiles programs in a background thread, those that somebody waits for first, and keeps them.

    Args:
        ready: called after each program.
    """

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._families: dict[Any, Family] = {}
        self._tasks: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = queue.PriorityQueue()
        self._count = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="compiler", daemon=True)
        self._thread.start()

    def family(self, key: Hashable) -> Family:
        """The programs of this key that have been compiled so far."""
        return self._families.setdefault(key, Family())

    def submit(self, task: Callable[[], None], waited_for: bool) -> None:
        """Runs the task after those that were submitted before it, or ahead of those that nobody waits for."""
        self._tasks.put((0 if waited_for else 1, next(self._count), task))

    def idle(self) -> bool:
        """Whether all tasks have been run."""
        return self._tasks.unfinished_tasks == 0

    def close(self) -> None:
        """Ends the thread after the task that it runs."""
        self._closed = True
        self._tasks.put((-1, next(self._count), lambda: None))
        self._thread.join()

    def _run(self) -> None:
        while not self._closed:
            *_, task = self._tasks.get()
            if not self._closed:
                task()
            self._tasks.task_done()
            self._ready()


class Programs:
    """The programs of one kind, by their sizes.

    Args:
        weights, request, sampler: arguments of the programs, the request and the sampler with one row. Of the first two
            only the shapes and types matter.
        sizes: the numbers of rows that a state may have.
    """

    def __init__(
        self, kind: Kind, weights: Any, request: Request, sampler: Sampler, sizes: tuple[int, ...], compiler: Compiler
    ) -> None:
        self.kind, self.sizes = kind, sizes
        self._weights, self._request = jax.tree.map(_abstract, (weights, request))
        self._sampler = jax.tree.map(np.asarray, sampler)
        self._compiler = compiler
        self._states: dict[int, Any] = {}
        self._advancing = compiler.family(kind)
        # Methods of one driver start in the same way.
        shared = (kind.gpt, kind.room, kind.top_logprobs, sampler.driver.__name__, sampler.width)
        self._starting = compiler.family(shared)

    def want(self, name: str, *sizes: int, waited_for: bool = True) -> Any:
        """A compiled program, or None if it is not ready yet; then it will be compiled.

        Args:
            name: "start" (rows, prompt width), "place" (rows to copy, rows of the state) or "advance" (rows).
            waited_for: whether somebody waits for it, so that it is compiled before what is compiled ahead.

        Raises:
            Exception: what compiling it raised. The next call compiles it again.
        """
        family, key = self._family(name), (name, *sizes)
        if key in family.compiled:
            compiled = family.compiled[key]
            if isinstance(compiled, Exception):
                del family.compiled[key]
                family.asked -= {(key, True), (key, False)}
                raise compiled
            return compiled
        if (key, waited_for) not in family.asked and (key, True) not in family.asked:
            family.asked.add((key, waited_for))
            self._compiler.submit(lambda: self._compile(family, key), waited_for)
        return None

    def ready(self, name: str, *sizes: int) -> bool:
        """Whether a program has been compiled."""
        return not isinstance(self._family(name).compiled.get((name, *sizes)), Exception | None)

    def blank(self, rows: int) -> State:
        """A state whose rows have all ended."""
        return jax.device_put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._state(rows)))

    def start(self, rows: int, width: int, weights: Any, request: Request) -> State:
        """Runs new prompts through the model. The program must be ready."""
        return self.want("start", rows, width)(weights, _to_start(request))

    def _family(self, name: str) -> Family:
        return self._advancing if name == "advance" else self._starting

    def _compile(self, family: Family, key: tuple[Any, ...]) -> None:
        if key in family.compiled:  # asked for twice: first ahead of its use, then by somebody who waits
            return
        name, *sizes = key
        try:
            family.compiled[key] = getattr(self, f"_{name}")(*sizes)
        except Exception as error:
            family.compiled[key] = error

    def _start(self, rows: int, width: int) -> Any:
        return _compiled(self._starting_at(width), self._weights, _to_start(self._of(rows, self._request)))

    def _place(self, rows: int, size: int) -> Any:
        return _compiled(_place, self._state(size), self._state(rows), _vector(rows, np.int32), donate=(0,))

    def _advance(self, rows: int) -> Any:
        request, sampler = self._of(rows, (self._request, self._sampler))
        count = jax.ShapeDtypeStruct((), np.int32)
        arguments = self._state(rows), self._weights, request, sampler, _vector(rows, bool), count
        return _compiled(functools.partial(_advance, self.kind), *arguments, donate=(0,))

    def _state(self, rows: int) -> Any:
        """Shapes and types of a state."""
        if rows not in self._states:
            start = self._starting_at(self._request.tokens.shape[1])
            self._states[rows] = jax.eval_shape(start, self._weights, self._of(rows, self._request))
        return self._states[rows]

    def _starting_at(self, width: int) -> Callable[[Any, Request], State]:
        return functools.partial(_start, self.kind, width, self._sampler)

    def _of(self, rows: int, tree: Any) -> Any:
        """Shapes and types of several rows, from those of one."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), tree)


def _to_start(request: Request) -> Any:
    """A request in the form of which `start` has the same shapes for all kinds."""
    shape, dtype = (request.length.shape[0], 1, 1), request.stops.dtype
    stops = np.full(shape, -1, dtype) if isinstance(request.stops, np.ndarray) else jax.ShapeDtypeStruct(shape, dtype)
    return replace(request, stops=stops)


def _start(kind: Kind, width: int, sampler: Sampler, weights: Any, request: Request) -> State:
    """A state of new prompts, of which none has more than `width` tokens. Of the sampler only the width matters."""

    def prefill(tokens_BT: Int[Array, "B T"], length_B: Int[Array, "B"]) -> Any:
        slots = kind.gpt.sequence_length
        prefilled: Any = kind.gpt.apply({"params": weights}, tokens_BT[:, :width], length_B, slots, method="prefill")
        logits_BV, hidden_BWD, cache = prefilled
        hidden_BTD = jnp.pad(hidden_BWD, ((0, 0), (0, tokens_BT.shape[1] - width), (0, 0)))
        return logits_BV, hidden_BTD, cache

    return samplers.start(prefill, sampler, request, kind.room, top_logprobs=kind.top_logprobs)


def _place(state: State, source: State, target: Int[Array, "C"]) -> State:
    """Copies row i of `source` to row `target[i]` of the state; not at all if the state has no such row."""
    rows = state.step.shape[0]

    def put(leaf: Array, new: Array) -> Array:
        several = leaf.shape[0] // rows  # some leaves have several rows for each row of the request, side by side
        grouped = leaf.reshape(rows, several, *leaf.shape[1:])
        group = new.reshape(len(target), several, *leaf.shape[1:])
        return grouped.at[target].set(group, mode="drop").reshape(leaf.shape)

    return jax.tree.map(put, state, source)


def _advance(
    kind: Kind,
    state: State,
    weights: Any,
    request: Request,
    sampler: Sampler,
    halted: Bool[Array, "B"],
    count: Int[Array, ""],
) -> tuple[State, Output, Bool[Array, "B"]]:
    """Generates `count` tokens in every running row. Returns the state, the texts so far and which rows run on.

    Rows in `halted` end before that.
    """
    state = samplers.halt(state, halted)
    step: Any = functools.partial(kind.gpt.apply, {"params": weights}, method="step")
    until_B = state.step + count
    state = samplers.advance(step, sampler, request, state, until_B, processors=kind.processors)
    return state, samplers.result(sampler, request, state), state.running


def _compiled(function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
    options = compiler_options() or None
    return jax.jit(function, donate_argnums=donate, compiler_options=options).lower(*arguments).compile()


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _vector(rows: int, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows,), dtype)
