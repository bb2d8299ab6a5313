"""Whether draws follow a distribution: Pearson's chi-square test."""

from typing import Any

import numpy as np


def follows(counts: Any, probabilities: Any) -> bool:
    """Impossible outcomes never came, and the statistic is below its 99.99% quantile (by Wilson and Hilferty).

    Raises AssertionError if there are too few draws for the test.
    """
    counts, expected = np.asarray(counts, np.float64), np.asarray(probabilities) * np.sum(counts)
    impossible = expected == 0
    assert expected[~impossible].min() > 5, "too few draws for the test"
    freedom = np.sum(~impossible) - 1
    statistic = np.sum((counts - expected)[~impossible] ** 2 / expected[~impossible])
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))) ** 3 if freedom else 0.0
    return bool(counts[impossible].sum() == 0 and statistic <= quantile)
