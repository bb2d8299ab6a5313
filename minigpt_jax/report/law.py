"""Scaling laws, such as L(N, D) = E + A / N^alpha + B / D^beta, fitted to the losses of trained models.

N is the number of parameters, D that of training tokens, and L the loss in nats per token. E is the loss that no model
goes below: by the law, the entropy of the text. The method is the third one of Hoffmann et al. (2022), with the
corrections of its replication (Besiroglu et al. 2024): the losses of the residuals are summed, not averaged, and the
optimiser runs until it converges; intervals come from fits to samples of the models with replacement.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from minigpt_jax.errors import UserError

_HUBER = 1e-3  # Hoffmann et al.'s: residuals of log L beyond it count in proportion, not as squares
_STARTS = 8  # optimisations, from the best points of the grid
_SCALES, _FLOORS, _EXPONENTS = (0.0, 5.0, 10.0, 15.0, 20.0), (-2.0, -1.0, 0.0, 1.0), (0.3, 0.6, 1.0, 1.5)


class Form(NamedTuple):
    """A form of law: a loss as a function of N and D with some constants.

    Attributes:
        formula: the law, for people.
        constants: their names. Of a constant in upper case, the optimiser sees the logarithm.
        log_loss: the logarithms of the losses [M], given the constants as the optimiser sees them and log N and log D
            [2 M].
        grid: the values of each constant from which the optimiser may start.
    """

    formula: str
    constants: tuple[str, ...]
    log_loss: Callable[[np.ndarray, np.ndarray], np.ndarray]
    grid: tuple[tuple[float, ...], ...]

    def values(self, seen: np.ndarray) -> dict[str, float]:
        """The constants, given them as the optimiser sees them."""
        named = zip(self.constants, seen, strict=True)
        return {name: float(np.exp(value) if name.isupper() else value) for name, value in named}

    def loss(self, values: dict[str, float], parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The loss of models of so many parameters [M] after so many tokens [M]."""
        seen = np.array([np.log(value) if name.isupper() else value for name, value in values.items()])
        return np.exp(self.log_loss(seen, np.log([parameters, tokens])))


def _sum(seen: np.ndarray, x: np.ndarray) -> np.ndarray:
    e, a, b, alpha, beta = seen
    return np.logaddexp(e, np.logaddexp(a - alpha * x[0], b - beta * x[1]))


def _without_floor(seen: np.ndarray, x: np.ndarray) -> np.ndarray:
    a, b, alpha, beta = seen
    return np.logaddexp(a - alpha * x[0], b - beta * x[1])


def _joint(seen: np.ndarray, x: np.ndarray) -> np.ndarray:
    e, a, b, alpha, beta = seen
    return np.logaddexp(e, beta * np.logaddexp((a - alpha * x[0]) / beta, b - x[1]))


def _power_of_sum(seen: np.ndarray, x: np.ndarray) -> np.ndarray:
    e, a, b, alpha, beta, gamma = seen
    return np.logaddexp(e, gamma * np.logaddexp(a - alpha * x[0], b - beta * x[1]))


HOFFMANN = Form(
    "E + A / N^alpha + B / D^beta",
    ("E", "A", "B", "alpha", "beta"),
    _sum,
    (_FLOORS, _SCALES, _SCALES, _EXPONENTS, _EXPONENTS),
)
"""Hoffmann et al. (2022)."""
OTHERS = {
    "no floor": Form(
        "A / N^alpha + B / D^beta",
        ("A", "B", "alpha", "beta"),
        _without_floor,
        (_SCALES, _SCALES, _EXPONENTS, _EXPONENTS),
    ),
    "Kaplan et al. (2020) with a floor": Form(
        "E + ((A / N^alpha)^(1/beta) + B / D)^beta",
        ("E", "A", "B", "alpha", "beta"),
        _joint,
        (_FLOORS, _SCALES, _SCALES, _EXPONENTS, _EXPONENTS),
    ),
    "power of the sum": Form(
        "E + (A / N^alpha + B / D^beta)^gamma",
        ("E", "A", "B", "alpha", "beta", "gamma"),
        _power_of_sum,
        (_FLOORS, _SCALES, _SCALES, _EXPONENTS, _EXPONENTS, (0.5, 1.0, 2.0)),
    ),
}
"""Forms that are compared with Hoffmann et al.'s, by their names."""


class Fitted(NamedTuple):
    """A fitted law: its constants, and for each the ends of its 95% bootstrap interval."""

    form: Form
    constants: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    def loss(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The loss, by the law, of models of so many parameters [M] after so many tokens [M]."""
        return self.form.loss(self.constants, parameters, tokens)


def fit(
    parameters: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    samples: int = 200,
    seed: int = 0,
    form: Form = HOFFMANN,
) -> Fitted:
    """Fits a law to the losses of M models.

    Args:
        parameters, tokens, losses: N, D and L of each model [M].
        samples: fits to samples of the models, for the intervals; none if 0.
        seed: that of the samples.
        form: the law's.

    Raises:
        UserError: there are no more models than constants, or all have the same number of parameters or tokens.
    """
    N, D = parameters, tokens
    if not enough(N, D, form):
        constants = len(form.constants)
        raise UserError(
            f"a scaling law with {constants} constants needs {constants + 1} configurations or more, of several "
            f"numbers of parameters and of training tokens; there are {len(N)}, of {len(set(N))} and {len(set(D))}"
        )
    x, y = np.log([N, D]), np.log(losses)
    found = min((_descend(form, start, x, y) for start in _best_starts(form, x, y)), key=lambda result: result.cost)
    rng = np.random.default_rng(seed)
    resampled = []
    while len(resampled) < samples:
        taken = rng.integers(len(N), size=len(N))
        if len(set(N[taken])) > 1 and len(set(D[taken])) > 1:
            resampled.append(list(form.values(_descend(form, found.x, x[:, taken], y[taken], 1e-7).x).values()))
    ends = np.quantile(np.array(resampled), (0.025, 0.975), axis=0).T.tolist() if samples else []
    return Fitted(form, form.values(found.x), dict(zip(form.constants, map(tuple, ends), strict=False)))


def enough(parameters: np.ndarray, tokens: np.ndarray, form: Form = HOFFMANN) -> bool:
    """Whether there are more models than the law has constants, of several sizes and several numbers of tokens."""
    return len(parameters) > len(form.constants) and len(set(parameters)) > 1 and len(set(tokens)) > 1


def _best_starts(form: Form, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    points = [np.array(point) for point in itertools.product(*form.grid)]
    return sorted(points, key=lambda point: float(np.abs(form.log_loss(point, x) - y).sum()))[:_STARTS]


def _descend(
    form: Form, start: np.ndarray, x: np.ndarray, y: np.ndarray, tolerance: float = 1e-11
) -> scipy.optimize.OptimizeResult:
    """The nearest constants with the least sum of Huber losses of the errors of log L."""
    options: dict[str, Any] = {"loss": "huber", "f_scale": _HUBER, "x_scale": "jac", "jac": "3-point"}
    options |= {"ftol": tolerance, "xtol": tolerance, "gtol": tolerance, "max_nfev": 1000}
    return scipy.optimize.least_squares(lambda seen: form.log_loss(seen, x) - y, start, **options)
