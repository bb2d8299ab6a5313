"""Which threads go first where cores are few."""

import contextlib
import os
import sys
import threading

_NICENESS = 5


def give_way() -> None:
    """Lets the threads that compute go before this one, which parses or decodes.

    A step of the model waits for the slowest of its threads, so each time that one of them has to wait for a core, all
    do. Only Linux has priorities of threads; elsewhere this does nothing.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            niceness = max(os.getpriority(os.PRIO_PROCESS, thread), _NICENESS)
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
