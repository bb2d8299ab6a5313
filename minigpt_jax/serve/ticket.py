"""The texts of one request as they grow: written by the engine's thread, read in an event loop."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from minigpt_jax.generate.generation import Generation
from minigpt_jax.generate.requests import Row
from minigpt_jax.generate.texts import StopScanner


class Update(NamedTuple):
    """The texts so far, in the order of `LanguageModel.generate`."""

    generations: list[Generation]
    """Of a text that has not finished, `finish_reason` means nothing."""
    finished: list[bool]
    """Which of them are final."""

    @property
    def done(self) -> bool:
        return all(self.finished)


@dataclass(eq=False)
class Job:
    """One row of a request."""

    ticket: "Ticket"
    place: int
    """Of the row in its request."""
    row: Row
    scanner: StopScanner | None
    finished: bool = False
    tokens: int = 0
    """New tokens so far."""
    shown: int = 0
    """New tokens that the ticket has."""

    @property
    def watched(self) -> bool:
        """Whether its text is needed before it is whole."""
        return self.ticket.streamed or self.scanner is not None

    def has_grown(self, most: int) -> bool:
        """Whether there are so many more tokens than the ticket has, or twice as many."""
        return self.tokens >= min(2 * self.shown + 1, self.shown + most)

    def grow(self, generations: list[Generation], finished: bool) -> None:
        """Hands the texts of all tokens so far to the ticket."""
        self.finished, self.shown = finished, self.tokens
        self.ticket.texts[self.place], self.ticket.finished[self.place] = generations, finished


News = tuple["Ticket", Update | None, Exception | None]
"""A ticket, and what its reader learns: an update or an error."""


class Ticket:
    """A request's texts. Iterate over it for updates; the last one has all texts whole.

    A reader that stops before the last update has to call `cancel`. A reader that is slower than the engine misses
    updates in between, but never the last one.

    Args:
        streamed: whether there are updates before the texts are whole.
        full: whether the reader needs the texts' `full_text`.
        wake: called when the ticket is cancelled.
    """

    def __init__(self, streamed: bool, full: bool, wake: Callable[[], None]) -> None:
        self.streamed, self.full = streamed, full
        # It does not know its jobs, which know it: of a cycle, memory would be freed late.
        self.texts: list[list[Generation]] = []
        self.finished: list[bool] = []
        self.cancelled = False
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._update: Update | None = None
        self._error: Exception | None = None

    def job(self, row: Row, scanner: StopScanner | None) -> Job:
        """A job for the next row of the request."""
        self.texts.append([Generation(row.prompt, "", row.prompt, [], [], "length", 0.0)] * row.returned)
        self.finished.append(False)
        return Job(self, len(self.texts) - 1, row, scanner)

    def cancel(self) -> None:
        """Ends the updates and frees the rows. A last update that has not been read yet is dropped."""
        if not self.cancelled:
            self.cancelled = True
            self._news.set()
            self._wake()

    async def __aiter__(self) -> AsyncIterator[Update]:
        while True:
            try:
                await self._news.wait()
            except asyncio.CancelledError:
                self.cancel()
                raise
            self._news.clear()
            if self._error is not None:
                raise self._error
            if self.cancelled:
                return
            assert self._update is not None
            update = self._update
            yield update
            if update.done:
                return

    async def whole(self) -> list[Generation]:
        """Waits for the texts."""
        async for update in self:
            if update.done:
                return update.generations
        return []

    # What follows is called in the engine's thread.

    @property
    def done(self) -> bool:
        """Whether all texts are whole."""
        return all(self.finished)

    def fail(self, error: Exception) -> None:
        """Ends the ticket by an error."""
        _tell([(self, None, error)])


def publish(tickets: Iterable[Ticket]) -> None:
    """Makes the present texts of tickets known, by one call in each event loop. Called in the engine's thread."""
    _tell([(ticket, _present(ticket), None) for ticket in tickets])


def _present(ticket: Ticket) -> Update:
    finished = [one for one, texts in zip(ticket.finished, ticket.texts, strict=True) for _ in texts]
    return Update([*itertools.chain.from_iterable(ticket.texts)], finished)


def _tell(news: list[News]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[News]] = {}
    for one in news:
        by_loop.setdefault(one[0]._loop, []).append(one)
    for loop, told in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set, told)
        except RuntimeError:  # the event loop has been closed: nobody reads this any more
            for ticket, *_ in told:
                ticket.cancelled = True


def _set(news: list[News]) -> None:
    for ticket, update, error in news:
        ticket._update, ticket._error = update or ticket._update, error
        ticket._news.set()
