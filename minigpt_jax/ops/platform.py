"""The platform that programs are written for.

Some functions have one form for CPUs and another for accelerators. They all ask `on_cpu`, which answers for the devices
that JAX computes on, unless a program is traced for another platform with `traced_for`.
"""

import contextlib

import jax

# Part of the key of JAX's caches, so that a function that was traced for one platform is traced anew for another.
_asked_for = jax.make_user_context(None)


def traced_for(platform: str) -> contextlib.AbstractContextManager[None]:
    """Within this context, functions take the form of `platform`: "cpu", "cuda", "rocm" or "tpu".

    A program that is traced this way is meant for lowering
    (`jax.jit(f).trace(…).lower(lowering_platforms=(platform,))`). On another platform it runs slowly, if at all.

    >>> with traced_for("cuda"):
    ...     on_cpu()
    False
    """
    return _asked_for(platform)


def on_cpu() -> bool:
    """Whether programs are written for a CPU: the platform of `traced_for`, or else that of JAX's default devices."""
    return (_asked_for.value or jax.default_backend()) == "cpu"
