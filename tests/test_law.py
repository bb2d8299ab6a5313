"""The fit of a scaling law, on losses made from known ones."""

import numpy as np
import pytest
import scipy.optimize

from minigpt_jax.errors import UserError
from minigpt_jax.report import law
from minigpt_jax.report.law import Law

LAWS = {
    "Hoffmann et al.": Law(1.69, 406.4, 410.7, 0.34, 0.28),
    "Besiroglu et al.": Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
    "small models": Law(0.42, 90.0, 3e4, 0.6, 0.8),
}


def models(of: Law, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grid of sizes and tokens, each with its loss, which varies by a factor of about 1 ± noise."""
    N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e4, 1e7, 7), np.geomspace(1e5, 1e8, 7)))
    return N, D, of.loss(N, D) * np.exp(noise * np.random.default_rng(seed).standard_normal(N.size))


@pytest.mark.parametrize("name", LAWS)
def test_the_constants_of_a_known_law_are_found(name: str):
    found = law.fit(*models(LAWS[name], noise=0.0), samples=2).law
    np.testing.assert_allclose(np.array(found), np.array(LAWS[name]), rtol=2e-3)


@pytest.mark.parametrize("name", LAWS)
def test_the_intervals_cover_a_known_law(name: str):
    """Intervals of 95% over the models miss a little more often, and the constants of a law miss together."""
    of, covered = LAWS[name], []
    for seed in range(6):
        fitted = law.fit(*models(of, noise=0.001, seed=seed), samples=40)
        covered += [low < getattr(of, field) < high for field, (low, high) in fitted.intervals.items()]
    assert len(covered) == 30
    assert sum(covered) >= 24


def test_an_outlier_hardly_counts():
    N, D, L = models(LAWS["small models"], noise=0.0)
    L[10] *= 1.5
    np.testing.assert_allclose(law.fit(N, D, L, samples=1).law.E, LAWS["small models"].E, rtol=0.02)


def test_the_slopes_are_those_of_the_residuals():
    N, D, L = models(LAWS["small models"], noise=0.01)
    x, y = np.log([N, D]), np.log(L)
    point = np.array([4.0, 9.0, -1.0, 0.5, 0.7])
    numeric = scipy.optimize.approx_fprime(point, law._residuals, 1e-7, x, y)
    np.testing.assert_allclose(law._slopes(point, x, y), np.asarray(numeric), atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "tokens"), [([1e4] * 8, [1e5, 1e6] * 4), ([1e4, 1e5] * 4, [1e6] * 8), ([1e4] * 3, [1e6] * 3)]
)
def test_too_few_models_are_told(sizes: list[float], tokens: list[float]):
    with pytest.raises(UserError, match="five constants: it needs 6 configurations"):
        law.fit(np.array(sizes), np.array(tokens), np.ones(len(sizes)))
