"""Ways of sampling side by side over many prompts, measured beside human text.

Which method is good cannot be told from one text, nor from perplexity alone: greedy search has the lowest, and repeats
itself. So each method continues many prefixes of held-out text, and is judged by how near its measures come to those of
the human continuations (Holtzman et al. 2020); see `measures`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minigpt_jax import display
from minigpt_jax.errors import UserError
from minigpt_jax.generate import measures
from minigpt_jax.generate.held_out import HeldOut
from minigpt_jax.generate.methods import Method, as_sampler, label_of, parse, settings_in
from minigpt_jax.generate.programs import judge
from minigpt_jax.generate.settings import GenerationSettings
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import Sampler
from minigpt_jax.samplers.buckets import row_bucket

if TYPE_CHECKING:
    from minigpt_jax.generate.language_model import LanguageModel

HUMAN = "human"
MEASURES = (
    "perplexity",
    "zipf",
    "self_bleu",
    "repetition",
    "repeated_4grams",
    "distinct_1",
    "distinct_2",
    "distinct_3",
    "mauve",
    "length",
)
"""The measures of a set of texts, all of which have an interval and count for the distance from human text."""
CHUNK = 64
"""Texts that are sampled or measured at once."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The measures of a method's texts, or of the human ones. A measure that cannot be computed is NaN.

    Attributes:
        method: the method as a METHOD, or "human".
        perplexity: of the texts under the model, exp(total nats / total tokens).
        zipf: the Zipf coefficient of the tokens.
        self_bleu: the mean of each text's BLEU-4 against all the others.
        repetition: the fraction of texts that end in a repeated phrase.
        repeated_4grams: the mean fraction of a text's 4-grams that repeat an earlier one of the text.
        distinct_1: the number of distinct tokens divided by that of all tokens, over all texts; so for pairs and
            triples in `distinct_2` and `distinct_3`.
        mauve: similarity of the distribution of the texts to that of the human ones, from 0 to 1.
        tokens_per_second: new tokens per second of sampling, without compilation; None for human texts.
        length: the mean number of tokens of a text, up to its document's end or the limit.
        distance: how far the measures are from those of human text: the mean, over the measures, of the difference
            divided by that of the method which differs most. 0 is human; None if there is no human text.
        intervals: for each measure the ends of its bootstrap confidence interval.
        settings: the settings of the method by name.
        sampler: the name of the method without its settings.
        texts: the full texts, prefix included.
    """

    method: str
    perplexity: float
    zipf: float
    self_bleu: float
    repetition: float
    repeated_4grams: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    mauve: float
    tokens_per_second: float | None
    length: float
    distance: float | None
    intervals: dict[str, tuple[float, float]]
    sampler: str
    settings: dict[str, Any]
    texts: list[str]


def compare(
    lm: "LanguageModel",
    methods: Iterable[Sampler | str | Method],
    prompts: Iterable[str | HeldOut],
    max_new_tokens: int = 96,
    seed: int = 0,
    progress: bool = False,
) -> list[Verdict]:
    """The measures of each method's continuations of the prompts, and first those of the human ones.

    Args:
        lm: the model.
        methods: samplers or METHODs. One with several values, such as "top_k:k=1,5,10", stands for several methods.
        prompts: texts, or prefixes of held-out text with their human continuations. All must be of one kind. With
            texts there is no human row, and no MAUVE and no distance.
        max_new_tokens: the most tokens of a continuation. It also ends where the model ends the document.
        progress: whether to show a progress bar.

    Raises:
        UserError: a method or a setting is not allowed, there are too few prompts, or mauve-text is missing.
    """
    chosen = methods_of(methods)
    check_methods(chosen, len(lm.tokenizer))
    found = list(prompts)
    if len(found) < 2:
        raise UserError(f"compare measures the diversity of many texts, and there are {len(found)}; give more prompts")
    human = [one for one in found if isinstance(one, HeldOut)]
    if human and len(human) != len(found):
        raise UserError("prompts: some are texts and some are held-out pieces; give all of one kind")
    prefixes = [one.prefix for one in human] or lm.tokenizer.encode_batch([str(one) for one in found])
    check = GenerationSettings(max_new_tokens=max_new_tokens, seed=seed, stop=list(lm.end_ids))
    texts_of = functools.partial(_Texts, lm, prefixes)
    judged: list[tuple[Method | None, _Texts]] = []
    if human:
        judged.append((None, texts_of([one.continuation for one in human])))
    for method in chosen:
        watch = display.Stopwatch()
        with watch:
            made = _sample(lm, method.sampler, prefixes, check)
            if progress:
                made = display.track(made, method.label, len(prefixes), unit="texts")
            tokens = [generation.tokens for generation in made]
        judged.append((method, texts_of(tokens, watch.seconds)))
    reference = judged[0][1] if human else None
    return _with_distances([texts.verdict(method, reference) for method, texts in judged])


def nearest(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The method whose measures are nearest to those of human text, or None if there is no human text."""
    known = [one for one in verdicts if one.distance is not None and one.method != HUMAN]
    return min(known, key=lambda one: one.distance or 0.0, default=None)


