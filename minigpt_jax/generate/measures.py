"""What sampling is judged by: measures of a set of texts, each a sequence of token ids.

The measures follow Holtzman et al. (2020, "The Curious Case of Neural Text Degeneration", table 1), Li et al. (2016,
distinct-n), Zhu et al. (2018, Self-BLEU) and Pillutla et al. (2021, MAUVE). They count tokens, so only texts of the
same tokenizer can be compared. The good value of a measure is the one that human text has.
"""

import contextlib
import importlib.util
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minigpt_jax.errors import UserError

Text = Sequence[int]
ZIPF_RANKS = 5000
"""Zipf's law is fitted to this many of the most frequent tokens, as by Holtzman et al."""
RESAMPLES = 200
"""Bootstrap samples of an interval."""
CONFIDENCE = 0.95
MAUVE_LEAST = 20
"""The least number of texts for MAUVE, which groups them into a tenth as many clusters."""
_BLEU_ORDER = 4
_MAUVE_CURVE = np.linspace(1e-6, 1 - 1e-6, 25)  # the mixtures and the scale that mauve-text takes by default
_MAUVE_SCALE = 5.0


def zipf(counts_V: np.ndarray) -> float:
    """The Zipf coefficient: minus the slope of log frequency against log rank, by least squares.

    >>> round(zipf(np.array([1200, 600, 400, 300, 240])), 6)  # the frequency is proportional to 1 / rank
    1.0
    """
    ordered = np.sort(counts_V[counts_V > 0])[::-1][:ZIPF_RANKS]
    if len(ordered) < 2:
        return math.nan
    return -float(np.polyfit(np.log(np.arange(1, len(ordered) + 1)), np.log(ordered), 1)[0])


def ends_in_repetition(text: Text) -> bool:
    """Whether the text ends in a phrase of three or more tokens that stands there at least twice in a row.

    >>> ends_in_repetition([9, 1, 2, 3, 1, 2, 3]), ends_in_repetition([1, 2, 3, 1, 2, 3, 9])
    (True, False)
    """
    text = list(text)
    return any(text[-size:] == text[-2 * size : -size] for size in range(3, len(text) // 2 + 1))


def ngrams(text: Text, size: int) -> Counter[tuple[int, ...]]:
    """The n-grams of a text with their counts."""
    return Counter(zip(*(text[i:] for i in range(size)), strict=False))


def self_bleu(texts: Sequence[Text]) -> np.ndarray:
    """BLEU-4 of each text with all the other texts as its references, from 0 to 1. High values mean little diversity.

    A precision without a match is smoothed, and orders that a short text lacks are left out, as by sacreBLEU's
    `sentence_bleu` (`smooth_method="exp"`, `effective_order=True`).

    Instead of comparing all pairs, it keeps for each n-gram the two highest counts among the texts: the reference count
    of an n-gram is the highest one in another text.
    """
    lengths = np.array([len(text) for text in texts])
    matched, possible = np.zeros((2, len(texts), _BLEU_ORDER), np.int64)
    for order in range(_BLEU_ORDER):
        counts = [ngrams(text, order + 1) for text in texts]
        first: dict[tuple[int, ...], tuple[int, int]] = {}
        second: dict[tuple[int, ...], int] = {}
        for i, counted in enumerate(counts):
            for ngram, count in counted.items():
                best, _ = first.get(ngram, (0, -1))
                if count > best:
                    first[ngram], second[ngram] = (count, i), best
                else:
                    second[ngram] = max(second[ngram], count)
        for i, counted in enumerate(counts):
            for ngram, count in counted.items():
                best, owner = first[ngram]
                matched[i, order] += min(count, second[ngram] if owner == i else best)
        possible[:, order] = np.maximum(lengths - order, 0)
    return np.array([_bleu(*row, lengths, i) for i, row in enumerate(zip(matched, possible, strict=True))])


def _bleu(matched: np.ndarray, possible: np.ndarray, lengths: np.ndarray, i: int) -> float:
    if not matched.any():
        return 0.0
    logs, smoothing = [], 1.0
    for match, total in zip(matched, possible, strict=True):
        if not total:
            break
        if not match:
            smoothing *= 2
        logs.append(math.log(match / total if match else 1 / (smoothing * total)))
    others = np.delete(lengths, i)
    distance = np.abs(others - lengths[i])
    reference = int(others[distance == distance.min()].min())
    penalty = min(0.0, 1 - reference / lengths[i])
    return math.exp(penalty + math.fsum(logs) / len(logs))


def check_installed() -> None:
    """Raises UserError if the package that computes MAUVE is not installed."""
    if importlib.util.find_spec("mauve") is None:
        raise UserError("comparing methods with human text needs mauve-text; pip install 'minigpt_jax[mauve]'")


class Clusters:
    """The clusters that the features of two sets of texts fall into, from which MAUVE is computed.

    Args:
        features: [texts, width] the features of the texts to be judged.
        human: [texts, width] those of human texts.

    Attributes:
        mauve: how similar the two distributions over the clusters are, from 0 to 1.

    Raises:
        UserError: the package mauve-text is not installed.
    """

    def __init__(self, features: np.ndarray, human: np.ndarray) -> None:
        check_installed()
        import mauve

        self._module: Any = sys.modules["mauve.compute_mauve"]  # the package has a function of the same name
        with _quiet():
            found = mauve.compute_mauve(p_features=features, q_features=human, kmeans_num_redo=3, seed=0)
        self.mauve, self._shares = float(found.mauve), (found.p_hist, found.q_hist)

    def resampled(self, texts: int, rng: np.random.Generator) -> float:
        """MAUVE of a bootstrap sample of the texts, with the same clusters."""
        ours, human = (rng.multinomial(texts, shares) / texts for shares in self._shares)
        curve = self._module.get_divergence_curve_for_multinomials(ours, human, _MAUVE_CURVE, _MAUVE_SCALE)
        area, (x, y) = self._module.compute_area_under_curve, curve.T
        by_x, by_y = np.argsort(x), np.argsort(y)
        return 0.5 * float(area(x[by_x], y[by_x]) + area(y[by_y], x[by_y]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what C++ code prints on standard error: faiss advises more texts per cluster than mauve-text takes."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def interval(value: float, resampled: Callable[[np.random.Generator], float]) -> tuple[float, float]:
    """A bootstrap confidence interval of a measure.

    A sample with replacement has texts twice, which makes it look less diverse than the set that it is drawn from. So
    the interval is centred: the bias of the samples' mean is subtracted.

    Args:
        value: the measure of the whole set.
        resampled: gives the measure of one sample of texts.
    """
    rng = np.random.default_rng(0)
    found = np.array([resampled(rng) for _ in range(RESAMPLES)])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail]) - found.mean() + value
    return float(low), float(high)


def repeated_ngrams(tokens: Text, size: int = 4) -> float:
    """The fraction of a text's n-grams that repeat an earlier one (rep-n of Welleck et al. 2020).

    >>> repeated_ngrams([1, 2, 1, 2, 1], size=2)  # two of the four pairs repeat earlier ones
    0.5
    """
    total = len(tokens) - size + 1
    return 1 - len(_ngrams(tokens, size)) / total if total > 0 else 0.0


def distinct_ngrams(tokens: Text, size: int = 2) -> float:
    """The fraction of distinct n-grams among all (distinct-n of Li et al. 2016), or 1 if there are none."""
    return 1 - repeated_ngrams(tokens, size)


def _ngrams(tokens: Text, size: int) -> set[tuple[int, ...]]:
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
