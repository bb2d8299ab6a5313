"""A pool: texts of one kind that are sampled together. They join and leave between chunks of the sampling loop.

The pool's state has a row for each text, and free rows. It grows when more texts wait than it has free rows, as soon as
the programs of the next size are compiled, and shrinks when few are left. A text is the same in any state.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from minigpt_jax.generate import LanguageModel, requests
from minigpt_jax.generate.generation import generations
from minigpt_jax.samplers import Request, Sampler, State
from minigpt_jax.serve.programs import Compiler, Kind, Programs
from minigpt_jax.serve.ticket import Job

SIZES = (1, 8, 32)
"""Rows that a state may have."""
CHUNK_TOKENS = 8
"""New tokens of a row between two looks at the texts."""
_PATIENCE = 16
"""Chunks after which a state shrinks that has been too large all the while."""


@dataclass(frozen=True)
class Entry:
    """A text that waits for a row."""

    job: Job
    sampler: Sampler
    """Its sampler, in the form of `samplers.per_row` with one row."""
    width: int
    """Bucket of the prompt's length."""


@dataclass
class Counters:
    """What a pool has done since it was made."""

    texts: int = 0
    tokens: int = 0
    chunks: int = 0
    seconds: float = 0.0
    """Spent in chunks."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Chunks of each size of the state."""


