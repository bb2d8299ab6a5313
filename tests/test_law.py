"""The fit of a scaling law, on losses made from known ones."""

import numpy as np
import pytest

from minigpt_jax.errors import UserError
from minigpt_jax.report import law

LAWS = {
    "Hoffmann et al.": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "Besiroglu et al.": {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    "small models": {"E": 0.42, "A": 90.0, "B": 3e4, "alpha": 0.6, "beta": 0.8},
}


def grid() -> tuple[np.ndarray, np.ndarray]:
    """A grid of sizes and tokens."""
    sizes, tokens = np.meshgrid(np.geomspace(1e4, 1e7, 7), np.geomspace(1e5, 1e8, 7))
    return sizes.ravel(), tokens.ravel()


def models(of: dict[str, float], noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes and tokens, and for each a loss by the law, which varies by a factor of about 1 ± noise."""
    N, D = grid()
    losses = of["E"] + of["A"] / N ** of["alpha"] + of["B"] / D ** of["beta"]
    return N, D, losses * np.exp(noise * np.random.default_rng(seed).standard_normal(N.size))


@pytest.mark.parametrize("name", LAWS)
def test_the_constants_of_a_known_law_are_found(name: str):
    found = law.fit(*models(LAWS[name], noise=0.0), samples=0).constants
    assert found == pytest.approx(LAWS[name], rel=2e-3)


OTHER_LAWS = {
    "no floor": lambda N, D: 90 / N**0.4 + 3e3 / D**0.5,
    "Kaplan et al. (2020) with a floor": lambda N, D: 0.5 + ((40 / N**0.4) ** (1 / 0.5) + 4e3 / D) ** 0.5,
    "power of the sum": lambda N, D: 0.5 + (90 / N**0.5 + 3e3 / D**0.6) ** 0.7,
}


@pytest.mark.parametrize("name", law.OTHERS)
def test_other_forms_are_what_their_names_say(name: str):
    """Their constants may trade for each other, but a fit goes through losses of the form."""
    N, D = grid()
    losses = OTHER_LAWS[name](N, D)
    fitted = law.fit(N, D, losses, samples=0, form=law.OTHERS[name])
    np.testing.assert_allclose(fitted.loss(N, D), losses, rtol=2e-3)
    assert ("E" in fitted.constants) == (name != "no floor")
    if "E" in fitted.constants:
        assert fitted.constants["E"] == pytest.approx(0.5, rel=0.02)


def test_a_form_of_six_constants_needs_seven_models():
    N, D = grid()
    some = [0, 1, 2, 8, 9, 10]
    assert law.enough(N[some], D[some])
    assert not law.enough(N[some], D[some], law.OTHERS["power of the sum"])


@pytest.mark.parametrize("name", LAWS)
def test_the_intervals_cover_a_known_law(name: str):
    """Intervals of 95% over the models miss a little more often, and the constants of a law miss together."""
    of, covered = LAWS[name], []
    for seed in range(6):
        fitted = law.fit(*models(of, noise=0.001, seed=seed), samples=40)
        covered += [low < of[field] < high for field, (low, high) in fitted.intervals.items()]
    assert len(covered) == 30
    assert sum(covered) >= 24


def test_an_outlier_hardly_counts():
    N, D, L = models(LAWS["small models"], noise=0.0)
    L[10] *= 1.5
    assert law.fit(N, D, L, samples=0).constants["E"] == pytest.approx(LAWS["small models"]["E"], rel=0.02)


@pytest.mark.parametrize(
    ("sizes", "tokens"), [([1e4] * 8, [1e5, 1e6] * 4), ([1e4, 1e5] * 4, [1e6] * 8), ([1e4] * 3, [1e6] * 3)]
)
def test_too_few_models_are_told(sizes: list[float], tokens: list[float]):
    with pytest.raises(UserError, match="5 constants needs 6 configurations"):
        law.fit(np.array(sizes), np.array(tokens), np.ones(len(sizes)))
