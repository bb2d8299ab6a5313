"""The versions of the software that results depend on."""

import contextlib
import importlib.metadata
import platform

_PACKAGES = (
    *("minigpt-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("tokenizers", "sentencepiece"),  # pieces
    "tensorflow",  # the order of the rows
)


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that influence results."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
