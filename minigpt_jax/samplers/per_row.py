"""A sampler whose settings differ by row, so that rows of several callers share a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from minigpt_jax.samplers import loop
from minigpt_jax.samplers.base import Sampler


def per_row(samplers: Sequence[Sampler]) -> Sampler:
    """One sampler that samples row i as `samplers[i]` does. All must have the same tree structure.

    Its leaves have the rows as their first axis, as those of a request and a state have, on the host.
    """
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *samplers)
    # The drivers of beam and contrastive search read settings row by row themselves.
    return PerRow(stacked) if stacked.driver is loop else stacked


@dataclass(frozen=True)
class PerRow(Sampler):
    """Picks by `method`, whose leaves have the rows as their first axis."""

    name: ClassVar[str] = "per row"
    driver: ClassVar[ModuleType] = loop
    method: Sampler = field()

    def pick(self, logits: Float[Array, "B V"], key: Key[Array, "B"]) -> Int[Array, "B"]:
        return jax.vmap(lambda method, logits, key: loop.picked(method, logits[None], key[None])[0])(
            self.method, logits, key
        )
