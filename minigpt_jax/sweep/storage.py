"""Where a study lives: in a journal in the sweep's folder, or in a database."""

from pathlib import Path

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend

from minigpt_jax import display

SECONDS_BETWEEN_WORDS = 10.0


def open_storage(folder: Path, address: str | None) -> optuna.storages.BaseStorage:
    """The storage at an address, or a journal in `folder`.

    An address whose password is *** has none, so that a command which was kept without its password runs with the
    one that the database's driver finds, in $PGPASSWORD for PostgreSQL.
    """
    if address is not None:
        return optuna.storages.get_storage(address.replace(":***@", "@"))
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "study.journal"
    lock = _JournalLock(journal)
    lock.acquire()  # to mend the journal before it is read
    lock.release()
    return optuna.storages.JournalStorage(JournalFileBackend(str(journal), lock))  # pyright: ignore[reportArgumentType]


class _JournalLock:
    """The operating system's lock, which it frees when a worker dies, however that happens; Optuna's own stays behind.

    Who takes the lock also drops a line that a worker was killed in the middle of, before another is added to it.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = filelock.FileLock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        while True:
            try:
                self._lock.acquire(timeout=SECONDS_BETWEEN_WORDS)
            except filelock.Timeout:
                display.warn(f"waiting for {self._journal}, which another worker holds")
            else:
                break
        try:
            _drop_cut_line(self._journal)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _drop_cut_line(journal: Path) -> None:
    """Takes out a last line without its end; Optuna would add the next one to it, and could read neither."""
    with journal.open("ab+") as file:
        size = keep = file.tell()
        last = b""
        while keep and not last.endswith(b"\n"):
            start = max(0, keep - 4096)
            file.seek(start)
            last = file.read(keep - start)
            last = last[: last.rfind(b"\n") + 1]
            keep = start + len(last)
        if keep < size:
            file.truncate(keep)
            display.warn(f"{journal}: its last line is cut short, as a worker that is killed leaves it; it is dropped")
