"""The texts of one request as they grow: written by the engine's thread, read in an event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
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
    row: Row
    scanner: StopScanner | None
    generations: list[Generation] = field(default_factory=list)
    finished: bool = False
    tokens: int = 0
    """New tokens so far."""

    @property
    def watched(self) -> bool:
        """Whether its text is needed before it is whole."""
        return self.ticket.streamed or self.scanner is not None


class Ticket:
    """A request's texts. Iterate over it for updates; the last one has all texts whole.

    A reader that stops before the last update has to call `cancel`. A reader that is slower than the engine misses
    updates in between, but never the last one.

    Args:
        streamed: whether there are updates before the texts are whole.
        wake: called when the ticket is cancelled.
    """

    def __init__(self, streamed: bool, wake: Callable[[], None]) -> None:
        self.streamed = streamed
        self.jobs: list[Job] = []
        self.cancelled = False
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._update: Update | None = None
        self._error: Exception | None = None

    def cancel(self) -> None:
        """Frees the rows. Has no effect once the texts are whole."""
        if not self.cancelled:
            self.cancelled = True
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

    def publish(self) -> None:
        """Makes the present texts of the jobs known."""
        update = Update(
            [one for job in self.jobs for one in job.generations],
            [job.finished for job in self.jobs for _ in job.generations],
        )
        self._call(self._set, update, None)

    def fail(self, error: Exception) -> None:
        """Ends the ticket by an error."""
        self._call(self._set, None, error)

    @property
    def done(self) -> bool:
        return all(job.finished for job in self.jobs)

    def _set(self, update: Update | None, error: Exception | None) -> None:
        self._update, self._error = update or self._update, error
        self._news.set()

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the event loop has been closed: nobody reads this any more
            self.cancelled = True