def methods_of(methods: Iterable[Sampler | str | Method]) -> list[Method]:
    """The methods that are given. Raises UserError if there are none, if one is wrong, or if one is given twice."""
    found: list[Method] = []
    for one in [methods] if isinstance(methods, str | Sampler) else methods:
        if isinstance(one, Method):
            found.append(one)
        elif isinstance(one, str):
            found += parse(one, flag="METHOD")
        else:
            found.append(Method(label_of(as_sampler(one)), one))
    if not found:
        raise UserError("compare needs a method; give one or more, such as greedy or top_p:p=0.9")
    labels = [one.label for one in found]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"{twice[0]} is given twice; give each method once")
    return found


def check_methods(methods: Iterable[Method], vocabulary_size: int) -> None:
    """Raises UserError for a method with a setting that is out of bounds, for this number of tokens."""
    for method in methods:
        try:
            method.sampler.validate(vocabulary_size)
        except UserError as error:
            raise UserError(f"METHOD {method.label}: {str(error).removeprefix('--')}") from error


def _sample(lm: "LanguageModel", sampler: Sampler, prefixes: Sequence[list[int]], settings: Any) -> Iterator[Any]:
    for start in range(0, len(prefixes), CHUNK):
        part = prefixes[start : start + CHUNK]
        yield from lm.generate(part, sampler, settings=settings, row_ids=range(start, start + len(part)))


class _Texts:
    """The continuations of all prefixes by one method, and what its measures are computed from."""

    def __init__(
        self,
        lm: "LanguageModel",
        prefixes: Sequence[list[int]],
        continuations: Sequence[list[int]],
        seconds: float | None = None,
    ) -> None:
        self.lm, self.prefixes, self.seconds = lm, prefixes, seconds
        self.counts = np.array([len(tokens) for tokens in continuations])
        self.nats, self.features = _judge(lm, prefixes, continuations)
        self.tokens = [tokens[:-1] if tokens and tokens[-1] in lm.end_ids else tokens for tokens in continuations]

    def verdict(self, method: Method | None, human: "_Texts | None") -> Verdict:
        """All measures with their intervals."""
        values, intervals = {}, {}
        for name, (value, resampled) in self._measures(human).items():
            values[name] = value
            low, high = (value, value) if math.isnan(value) else measures.interval(value, resampled)
            intervals[name] = (max(low, 0.0), min(high, 1.0) if name in _SHARES else high)
        decode = self.lm.tokenizer.decode
        sampler = None if method is None else method.sampler
        return Verdict(
            method=HUMAN if method is None else method.label,
            tokens_per_second=None if self.seconds is None else int(self.counts.sum()) / self.seconds,
            distance=None,
            intervals=intervals,
            sampler=HUMAN if sampler is None else sampler.name,
            settings={} if sampler is None else settings_in(sampler),
            texts=[decode([*prefix, *tokens]) for prefix, tokens in zip(self.prefixes, self.tokens, strict=True)],
            **values,
        )

    def _measures(self, human: "_Texts | None") -> dict[str, tuple[float, Callable[[np.random.Generator], float]]]:
        """Each measure of these texts, and a function that gives that of a sample of them with replacement."""
        number = len(self.tokens)
        weights = lambda rng: np.bincount(rng.integers(number, size=number), minlength=number)  # noqa: E731
        bleu = measures.self_bleu(self.tokens)
        means = {
            "self_bleu": bleu,
            "repetition": np.array([measures.ends_in_repetition(tokens) for tokens in self.tokens], float),
            "repeated_4grams": np.array([measures.repeated_ngrams(tokens, 4) for tokens in self.tokens]),
            "length": np.array([len(tokens) for tokens in self.tokens], float),
        }
        of_weights: dict[str, Callable[[np.ndarray], float]] = {
            name: lambda w, each=each: float(w @ each / w.sum()) for name, each in means.items()
        }
        of_weights["perplexity"] = lambda w: math.exp(min(float(w @ self.nats) / max(int(w @ self.counts), 1), 700.0))
        of_weights["zipf"] = _Grams(self.tokens, 1).zipf
        for size in (1, 2, 3):
            of_weights[f"distinct_{size}"] = _Grams(self.tokens, size).distinct
        every = np.ones(number, int)
        found: dict[str, tuple[float, Callable[[np.random.Generator], float]]] = {
            name: (of(every), lambda rng, of=of: of(weights(rng))) for name, of in of_weights.items()
        }
        if human is self:
            found["mauve"] = (1.0, lambda rng: 1.0)
        elif human is None or number < measures.MAUVE_LEAST:
            found["mauve"] = (math.nan, lambda rng: math.nan)
        else:
            clusters = measures.Clusters(self.features, human.features)
            found["mauve"] = (clusters.mauve, lambda rng: clusters.resampled(number, rng))
        return found


