"""What every command that computes does first."""

import logging as python_logging
import os
import sys
from typing import Any


def prepare() -> None:
    """Keeps compiled programs from run to run, and keeps quiet what libraries log for their developers."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax
    from absl import logging

    from minigpt_jax.cache import keep_compiled_programs

    # What matters of it is raised too, and told in one line.
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    sys.unraisablehook = _all_but_echoes
    jax.config.update("jax_enable_x64", False)  # results are those of a shell without JAX_ENABLE_X64
    keep_compiled_programs()


def _all_but_echoes(unraisable: Any) -> None:
    """Keeps to itself what Orbax's writers print, each on its own, after the failure of a save has been raised."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
