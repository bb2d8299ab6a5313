"""The storage of a study: a journal in the sweep's folder, or a database."""

from pathlib import Path

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend

from minigpt_jax import display

SECONDS_BETWEEN_WARNINGS = 10.0


def open_storage(folder: Path, address: str | None) -> optuna.storages.BaseStorage:
    """Opens the database at `address`, or the journal in `folder` if there is no address.

    If the password in the address is ***, it is left out. The database's driver then takes the password from the
    environment ($PGPASSWORD for PostgreSQL), so a recorded command, in which *** hides the password, can run again.
    """
    if address is not None:
        return optuna.storages.get_storage(address.replace(":***@", "@"))
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "study.journal"
    lock = _JournalLock(journal)
    lock.acquire()  # repairs the journal before it is read
    lock.release()
    return optuna.storages.JournalStorage(JournalFileBackend(str(journal), lock))  # pyright: ignore[reportArgumentType]


class _JournalLock:
    """A lock of the operating system, which is released when its worker dies. Optuna's own lock would remain.

    Acquiring the lock also removes an incomplete last line, which a worker that was killed while writing leaves.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = filelock.FileLock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        while True:
            try:
                self._lock.acquire(timeout=SECONDS_BETWEEN_WARNINGS)
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
    """Removes a last line without a newline. Optuna would append the next line to it, and could read neither."""
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
            display.warn(f"{journal}: its last line is incomplete, perhaps because a worker was killed; it is removed")