_SHARES = {"self_bleu", "repetition", "repeated_4grams", "distinct_1", "distinct_2", "distinct_3", "mauve"}


class _Grams:
    """The n-grams of texts as numbers, so that those of a sample of the texts are counted fast."""

    def __init__(self, texts: Sequence[Sequence[int]], size: int) -> None:
        ids: dict[tuple[int, ...], int] = {}
        pairs = [
            (i, ids.setdefault(gram, len(ids)))
            for i, text in enumerate(texts)
            for gram in zip(*(text[j:] for j in range(size)), strict=False)
        ]
        self.text, self.gram = np.array(pairs, np.int64).reshape(-1, 2).T

    def counts(self, weights: np.ndarray) -> np.ndarray:
        """The count of each n-gram if text i is there `weights[i]` times."""
        return np.bincount(self.gram, weights=weights[self.text])

    def zipf(self, weights: np.ndarray) -> float:
        return measures.zipf(self.counts(weights))

    def distinct(self, weights: np.ndarray) -> float:
        counts = self.counts(weights)
        return float(np.count_nonzero(counts) / counts.sum()) if counts.sum() else math.nan


def _judge(
    lm: "LanguageModel", prefixes: Sequence[list[int]], continuations: Sequence[list[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """The nats of each continuation after its prefix [N], and the model's last hidden state of both [N, D]."""
    starts = [1 + len(prefix) for prefix in prefixes]
    rows = [
        [lm.tokenizer.special.start, *prefix, *tokens] for prefix, tokens in zip(prefixes, continuations, strict=True)
    ]
    width = max(map(len, rows))
    nats, features = [], []
    for first in range(0, len(rows), CHUNK):
        part = slice(first, first + CHUNK)
        size = row_bucket(len(rows[part]), devices.local_devices())
        ids = np.zeros((size, width), np.int32)
        start, length = np.ones((2, size), np.int32)
        for i, (row, begin) in enumerate(zip(rows[part], starts[part], strict=True)):
            ids[i, : len(row)], start[i], length[i] = row, begin, len(row)
        arguments = devices.split_rows((ids, start, length))
        found = devices.join_rows(judge(lm.model)(lm.weights, *arguments))  # pyright: ignore[reportArgumentType]
        for kept, array in zip((nats, features), found, strict=True):
            kept.append(np.asarray(array, np.float64)[: len(rows[part])])
    return np.concatenate(nats), np.concatenate(features)


def _with_distances(verdicts: list[Verdict]) -> list[Verdict]:
    """The verdicts with their distances from the human one, if there is one."""
    if verdicts[0].method != HUMAN:
        return verdicts
    values = np.array([[getattr(one, name) for name in MEASURES] for one in verdicts])
    values = values[:, ~np.isnan(values[0])]  # texts of one or two words have no trigrams
    differences = np.abs(values - values[0])
    most = np.nanmax(differences, axis=0)
    shares = differences[:, most > 0] / most[most > 0]
    means = np.nanmean(shares, axis=1) if shares.size else np.zeros(len(verdicts))
    return [dataclasses.replace(one, distance=float(mean)) for one, mean in zip(verdicts, means, strict=True)]
