"""A pool: texts of one kind that are sampled together. They join and leave between chunks of the sampling loop.

The pool's slab has a row for each text, and free rows. It grows when more texts wait than it has free rows, as soon as
the programs of the next size are compiled, and shrinks when few are left. A text is the same in any slab.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from minigpt_jax import samplers
from minigpt_jax.generate import LanguageModel, requests
from minigpt_jax.generate.generation import generations
from minigpt_jax.samplers import Sampler
from minigpt_jax.serve.programs import Compiler, Kind, Programs, Slab
from minigpt_jax.serve.ticket import Job

SIZES = (1, 8, 32)
"""Rows that a slab may have."""
CHUNK_TOKENS = 8
"""New tokens of a row between two looks at the texts."""
_PATIENCE = 16
"""Chunks after which a slab shrinks that has been too large all the while."""


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
    """Chunks of each size of the slab."""


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
        request = self._request([entry], 1)
        self._programs = Programs(kind, lm.stepped.weights, request, entry.sampler, sizes, compiler)
        self._slab: Slab | None = None
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
        """Frees the memory of an idle pool's slab. Its programs stay."""
        self._slab, self._rows = None, []

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
                self._rows[row] = None

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
        """Whether the programs are ready by which the slab gets this size and works with it."""
        if size == len(self._rows):
            return True
        ready, least = self._programs.ready, self._programs.sizes[0]
        moves = not self.active or ready("place", len(self._rows), size)
        return ready("advance", size) and ready("place", least, size) and moves

    def _resize(self) -> None:
        """Gives the slab the size that the texts need."""
        needed = self.active + len(self.waiting)
        usable = [size for size in self._programs.sizes if self._usable(size)]
        self._programs.want("advance", self._programs.sizes[0])  # raises what its compilation raised
        if not usable or not needed:
            return
        best = next((size for size in usable if size >= needed), usable[-1])
        size = len(self._rows)
        self._too_large = self._too_large + 1 if best < size else 0
        if best > size or (best < size and (not self.active or self._too_large > _PATIENCE)):
            self._move(best)
            self._too_large = 0

    def _move(self, size: int) -> None:
        """Moves the texts to a slab of this size."""
        slab, rows = self._programs.blank(size), [job for job in self._rows if job is not None]
        if rows:
            target, free = np.full(len(self._rows), size, np.int32), iter(range(size))
            for row, job in enumerate(self._rows):
                if job is not None:
                    target[row] = next(free)
            slab = self._programs.want("place", len(self._rows), size)(slab, self._slab, target)
        self._slab, self._rows = slab, rows + [None] * (size - len(rows))
        self._halted = np.zeros(size, bool)

    def _batch_size(self, width: int, count: int) -> int | None:
        """In how many rows to start `count` prompts, of the sizes whose programs are ready; None if none is."""
        slab = len(self._rows)
        if self._programs.want("start", self._programs.sizes[0], width) is None:
            return None
        ready = [
            size
            for size in self._programs.sizes
            if self._programs.ready("start", size, width) and self._programs.ready("place", size, slab)
        ]
        return next((size for size in ready if size >= count), ready[-1] if ready else None)

    def _start(self, batch: list[Entry], size: int, width: int) -> None:
        """Runs prompts through the model and gives each a free row."""
        request = self._request(batch, size)
        several = [entry.sampler for entry in batch]
        several += several[-1:] * (size - len(batch))
        sampler = jax.tree.map(lambda *leaves: np.concatenate(leaves), *several)
        new = self._programs.want("start", size, width)(self.lm.stepped.weights, request, sampler)
        free = [row for row, job in enumerate(self._rows) if job is None]
        target = np.full(size, len(self._rows), np.int32)  # the rows of padding go nowhere
        for i, entry in enumerate(batch):
            target[i] = free[i]
            self._rows[free[i]] = entry.job
            self._halted[free[i]] = False
        self._slab = self._programs.want("place", size, len(self._rows))(self._slab, new, target)

    def _request(self, batch: list[Entry], rows: int) -> samplers.Request:
        sizes = requests.Sizes(rows, self.lm.model.sequence_length, self.kind.room, self.lm.model.sequence_length)
        return requests.request(
            [entry.job.row for entry in batch], sizes, self.lm.tokenizer, self.lm.model.vocabulary_size
        )

    # ---- Generating ----

    def _advance(self) -> bool:
        start = time.perf_counter()
        size = len(self._rows)
        # The first tokens of a streamed text are shown as soon as they are there.
        young = [job.tokens for job in self._rows if job is not None and job.ticket.streamed]
        count = np.int32(min([CHUNK_TOKENS - 1, *young]) + 1)
        program = self._programs.want("advance", size)
        self._slab, output, running = program(self._slab, self.lm.stepped.weights, self._halted, count)
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
            self._rows[row] = None
            self.counters.texts += 1
        return True
