"""The machine that a process started by a test sees."""

import os
import re


def environment(devices: int) -> dict[str, str]:
    """This process's environment with that many devices, and with XLA's other flags, which make compilation quick."""
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags}
