"""Leases: how the workers of a study know which of them are at work.

Each worker renews its lease at intervals. Because the clocks of machines differ, a lease has expired once this process
has seen it unchanged for its length; on the same machine, as soon as its time is over.
"""

import threading
import time
from typing import Any

import optuna

LEASE_SECONDS = 60.0
_PREFIX = "lease of "
_MOST_CLOCK_DIFFERENCE = 600.0
"""The seconds by which the clocks of two machines may differ."""


class Leases:
    """The leases of a study's workers. Within a `with` block a thread renews this worker's own, which ends at the exit.

    Args:
        study: stores the leases.
        worker: this worker's name, which begins with that of its host.
        seconds: the time after which this worker loses its configurations, if it has not renewed its lease.
    """

    def __init__(self, study: optuna.Study, worker: str, seconds: float) -> None:
        self._study, self._worker, self.seconds = study, worker, seconds
        self._seen: dict[str, tuple[float, float]] = {}
        """When each worker's lease ends, as last seen, and when it was first seen so, by this process's own clock."""
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Leases":
        self.renew()
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._heart.join()
        self._store(0.0)

    def active(self) -> int:
        """The number of workers whose lease has not expired, including this one."""
        leases = {n.removeprefix(_PREFIX): v for n, v in self._study.user_attrs.items() if n.startswith(_PREFIX)}
        return max(1, sum(not self._is_over(worker, lease) for worker, lease in leases.items()))

    def has_expired(self, worker: str) -> bool:
        """Whether a worker has left, or has not renewed its lease in time."""
        return self._is_over(worker, self._study.user_attrs.get(_PREFIX + worker, 0.0))

    def _is_over(self, worker: str, lease: Any) -> bool:
        # When it ends by that worker's clock, and its length. Earlier versions stored the end alone; 0 means left.
        until, seconds = lease if isinstance(lease, list) else (lease, self.seconds)
        same_clock = _host(worker) == _host(self._worker)
        if until < time.time() - (0 if same_clock else _MOST_CLOCK_DIFFERENCE):
            return True
        if self._seen.get(worker, (None, 0.0))[0] != until:
            self._seen[worker] = until, time.monotonic()
        return time.monotonic() - self._seen[worker][1] > seconds

    def renew(self) -> None:
        """Makes this worker's lease last for its length from now."""
        self._store([time.time() + self.seconds, self.seconds])

    def _store(self, lease: Any) -> None:
        self._study.set_user_attr(_PREFIX + self._worker, lease)

    def _beat(self) -> None:
        while not self._stop.wait(self.seconds / 4):
            try:
                self.renew()
            except Exception:  # the database may be unavailable for a moment; the next renewal may reach it
                continue


def _host(worker: str) -> str:
    return worker.rpartition("-")[0]