class Pool:
    """The texts of one kind.

    Args:
        entry: the first text of this kind; it does not join by this.
    """

    def __init__(
        self, lm: LanguageModel, kind: Kind, entry: Entry, compiler: Compiler, sizes: tuple[int, ...] = SIZES
    ) -> None:
        self.lm, self.kind = lm, kind
        self.waiting: deque[Entry] = deque()
        self.counters = Counters()
        # Free rows ask for what this one does, apart from its penalties, which would cost time.
        self._blank: tuple[Request, Sampler] = _without_penalties(self._request_of([entry], 1)), entry.sampler
        self._programs = Programs(kind, lm.stepped.weights, *self._blank, sizes, compiler)
        self._state: State | None = None
        self._asked = self._on_device = self._blank
        """The request and the sampler of the rows: on the host, and a copy of them on the device."""
        self._changed = False
        self._rows: list[Job | None] = []
        self._halted = np.zeros(0, bool)
        self._too_large = 0
        self._prepared: set[int] = set()

    @property
    def active(self) -> int:
        """The number of rows in use."""
        return sum(job is not None for job in self._rows)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.active

    def jobs(self) -> Iterator[Job]:
        """All texts in the pool, waiting ones included."""
        yield from (job for job in self._rows if job is not None)
        yield from (entry.job for entry in self.waiting)

    def release(self) -> None:
        """Frees the memory of an idle pool's state. Its programs stay."""
        self._state, self._rows, self._asked = None, [], self._blank
        self._on_device = self._blank

    def turn(self) -> bool:
        """Lets texts join and generates a chunk. Returns whether there was anything that could be done.

        Raises:
            Exception: what compiling or running a program raised. The pool cannot be used any more.
        """
        self._drop_cancelled()
        joined = self._join()
        if not self.active:
            return joined
        return self._advance() or joined

    # ---- Joining ----

    def _drop_cancelled(self) -> None:
        if any(entry.job.ticket.cancelled for entry in self.waiting):
            self.waiting = deque(entry for entry in self.waiting if not entry.job.ticket.cancelled)
        for row, job in enumerate(self._rows):
            if job is not None and job.ticket.cancelled:
                self._halted[row] = True
                self._free(row)

    def _join(self) -> bool:
        """Moves waiting texts to free rows, in order. Returns whether any have joined."""
        if self.waiting:
            for width in dict.fromkeys(entry.width for entry in self.waiting):
                self._prepare(width)
        self._resize()
        joined = False
        passed: deque[Entry] = deque()
        while self.waiting and (free := len(self._rows) - self.active):
            width = self.waiting[0].width
            size = self._batch_size(width, min(free, sum(entry.width == width for entry in self.waiting)))
            if size is None:  # its program is being compiled; others need not wait for it
                passed += [entry for entry in self.waiting if entry.width == width]
                self.waiting = deque(entry for entry in self.waiting if entry.width != width)
                continue
            batch = [entry for entry in self.waiting if entry.width == width][: min(free, size)]
            taken = set(map(id, batch))
            self.waiting = deque(entry for entry in self.waiting if id(entry) not in taken)
            self._start(batch, size, width)
            joined = True
        self.waiting = passed + self.waiting
        return joined

    def _prepare(self, width: int) -> None:
        """Has the programs compiled that prompts of this width will need, the smallest sizes first."""
        if width in self._prepared:
            return
        self._prepared.add(width)
        sizes, want = self._programs.sizes, self._programs.want
        least = sizes[0]
        want("advance", least)
        want("place", least, least)
        want("start", least, width)
        for i, size in enumerate(sizes):
            want("advance", size, waited_for=False)
            for other in sizes[: i + 1]:
                want("place", other, size, waited_for=False)
                want("place", size, other, waited_for=False)
            want("start", size, width, waited_for=False)

    def _usable(self, size: int) -> bool:
        """Whether the programs are ready by which the state gets this size and works with it."""
        if size == len(self._rows):
            return True
        ready, least = self._programs.ready, self._programs.sizes[0]
        moves = not self.active or ready("place", len(self._rows), size)
        return ready("advance", size) and ready("place", least, size) and moves

    def _resize(self) -> None:
        """Gives the state the size that the texts need."""
        needed = self.active + len(self.waiting)
        usable = [size for size in self._programs.sizes if self._usable(size)]
        least = self._programs.sizes[0]
        for name, *sizes in (("advance", least), ("place", least, least)):
            self._programs.want(name, *sizes)  # raises what its compilation raised
        if not usable or not needed:
            return
        best = next((size for size in usable if size >= needed), usable[-1])
        size = len(self._rows)
        self._too_large = self._too_large + 1 if best < size else 0
        if best > size or (best < size and (not self.active or self._too_large > _PATIENCE)):
            self._move(best)
            self._too_large = 0

    def _move(self, size: int) -> None:
        """Moves the texts to a state of this size."""
        state = self._programs.blank(size)
        kept = [row for row, job in enumerate(self._rows) if job is not None]
        asked = jax.tree.map(lambda leaf: np.repeat(leaf, size, axis=0), self._blank)
        if kept:
            target = np.full(len(self._rows), size, np.int32)
            target[kept] = range(len(kept))
            state = self._programs.want("place", len(self._rows), size)(state, self._state, target)
            for leaf, old in zip(jax.tree.leaves(asked), jax.tree.leaves(self._asked), strict=True):
                leaf[: len(kept)] = old[kept]
        self._state, self._asked = state, asked
        self._rows = [self._rows[row] for row in kept] + [None] * (size - len(kept))
        self._halted = np.zeros(size, bool)
        self._changed = True

    def _batch_size(self, width: int, count: int) -> int | None:
        """In how many rows to start `count` prompts, of the sizes whose programs are ready; None if none is."""
        state = len(self._rows)
        if self._programs.want("start", self._programs.sizes[0], width) is None:
            return None
        ready = [
            size
            for size in self._programs.sizes
            if self._programs.ready("start", size, width) and self._programs.ready("place", size, state)
        ]
        return next((size for size in ready if size >= count), ready[-1] if ready else None)

    def _start(self, batch: list[Entry], size: int, width: int) -> None:
        """Runs prompts through the model and gives each a free row."""
        request = self._request_of(batch, size)
        new = self._programs.start(size, width, self.lm.stepped.weights, request)
        free = [row for row, job in enumerate(self._rows) if job is None][: len(batch)]
        target = np.full(size, len(self._rows), np.int32)  # the rows of padding go nowhere
        target[: len(batch)] = free
        self._state = self._programs.want("place", size, len(self._rows))(self._state, new, target)
        for row, entry in zip(free, batch, strict=True):
            self._rows[row], self._halted[row] = entry.job, False
        sampler = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(entry.sampler for entry in batch))
        for leaf, own in zip(jax.tree.leaves(self._asked), jax.tree.leaves((request, sampler)), strict=True):
            leaf[free] = own[: len(batch)]
        self._changed = True

    def _request_of(self, batch: list[Entry], rows: int) -> Request:
        """The request of these texts, filled up to a number of rows."""
        window = self.lm.model.sequence_length
        sizes = requests.Sizes(rows, window, self.kind.room, window)
        jobs = [entry.job.row for entry in batch]
        return requests.request(jobs, sizes, self.lm.tokenizer, self.lm.model.vocabulary_size)

    # ---- Generating ----

    def _advance(self) -> bool:
        start = time.perf_counter()
        size = len(self._rows)
        # The first tokens of a streamed text are shown as soon as they are there.
        young = [job.tokens for job in self._rows if job is not None and job.ticket.streamed]
        count = np.int32(min([CHUNK_TOKENS - 1, *young]) + 1)
        if self._changed:
            # A copy, since the device's arrays may share memory with those of the host, which are changed in place.
            self._on_device, self._changed = jax.device_put(jax.tree.map(np.copy, self._asked)), False
        program = self._programs.want("advance", size)
        weights = self.lm.stepped.weights
        self._state, output, running = program(self._state, weights, *self._on_device, self._halted, count)
        output, running = jax.device_get((output, running))
        self._halted = np.zeros(size, bool)
        changed = [job for row, job in enumerate(self._rows) if job and self._look(row, job, output, not running[row])]
        for ticket in dict.fromkeys(job.ticket for job in changed):
            if ticket.streamed or ticket.done:
                ticket.publish()
        self.counters.chunks += 1
        self.counters.seconds += time.perf_counter() - start
        self.counters.sizes[size] = self.counters.sizes.get(size, 0) + 1
        return True

    def _look(self, row: int, job: Job, output: Any, ended: bool) -> bool:
        """Brings a text up to date, and frees its row if it has ended. Returns whether the text has changed."""
        tokens = int(output.length[row, 0])
        self.counters.tokens += tokens - job.tokens
        job.tokens = tokens
        if not ended and not (job.watched and self.kind.streams):
            return False
        own = jax.tree.map(lambda leaf: leaf[row : row + 1], output)
        job.generations, found = generations(self.lm.tokenizer, [job.row], [job.scanner], own)
        if found[0] and not ended:
            self._halted[row] = ended = True
        job.finished = ended
        if ended:
            self._free(row)
            self.counters.texts += 1
        return True

    def _free(self, row: int) -> None:
        """Takes a text from its row. What it asked for would cost time from now on."""
        self._rows[row] = None
        for leaf, blank in zip(jax.tree.leaves(self._asked), jax.tree.leaves(self._blank), strict=True):
            leaf[row] = blank[0]
        self._changed = True


def _without_penalties(request: Request) -> Request:
    """The request of free rows."""
    rows = np.zeros(len(request.length), np.int32)
    none = dict.fromkeys(("presence_penalty", "frequency_penalty"), rows.astype(np.float32))
    ones = np.ones(len(rows), np.float32)
    return replace(request, repetition_penalty=ones, no_repeat_ngram=rows, min_new_tokens=rows, **none)
