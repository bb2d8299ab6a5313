"""What every command that computes does first."""

import logging as python_logging
import os
import sys
from typing import Any


def prepare() -> None:
    """Keeps compiled programs from run to run, and what libraries log for their developers to themselves."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax  # not above: it takes seconds, and a wrong flag is told at once
    from absl import logging

    from minigpt_jax.cache import cache_dir

    # What matters of it is raised too, and told in one line.
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)
    sys.unraisablehook = _all_but_echoes
    jax.config.update("jax_enable_x64", False)  # results are those of a shell without JAX_ENABLE_X64
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _all_but_echoes(unraisable: Any) -> None:
    """Keeps to itself what Orbax's writers print, each on its own, after the failure of a save has been raised."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
