"""The setup of JAX for commands that compute."""

import logging as python_logging
import os
import sys
from typing import Any


def prepare() -> None:
    """Caches compiled programs on disk, and silences what libraries log for their developers."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax
    from absl import logging

    from minigpt_jax.cache import keep_compiled_programs

    # Errors are also raised, and reported in one line.
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    sys.unraisablehook = _report_unraisable
    jax.config.update("jax_enable_x64", False)  # so that results do not depend on JAX_ENABLE_X64
    keep_compiled_programs()


def _report_unraisable(unraisable: Any) -> None:
    """Reports exceptions, except those of Orbax's writers after a failed save, which has been raised already."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
