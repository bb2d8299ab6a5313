"""The compiled programs of a pool. They are compiled ahead of their use, so that nobody waits for a size to grow.

A slab is what a pool keeps on the device: a request, a sampler whose settings differ by row, and a state, all with the
same number of rows. Each slab has one of a few sizes. Three programs work on slabs: `start` makes one from new prompts,
`place` copies rows of one slab to rows of another, and `advance` generates tokens.
"""

import functools
import itertools
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from minigpt_jax import samplers
from minigpt_jax.generate.programs import compiler_options
from minigpt_jax.model import GPT
from minigpt_jax.samplers import Output, Processor, Request, Sampler, State


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slab:
    """Rows on the device. Rows are the first axis of every leaf, or that times the sampler's width."""

    request: Request
    sampler: Sampler
    state: State


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


class Compiler:
    """Compiles programs in a background thread, those that somebody waits for first.

    Args:
        ready: called after each program.
    """

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._tasks: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = queue.PriorityQueue()
        self._count = itertools.count()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="compiler", daemon=True)
        self._thread.start()

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
        weights, request, sampler: arguments of the programs, the request and the sampler with one row. Only their
            shapes and types matter.
        sizes: the numbers of rows that a slab may have.
    """

    def __init__(
        self, kind: Kind, weights: Any, request: Request, sampler: Sampler, sizes: tuple[int, ...], compiler: Compiler
    ) -> None:
        self.kind, self.sizes = kind, sizes
        self._weights, self._request, self._sampler = jax.tree.map(_abstract, (weights, request, sampler))
        self._sampler_row = jax.tree.map(np.asarray, sampler)
        self._compiler = compiler
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self._asked: set[tuple[Any, ...]] = set()

    def want(self, name: str, *sizes: int, waited_for: bool = True) -> Any:
        """A compiled program, or None if it is not ready yet; then it will be compiled.

        Args:
            name: "start" (rows, prompt width), "place" (rows to copy, rows of the slab) or "advance" (rows).
            waited_for: whether somebody waits for it, so that it is compiled before what is compiled ahead.

        Raises:
            Exception: what compiling it raised.
        """
        key = (name, *sizes)
        if key in self._compiled:
            compiled = self._compiled[key]
            if isinstance(compiled, Exception):
                raise compiled
            return compiled
        if (key, waited_for) not in self._asked and (key, True) not in self._asked:
            self._asked.add((key, waited_for))
            self._compiler.submit(lambda: self._compile(key), waited_for)
        return None

    def ready(self, name: str, *sizes: int) -> bool:
        """Whether a program has been compiled."""
        return not isinstance(self._compiled.get((name, *sizes)), Exception | None)

    def blank(self, rows: int) -> Slab:
        """A slab whose rows have all ended."""
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._slab(rows))
        sampler = jax.tree.map(lambda leaf: np.repeat(leaf, rows, axis=0), self._sampler_row)
        return jax.device_put(replace(zeros, sampler=sampler))

    def _compile(self, key: tuple[Any, ...]) -> None:
        if key in self._compiled:  # asked for twice: first ahead of its use, then by somebody who waits
            return
        name, *sizes = key
        try:
            self._compiled[key] = getattr(self, f"_{name}")(*sizes)
        except Exception as error:
            self._compiled[key] = error

    def _start(self, rows: int, width: int) -> Any:
        return _compiled(functools.partial(_start, self.kind, width), self._weights, *self._prompts(rows))

    def _place(self, rows: int, size: int) -> Any:
        arguments = self._slab(size), self._slab(rows), jax.ShapeDtypeStruct((rows,), np.int32)
        return _compiled(_place, *arguments, donate=(0,))

    def _advance(self, rows: int) -> Any:
        arguments = self._slab(rows), self._weights, _rows_of(bool, rows), jax.ShapeDtypeStruct((), np.int32)
        return _compiled(functools.partial(_advance, self.kind), *arguments, donate=(0,))

    def _prompts(self, rows: int) -> tuple[Request, Sampler]:
        wide = lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)  # noqa: E731
        return jax.tree.map(wide, (self._request, self._sampler))

    def _slab(self, rows: int) -> Any:
        width = self._request.tokens.shape[1]
        return jax.eval_shape(functools.partial(_start, self.kind, width), self._weights, *self._prompts(rows))


def _start(kind: Kind, width: int, weights: Any, request: Request, sampler: Sampler) -> Slab:
    """A slab of new prompts, of which none has more than `width` tokens."""

    def prefill(tokens_BT: Int[Array, "B T"], length_B: Int[Array, "B"]) -> Any:
        slots = kind.gpt.sequence_length
        logits_BV, hidden_BWD, cache = kind.gpt.apply(  # pyright: ignore[reportGeneralTypeIssues]
            {"params": weights}, tokens_BT[:, :width], length_B, slots, method="prefill"
        )
        hidden_BTD = jnp.pad(hidden_BWD, ((0, 0), (0, tokens_BT.shape[1] - width), (0, 0)))
        return logits_BV, hidden_BTD, cache

    state = samplers.start(prefill, sampler, request, kind.room, top_logprobs=kind.top_logprobs)
    return Slab(request, sampler, state)


def _place(slab: Slab, source: Slab, target: Int[Array, "C"]) -> Slab:
    """Copies row i of `source` to row `target[i]` of the slab; not at all if the slab has no such row."""
    rows = len(slab.request.length)

    def put(leaf: Array, new: Array) -> Array:
        # Some leaves have several rows for each row of the request, side by side.
        grouped, group = leaf.reshape(rows, -1, *leaf.shape[1:]), new.reshape(len(target), -1, *new.shape[1:])
        return grouped.at[target].set(group, mode="drop").reshape(leaf.shape)

    return jax.tree.map(put, slab, source)


def _advance(
    kind: Kind, slab: Slab, weights: Any, halted: Bool[Array, "B"], count: Int[Array, ""]
) -> tuple[Slab, Output, Bool[Array, "B"]]:
    """Generates `count` tokens in every running row. Returns the slab, the texts so far and which rows run on.

    Rows in `halted` end before that.
    """
    state = samplers.halt(slab.state, halted)
    # What rows that have ended asked for would cost time.
    running_B, request = state.running, slab.request
    request = replace(
        request,
        repetition_penalty=jnp.where(running_B, request.repetition_penalty, 1),
        presence_penalty=jnp.where(running_B, request.presence_penalty, 0),
        frequency_penalty=jnp.where(running_B, request.frequency_penalty, 0),
        no_repeat_ngram=jnp.where(running_B, request.no_repeat_ngram, 0),
        min_new_tokens=jnp.where(running_B, request.min_new_tokens, 0),
    )
    step = functools.partial(kind.gpt.apply, {"params": weights}, method="step")
    state = samplers.advance(
        step,  # pyright: ignore[reportArgumentType]
        slab.sampler,
        request,
        state,
        state.step + count,
        processors=kind.processors,
    )
    slab = replace(slab, state=state)
    return slab, samplers.result(slab.sampler, slab.request, state), state.running


def _compiled(function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
    options = compiler_options() or None
    return jax.jit(function, donate_argnums=donate, compiler_options=options).lower(*arguments).compile()


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype if np.isscalar(leaf) else leaf.dtype)


def _rows_of(dtype: Any, rows: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows,), dtype)
