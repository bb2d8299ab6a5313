"""What training carries from step to step: arrays in `TrainState`, the host's counts in `Progress`."""

from dataclasses import dataclass, field
from typing import Any

import flax.struct
from jaxtyping import Array, Int

from minigpt_jax.train.metrics import LossSums


@flax.struct.dataclass
class TrainState:
    """All that a step changes. `ema` is the moving average of `params`, or None without one."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    ema: Any

    @property
    def weights(self) -> Any:
        """The parameters to evaluate and to sample with."""
        return self.params if self.ema is None else self.ema


@dataclass
class Progress:
    """What the host counts along the way; it is saved with each checkpoint.

    Attributes:
        step: updates made.
        tokens: labels counted since the start.
        seconds: of training since the start, without evaluation, sampling and saving.
        since_log: sums over the steps since the last training line.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    since_log: LossSums = field(default_factory=LossSums)

    def count(self, sums: LossSums, seconds: float) -> None:
        """Adds one step with these sums."""
        self.step += 1
        self.seconds += seconds
        self.tokens += sums.tokens
        self.since_log = self.since_log.plus(sums)

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "since_log": self.since_log._asdict()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Progress":
        return cls(**{**value, "since_log": LossSums(**value["since_log"])})
