"""A pool: texts of one kind that are sampled together. They join and leave between chunks of the sampling loop.

The pool's state has a row for each text, and free rows. It grows when more texts wait than it has free rows, as soon as
the programs of the next size are compiled, and shrinks when few are left. A text is the same in any state.

While the device generates a chunk, the host decodes the one before. So a stop string ends its row a chunk late, and
what the row has generated since is dropped.
"""

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from minigpt_jax.generate import LanguageModel
from minigpt_jax.generate.generation import generations
from minigpt_jax.samplers import Request, Sampler, State
from minigpt_jax.serve.pace import Pace
from minigpt_jax.serve.programs import Compiler, Kind, Programs
from minigpt_jax.serve.ticket import Job, publish

SIZES = (1, 8, 32)
"""Rows that a state may have."""
_YOUNG = 8
"""While a streamed text has fewer new tokens than this, chunks are short: the first ends at its first token, for which
its reader waits, and the next when it has this many, so that other texts can join. While texts wait for a row, no chunk
has more tokens than this."""
_PATIENCE = 16
"""Chunks after which a state shrinks that has been too large all the while."""


class Entry(NamedTuple):
    """A text that waits for a row."""

    job: Job
    request: Request
    """What it asks for, as a request of one row."""
    sampler: Sampler
    """Its sampler, in the form of `samplers.per_row` with one row."""
    width: int
    """Bucket of the prompt's length."""


