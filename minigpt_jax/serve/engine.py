"""The engine of a model: one background thread that samples all requests' texts, in pools."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax

from minigpt_jax import samplers
from minigpt_jax.errors import UserError
from minigpt_jax.generate import GenerationSettings, LanguageModel, requests
from minigpt_jax.generate.methods import as_sampler
from minigpt_jax.generate.texts import StopScanner, as_prompts
from minigpt_jax.samplers import Sampler
from minigpt_jax.samplers.methods import Greedy, MinP, Random, TopK, TopP, Typical
from minigpt_jax.serve.pool import SIZES, Entry, Pool
from minigpt_jax.serve.priority import give_way
from minigpt_jax.serve.programs import Compiler, Kind
from minigpt_jax.serve.ticket import Ticket, publish

MAX_WAITING = 256
"""Texts that may wait for a row."""
MAX_TEXTS = 128
"""Texts of one request."""
MAX_WIDTH = 64
"""Hypotheses of a beam search and candidates of a contrastive search, each of which takes a row of the model's step."""
_IDLE_POOLS = 4
"""Idle pools that keep their memory on the device."""
_QUIET_ROUNDS, _MOST_GATHERING = 3, 0.05
"""An idle engine starts after this many rounds of the event loop without a new request, or after this many seconds."""
_LEAST_WIDTH, _WIDTH_STEP = 8, 4

T = TypeVar("T")


class QueueFullError(Exception):
    """More texts wait than the engine takes; the request may be sent again later."""


class EngineError(Exception):
    """The engine failed at a request, by no fault of the request."""


