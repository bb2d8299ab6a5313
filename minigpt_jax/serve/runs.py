"""The models that are served. A run in training is served at its newest whole checkpoint."""

import contextlib
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minigpt_jax import display, generate
from minigpt_jax.config import nearest
from minigpt_jax.errors import UserError, reason_of
from minigpt_jax.serve.engine import Engine
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_dir import RunDir

POLL_SECONDS = 5.0
"""Seconds between two looks for a newer checkpoint."""
MOST_DOUBLINGS = 7
"""How often the time between two readings of a checkpoint that cannot be read doubles: up to 128 looks."""


class ModelNotFoundError(Exception):
    """No model of this name is served."""


@dataclass(frozen=True)
class Source:
    """Where a model is loaded from, as `generate.load` takes it."""

    run_dir: Path
    step: int | Literal["best"] | None = None
    trust_code: bool = False
    code: tuple[Path, ...] = ()

    def load(self) -> generate.LanguageModel:
        return generate.load(self.run_dir, self.step, trust_code=self.trust_code, code=self.code)

    def newest(self) -> int | None:
        """The step of the newest checkpoint."""
        with contextlib.closing(Checkpoints(RunDir(self.run_dir).checkpoints, read_only=True)) as checkpoints:
            return checkpoints.latest


class Runs:
    """The engines by their names.

    Args:
        engines: those to serve.
        sources: where the models were loaded from, by name; those whose step is None follow the run's training.
        poll_seconds: the time between two looks for a newer checkpoint.
    """

    def __init__(
        self,
        engines: Iterable[Engine],
        sources: dict[str, Source] | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.engines = {engine.name: engine for engine in engines}
        self.started = int(time.time())
        self._followed = {name: source for name, source in (sources or {}).items() if source.step is None}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(poll_seconds,), name="checkpoints", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, sources: Sequence[Source], max_new_tokens: int | None = None) -> "Runs":
        """Loads models and starts their engines. A model's name is that of its folder; a number makes it unique.

        Raises:
            UserError: as `generate.load` does.
        """
        loaded = [source.load() for source in sources]
        named: dict[str, Source] = {}
        engines = []
        for source, lm in zip(sources, loaded, strict=True):
            base = source.run_dir.resolve().name
            name = next(
                one for i in range(1, len(sources) + 1) if (one := base if i == 1 else f"{base}-{i}") not in named
            )
            named[name] = source
            engines.append(Engine(lm, name, max_new_tokens))
        return cls(engines, named)

    def engine(self, name: object) -> Engine:
        """The engine of a model. None stands for the model, if there is only one.

        Raises:
            ModelNotFoundError: there is no such model.
        """
        if name is None and len(self.engines) == 1:
            return next(iter(self.engines.values()))
        if not isinstance(name, str) or name not in self.engines:
            hint = nearest(name, self.engines) if isinstance(name, str) else ""
            known = ", ".join(self.engines)
            raise ModelNotFoundError(f"there is no model {name!r}{hint}; this server has {known}")
        return self.engines[name]

    def close(self) -> None:
        """Finishes what runs, and ends the threads."""
        self._stop.set()
        self._thread.join()
        for engine in self.engines.values():
            engine.close()

    def _follow(self, poll_seconds: float) -> None:
        tried: dict[str, tuple[int | None, int]] = {}  # the newest step that was read, and how many times
        looks = 0
        while not self._stop.wait(poll_seconds):
            looks += 1
            for name, source in self._followed.items():
                engine, (seen, times) = self.engines[name], tried.get(name, (None, 0))
                try:
                    newest = source.newest()
                    # One that cannot be read is damaged, or not all there yet: it is read again, ever more rarely.
                    if newest in (None, engine.step) or (newest == seen and looks % 2**times):
                        continue
                    tried[name] = newest, min(times + 1, MOST_DOUBLINGS) if newest == seen else 1
                    lm = source.load()
                    _ = lm.decode_form  # made here, as the event loop would stop for it
                    if lm.step != engine.step:
                        engine.lm = lm
                except Exception as error:  # whatever it is, newer checkpoints may come
                    reason = error if isinstance(error, UserError | OSError) else reason_of(error)
                    display.warn(f"{source.run_dir}: step {engine.step} stays in use, as a newer one failed: {reason}")
