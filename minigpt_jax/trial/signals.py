"""Signals: before training they end the process at once, while training they finish the step and save."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
"""The exit status."""


@contextlib.contextmanager
def as_interrupts() -> Iterator[list[int]]:
    """Raises KeyboardInterrupt at the first signal, and ends the process at once at a second. Yields those received."""
    received: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt

    with _handled_by(interrupt):
        yield received


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects signals, so that the step is finished and saved, and nothing that is being saved is lost.

    A second one that is a Ctrl-C raises KeyboardInterrupt: no step is made and no save begun, but one that has begun is
    finished. All others change nothing.
    """
    received: list[int] = []
    interrupted: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if number == signal.SIGINT and len(received) > 1 and not interrupted:
            interrupted.append(number)
            _say("interrupted: finishing only the checkpoint that is being written, if any")
            raise KeyboardInterrupt
        if len(received) == 1:
            _say(f"{signal.Signals(number).name}: finishing the step and saving …")
        else:
            _say("still saving …")

    with _handled_by(note):
        yield received


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread, which is not ours
        yield
        return
    # nohup has its command ignore SIGHUP, and so it stays.
    numbers = [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _say(line: str) -> None:
    # Not by print: the signal may have come in the middle of another one.
    with contextlib.suppress(OSError):
        os.write(2, f"minigpt: {line}\n".encode())