class Engine:
    """Samples from one model for many callers at once.

    Args:
        lm: the model.
        name: the name by which requests refer to it.
        max_new_tokens: the most new tokens of a text; the size of the window by default.
        sizes: numbers of rows of a batch, in increasing order.
        max_waiting: the most texts that may wait for a row.
    """

    def __init__(
        self,
        lm: LanguageModel,
        name: str,
        max_new_tokens: int | None = None,
        sizes: tuple[int, ...] = SIZES,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.name, self.lm = name, lm
        _ = lm.decode_form  # made here, as making it takes time that the event loop does not have
        self.room = max_new_tokens or lm.model.sequence_length
        self._sizes, self._max_waiting = sizes, max_waiting
        self._wake = threading.Event()
        self._inbox: deque[Callable[[], None]] = deque()
        self._pools: dict[Any, Pool] = {}
        self._gathering_since = 0.0
        self._requests = 0
        self._posted = 0
        """Texts on their way to a pool."""
        self._lock = threading.Lock()
        self._beside = threading.Lock()
        self._closing = False
        self._compiler = Compiler(ready=self._wake.set)
        self._thread = threading.Thread(target=self._run, name=f"engine of {name}", daemon=True)
        self._thread.start()

    @property
    def step(self) -> int | None:
        """The checkpoint that new requests sample from."""
        return self.lm.step

    def submit(
        self,
        prompts: str | Iterable[str | Sequence[int]],
        sampler: Sampler | str | None = None,
        settings: GenerationSettings | None = None,
        *,
        row_ids: Iterable[int] | None = None,
        streamed: bool = False,
        full: bool = True,
    ) -> Ticket:
        """Starts to sample the texts that `LanguageModel.generate` returns for the same arguments.

        To be called in an event loop. It returns at once.

        Args:
            streamed: whether the ticket has updates while the texts grow.
            full: whether `full_text` is needed; if not, it may be empty.

        Raises:
            UserError: as `generate` does, and for more or longer texts than the engine takes.
            QueueFullError: too many texts wait already.
        """
        lm, method, given = self.lm, as_sampler(sampler), as_prompts(prompts)
        asked = settings or GenerationSettings()
        self.check(len(given), method, asked)
        plan = lm.plan(given, method, [asked] * len(given), row_ids)
        self._check_length(max((row.limit for row in plan.rows), default=0))
        if self._closing:
            raise QueueFullError("the server is shutting down")
        if (waiting := self.waiting()) + len(plan.rows) > self._max_waiting:
            raise QueueFullError(f"{waiting} texts are waiting already; try again later")
        ticket = Ticket(streamed, full, self._wake.set)
        if not plan.rows:
            publish([ticket])
            return ticket
        window = lm.model.sequence_length
        sizes = requests.Sizes(len(plan.rows), window, self.room, window)
        request = requests.request(plan.rows, sizes, lm.tokenizer, lm.model.vocabulary_size)
        own = samplers.per_row([_shared(method)])
        entries = []
        for i, row in enumerate(plan.rows):
            job = ticket.job(row, StopScanner.of(row.settings, lm.tokenizer.decode))
            row_alone = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], request)
            entries.append(Entry(job, row_alone, own, _width(len(row.ids), window)))
        kind = Kind(
            gpt=lm.decode_form.model,
            room=self.room,
            sampler=jax.tree.structure(own),
            stops=(request.stops.shape[1], request.stops.shape[2]),
            processors=plan.processors,
            top_logprobs=plan.top_logprobs,
            streams=method.streams,
        )
        with self._lock:
            self._posted += len(entries)
        if not self._inbox:
            self._gathering_since = time.monotonic()
        self._inbox.append(lambda: self._enter(lm, kind, ticket, entries))
        self._requests += 1
        self._wake_when_quiet(self._requests, _QUIET_ROUNDS)
        return ticket

    def check(self, prompts: int, sampler: Sampler, settings: GenerationSettings) -> None:
        """Raises UserError for a request of more than the engine takes. It takes no time, however much is asked for.

        Args:
            prompts: the number of prompts.
        """
        if (texts := prompts * settings.num_return_sequences) > MAX_TEXTS:
            raise UserError(f"--num-return-sequences: {texts} texts at once; ask for {MAX_TEXTS} at most")
        if sampler.width > MAX_WIDTH:
            flag = "--num-beams" if sampler.ranks else "--k"
            raise UserError(f"{flag}: this server's {sampler.name} search is no wider than {MAX_WIDTH}; ask for fewer")
        self._check_length(settings.max_new_tokens or 0)

    def _check_length(self, longest: int) -> None:
        if longest > self.room:
            raise UserError(f"--max-new-tokens {longest}: this server generates {self.room} at most for one text")

    def _wake_when_quiet(self, request: int, rounds: int) -> None:
        """Wakes the engine once no request comes after this one, so that those that come together start together."""
        if not rounds or time.monotonic() - self._gathering_since > _MOST_GATHERING:
            self._wake.set()
        elif request == self._requests:  # else it is for a later one to do
            asyncio.get_running_loop().call_soon(self._wake_when_quiet, request, rounds - 1)

    async def beside(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function that computes with the model, in a thread of its own, one call at a time.

        The engine goes on sampling, also while the function compiles.
        """

        def alone() -> T:
            with self._beside:
                return function(*arguments)

        return await asyncio.to_thread(alone)

    def waiting(self) -> int:
        """The number of texts that wait for a row."""
        return self._posted + sum(len(pool.waiting) for pool in list(self._pools.values()))

    def compiling(self) -> bool:
        """Whether programs are being compiled."""
        return not self._compiler.idle()

    def close(self) -> None:
        """Finishes the texts that have been asked for, and ends the threads."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._compiler.close()

    # ---- In the engine's thread ----

    def _enter(self, lm: LanguageModel, kind: Kind, ticket: Ticket, entries: list[Entry]) -> None:
        """Queues a request's texts in their pool."""
        key = (id(lm), kind)
        try:
            if key not in self._pools:
                self._pools[key] = Pool(lm, kind, entries[0], self._compiler, self._sizes)
            self._pools[key].waiting += entries
        except Exception as error:
            self._fail([ticket], error)
        finally:
            with self._lock:
                self._posted -= len(entries)

    def _run(self) -> None:
        give_way()
        while True:
            self._wake.clear()
            while self._inbox:
                self._inbox.popleft()()
            busy = False
            for key, pool in list(self._pools.items()):
                try:
                    busy |= not pool.idle and pool.turn()
                except Exception as error:
                    del self._pools[key]
                    self._fail({job.ticket for job in pool.jobs()}, error)
            self._tidy()
            if not busy and not self._inbox:
                if self._closing and all(pool.idle for pool in self._pools.values()):
                    return
                self._wake.wait()

    def _tidy(self) -> None:
        """Drops what is no longer needed."""
        idle = [key for key, pool in self._pools.items() if pool.idle]
        for key in idle:
            if self._pools[key].lm is not self.lm:  # of a checkpoint that has been replaced
                del self._pools[key]
        for key in idle[:-_IDLE_POOLS]:
            if key in self._pools:
                self._pools[key].release()

    def _fail(self, tickets: Iterable[Ticket], error: Exception) -> None:
        told = error if isinstance(error, UserError) else EngineError(f"{type(error).__name__}: {error}")
        for ticket in tickets:
            ticket.fail(told)


def _shared(method: Sampler) -> Sampler:
    """The sampler in the form that most others of its kind have, so that they share a batch. It picks the same."""
    if isinstance(method, Greedy):
        return Random(temperature=0.0)
    return method.as_random() if isinstance(method, TopK | TopP | MinP | Typical) else method


def _width(length: int, window: int) -> int:
    """The width in which a prompt runs through the model."""
    width = _LEAST_WIDTH
    while width < length:
        width *= _WIDTH_STEP
    return min(width, window)
