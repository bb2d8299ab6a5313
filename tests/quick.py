"""Quick compilation, for tests that compile many programs and run each but once or twice."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def optimisations(on: bool) -> Iterator[None]:
    """Whether XLA takes its time over the programs compiled meanwhile; without, it takes two thirds of it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not on)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
