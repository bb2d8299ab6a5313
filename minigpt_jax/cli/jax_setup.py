"""What every command that computes does first."""

import os


def prepare() -> None:
    """Keeps compiled programs from run to run, and what libraries log for their developers to themselves."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax  # not above: it takes seconds, and a wrong flag is told at once
    from absl import logging

    from minigpt_jax.run import cache_dir

    logging.set_verbosity(logging.ERROR)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
