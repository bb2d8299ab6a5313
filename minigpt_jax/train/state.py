"""The state of training: arrays on the devices in `TrainState`, and counts on the host in `Progress`."""

from dataclasses import dataclass, field
from typing import Any

import flax.struct
from jaxtyping import Array, Int

from minigpt_jax.train.metrics import LossSums


@flax.struct.dataclass
class TrainState:
    """The arrays that a train step updates. `ema` is the moving average of `params`, or None if none is kept."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    ema: Any

    @property
    def weights(self) -> Any:
        """The parameters for evaluation and sampling: the moving average if there is one, else `params`."""
        return self.params if self.ema is None else self.ema


@dataclass
class Progress:
    """The counts of a trial, which are saved with each checkpoint.

    Attributes:
        step: the number of updates.
        tokens: the number of labels counted since the start.
        seconds: the training time since the start, compilation included, without evaluation, sampling and saving.
        since_log: the sums over the steps since the last training line.
        seconds_since_log: the training time of these steps.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    since_log: LossSums = field(default_factory=LossSums)
    seconds_since_log: float = 0.0

    def count(self, sums: LossSums, seconds: float) -> None:
        """Adds one step with these sums, which took `seconds`."""
        self.step += 1
        self.seconds += seconds
        self.seconds_since_log += seconds
        self.tokens += sums.tokens
        self.since_log = self.since_log.plus(sums)

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "since_log": self.since_log._asdict()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Progress":
        return cls(**{**value, "since_log": LossSums(**value["since_log"])})
