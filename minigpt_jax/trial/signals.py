"""Signals: outside of training they end the process immediately, during training it finishes the step and saves."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
"""The exit status after a signal."""


@contextlib.contextmanager
def as_interrupts() -> Iterator[list[int]]:
    """Raises KeyboardInterrupt at the first signal, and ends the process at the second. Yields the list of signals."""
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
    """Collects signals, so that training can finish its step and save. Yields the list of the signals received.

    A Ctrl-C after another signal raises KeyboardInterrupt. Then no further step or save starts, but a save that has
    started is finished. Other signals after the first are ignored.
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
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return
    # nohup makes its command ignore SIGHUP, and a script its background jobs SIGINT; both must remain so.
    numbers = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _say(line: str) -> None:
    # Not by print, because the signal may have interrupted a print.
    with contextlib.suppress(OSError):
        os.write(2, f"minigpt: {line}\n".encode())