class Chunk(NamedTuple):
    """Tokens that the device generates, or has generated."""

    jobs: Sequence[Job | None]
    """The texts by their rows."""
    output: Any
    running: Any
    """Which rows run on."""
    count: int
    """New tokens of each row that runs on."""
    began: float


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
        self.finished = 0
        """Texts that have ended."""
        # Free rows ask for what this one does, apart from its penalties, which would cost time. It is a copy, as the
        # entry's arrays are views of a whole request.
        self._blank: tuple[Request, Sampler] = (
            _without_penalties(jax.tree.map(np.copy, entry.request)),
            entry.sampler,
        )
        self._programs = Programs(kind, lm.decode_form.weights, *self._blank, sizes, compiler)
        self._state: State | None = None
        self._asked = self._on_device = self._blank
        """The request and the sampler of the rows: on the host, and a copy of them on the device."""
        self._changed = False
        self._rows: list[Job | None] = []
        self._running: Chunk | None = None
        self._landed: Chunk | None = None
        """A chunk at which nobody has looked yet."""
        self._pace = Pace()
        self._halted = np.zeros(0, bool)
        self._too_large = 0
        self._prepared: set[int] = set()

    @property
    def active(self) -> int:
        """The number of rows in use."""
        return sum(job is not None for job in self._rows)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.active and self._running is None

    def jobs(self) -> Iterator[Job]:
        """All texts in the pool that have not ended, waiting ones included."""
        yield from (job for job in self._rows if job is not None)
        yield from (entry.job for entry in self.waiting)
        if self._landed is not None:
            yield from (job for job in self._landed.jobs if job is not None and not job.finished)

    def release(self) -> None:
        """Frees the memory of an idle pool's state. Its programs stay."""
        self._state, self._rows, self._asked = None, [], self._blank
        self._on_device = self._blank

    def turn(self) -> bool:
        """Waits for the chunk that runs, lets texts join, and starts the next chunk. Meanwhile looks at the last one.

        Returns whether there was anything that could be done.

        Raises:
            Exception: what compiling or running a program raised. The pool cannot be used any more.
        """
        self._land()
        self._drop_cancelled()
        joined = self._join()
        if self.active:
            self._launch()
        if self._landed is not None:
            self._look(self._landed)
            self._landed = None
        return joined or self._running is not None

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
        for width in self._widths():
            self._prepare(width)
        self._resize()
        joined = False
        passed: set[int] = set()
        while (free := len(self._rows) - self.active) and (widths := [w for w in self._widths() if w not in passed]):
            alike = [entry for entry in self.waiting if entry.width == widths[0]]
            size = self._batch_size(widths[0], min(free, len(alike)))
            if size is None:  # its program is being compiled; others need not wait for it
                passed.add(widths[0])
                continue
            batch = alike[: min(free, size)]
            self._start(batch, size, widths[0])
            # Only now, so that those who wait are told if starting has failed.
            taken = set(map(id, batch))
            self.waiting = deque(entry for entry in self.waiting if id(entry) not in taken)
            joined = True
        return joined

    def _widths(self) -> list[int]:
        """The widths of waiting texts, in order."""
        return list(dict.fromkeys(entry.width for entry in self.waiting))

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
        request, sampler = _joined([(entry.request, entry.sampler) for entry in batch])
        new = self._programs.start(size, width, self.lm.decode_form.weights, _filled_up(request, size))
        free = [row for row, job in enumerate(self._rows) if job is None][: len(batch)]
        target = np.full(size, len(self._rows), np.int32)  # the rows of padding go nowhere
        target[: len(batch)] = free
        self._state = self._programs.want("place", size, len(self._rows))(self._state, new, target)
        for row, entry in zip(free, batch, strict=True):
            self._rows[row], self._halted[row] = entry.job, False
        for leaf, own in zip(jax.tree.leaves(self._asked), jax.tree.leaves((request, sampler)), strict=True):
            leaf[free] = own
        self._changed = True

    # ---- Generating ----

    def _launch(self) -> None:
        """Starts a chunk, and does not wait for its end."""
        if self._changed:
            # A copy, since the device's arrays may share memory with those of the host, which are changed in place.
            self._on_device, self._changed = jax.device_put(jax.tree.map(np.copy, self._asked)), False
        jobs = [job for job in self._rows if job is not None]
        most = self._pace.part_of(max(job.row.limit - job.tokens for job in jobs))
        young = []
        if self.kind.streams:  # of other texts, nothing is shown or known before their end
            young = [_YOUNG - job.tokens if job.tokens else 1 for job in jobs if job.tokens < _YOUNG]
        count, began = min([min(most, _YOUNG) if self.waiting else most, *young]), time.perf_counter()
        program = self._programs.want("advance", len(self._rows))
        arguments = self._state, self.lm.decode_form.weights, *self._on_device, self._halted, np.int32(count)
        self._state, output, running = program(*arguments)
        self._halted = np.zeros(len(self._rows), bool)
        self._running = Chunk([*self._rows], output, running, count, began)

    def _land(self) -> None:
        """Waits for the chunk that runs, and frees the rows of texts that have ended in it."""
        if (chunk := self._running) is None:
            return
        waited = not chunk.running.is_ready()
        output, running = jax.device_get((chunk.output, chunk.running))
        if running.any():  # it has generated as many tokens as it was to
            self._pace.observe(chunk.count, time.perf_counter() - chunk.began, waited)
        self._running, self._landed = None, chunk._replace(output=output, running=running)
        for row, job in enumerate(chunk.jobs):
            if job is not None and job is self._rows[row]:
                job.tokens = int(output.length[row, 0])
                if not running[row]:
                    self._free(row)

    def _look(self, chunk: Chunk) -> None:
        """Brings texts up to date, ends those that a stop string ends, and tells those who read them."""
        rows = [row for row, job in enumerate(chunk.jobs) if job is not None and self._has_news(chunk, row, job)]
        jobs = [job for row in rows if (job := chunk.jobs[row]) is not None]
        if not jobs:
            return
        output = jax.tree.map(lambda leaf: leaf[rows], chunk.output)
        asked, scanners = [job.row for job in jobs], [job.scanner for job in jobs]
        full = any(job.ticket.full for job in jobs)
        texts, stopped = generations(self.lm.tokenizer, asked, scanners, output, full)
        rest = iter(texts)
        for row, job, stop in zip(rows, jobs, stopped, strict=True):
            job.grow([*itertools.islice(rest, job.row.returned)], bool(stop) or not chunk.running[row])
            self.finished += job.finished
            if job.finished and job in self._rows:
                row = self._rows.index(job)
                self._halted[row] = True
                self._free(row)
        publish(dict.fromkeys(job.ticket for job in jobs if job.ticket.streamed or job.ticket.done))

    def _has_news(self, chunk: Chunk, row: int, job: Job) -> bool:
        """Whether a text has to be brought up to date."""
        if job.finished or job.ticket.cancelled:
            return False
        return not chunk.running[row] or (job.watched and self.kind.streams and job.has_grown(self._pace.tokens))

    def _free(self, row: int) -> None:
        """Takes a text from its row. What it asked for would cost time from now on."""
        self._rows[row] = None
        for leaf, blank in zip(jax.tree.leaves(self._asked), jax.tree.leaves(self._blank), strict=True):
            leaf[row] = blank[0]
        self._changed = True


def _joined(trees: Sequence[Any]) -> Any:
    """Requests or samplers of the same shapes as one, with all their rows."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)


def _filled_up(request: Request, rows: int) -> Request:
    """The request with copies of its first row, up to a number of rows."""
    missing = rows - len(request.length)
    return jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[:1], missing, axis=0)]), request)


def _without_penalties(request: Request) -> Request:
    """The request of free rows."""
    rows = np.zeros(len(request.length), np.int32)
    none = dict.fromkeys(("presence_penalty", "frequency_penalty"), rows.astype(np.float32))
    ones = np.ones(len(rows), np.float32)
    return replace(request, repetition_penalty=ones, no_repeat_ngram=rows, min_new_tokens=rows, **none)
