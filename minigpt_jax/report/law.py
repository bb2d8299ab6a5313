"""A scaling law, L(N, D) = E + A / N^alpha + B / D^beta, fitted to the losses of trained models.

N is the number of parameters, D that of training tokens, and L the loss in nats per token. E is the loss that no model
goes below: by the law, the entropy of the text. The method is the third one of Hoffmann et al. (2022), with the
corrections of its replication (Besiroglu et al. 2024): the losses of the residuals are summed, not averaged, and the
optimiser runs until it converges; intervals come from fits to samples of the models with replacement.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize

from minigpt_jax.errors import UserError

LEAST_MODELS = 6
"""The law has five constants."""
_HUBER = 1e-3  # Hoffmann et al.'s: residuals of log L beyond it count in proportion, not as squares
_STARTS = 8  # optimisations, from the best points of the grid
_GRID = ((0.0, 5.0, 10.0, 15.0, 20.0), (0.0, 5.0, 10.0, 15.0, 20.0), (-2.0, -1.0, 0.0, 1.0), (0.3, 0.6, 1.0, 1.5))


class Law(NamedTuple):
    """The constants of L(N, D) = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The loss of models of so many parameters [M] after so many tokens [M]."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta


class Fitted(NamedTuple):
    """A fitted law, and for each constant the ends of its 95% bootstrap interval."""

    law: Law
    intervals: dict[str, tuple[float, float]]


def fit(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray, samples: int = 200, seed: int = 0) -> Fitted:
    """Fits the law to the losses of M models.

    Args:
        parameters, tokens, losses: N, D and L of each model [M].
        samples: fits to samples of the models, for the intervals.
        seed: that of the samples.

    Raises:
        UserError: there are fewer than six models, or all have the same number of parameters or tokens.
    """
    N, D = parameters, tokens
    if len(N) < LEAST_MODELS or len(set(N)) < 2 or len(set(D)) < 2:
        raise UserError(
            f"a scaling law has five constants: it needs {LEAST_MODELS} configurations or more, of several numbers of "
            f"parameters and of training tokens; there are {len(N)}, of {len(set(N))} and {len(set(D))}"
        )
    x = np.stack([np.log(N), np.log(D)])
    y = np.log(losses)
    starts = _best_starts(x, y)
    found = min((_descend(start, x, y) for start in starts), key=lambda result: result.cost)
    rng = np.random.default_rng(seed)
    laws = []
    while len(laws) < samples:
        taken = rng.integers(len(N), size=len(N))
        if len(set(N[taken])) > 1 and len(set(D[taken])) > 1:
            laws.append(_law(_descend(found.x, x[:, taken], y[taken]).x))
    ends = np.quantile(np.array(laws), (0.025, 0.975), axis=0)
    intervals = {name: (float(ends[0, i]), float(ends[1, i])) for i, name in enumerate(Law._fields)}
    return Fitted(_law(found.x), intervals)


def _law(constants: np.ndarray) -> Law:
    a, b, e, alpha, beta = (float(value) for value in constants)
    return Law(float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), alpha, beta)


def _log_terms(constants: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The logarithms of the law's three terms for each model [3 M]."""
    a, b, e, alpha, beta = constants
    return np.stack([a - alpha * x[0], b - beta * x[1], np.full(x.shape[1], e)])


def _residuals(constants: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The errors of log L [M]."""
    return np.logaddexp.reduce(_log_terms(constants, x)) - y


def _slopes(constants: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The derivatives of the residuals [M 5]."""
    terms = _log_terms(constants, x)
    shares = np.exp(terms - np.logaddexp.reduce(terms))  # of each term in the loss
    return np.stack([*shares, -shares[0] * x[0], -shares[1] * x[1]], axis=1)


def _best_starts(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    a, b, e, exponent = _GRID
    points = [np.array(point) for point in itertools.product(a, b, e, exponent, exponent)]
    return sorted(points, key=lambda point: float(np.abs(_residuals(point, x, y)).sum()))[:_STARTS]


def _descend(start: np.ndarray, x: np.ndarray, y: np.ndarray) -> scipy.optimize.OptimizeResult:
    """The nearest constants with the least sum of Huber losses of the residuals."""
    options: dict[str, Any] = {"jac": _slopes, "loss": "huber", "f_scale": _HUBER, "x_scale": "jac", "max_nfev": 3000}
    return scipy.optimize.least_squares(_residuals, start, ftol=1e-14, xtol=1e-12, gtol=1e-14, args=(x, y), **options)
