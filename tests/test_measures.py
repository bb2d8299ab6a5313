"""The measures of sampling against known answers, sacreBLEU and brute force."""

import math

import numpy as np
import pytest
import sacrebleu

from minigpt_jax.data.rows import Rows
from minigpt_jax.errors import UserError
from minigpt_jax.generate import measures
from minigpt_jax.generate.held_out import HeldOut, held_out


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.3])
def test_zipf_of_frequencies_made_by_the_law(exponent: float):
    counts = np.round(1e9 * np.arange(1, 2000.0) ** -exponent)
    assert measures.zipf(np.random.default_rng(0).permutation(counts)) == pytest.approx(exponent, abs=1e-3)


def test_zipf_leaves_out_what_does_not_occur():
    assert measures.zipf(np.array([4, 0, 2])) == measures.zipf(np.array([4, 2]))
    assert math.isnan(measures.zipf(np.array([7, 0])))


@pytest.mark.parametrize("seed", range(3))
def test_self_bleu_is_sacrebleus(seed: int):
    rng = np.random.default_rng(seed)
    texts = [[int(t) % 25 for t in rng.zipf(1.5, int(rng.integers(1, 30)))] for _ in range(20)]
    words = [" ".join(f"w{token}" for token in text) for text in texts]
    expected = [
        sacrebleu.sentence_bleu(
            word, words[:i] + words[i + 1 :], tokenize="none", smooth_method="exp", use_effective_order=True
        ).score
        for i, word in enumerate(words)
    ]
    np.testing.assert_allclose(100 * measures.self_bleu(texts), expected, rtol=1e-9)


def test_self_bleu_of_equal_and_of_disjoint_texts():
    assert measures.self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx([1.0] * 3)
    assert measures.self_bleu([[1, 2, 3, 4], [5, 6, 7, 8], []]) == pytest.approx([0.0] * 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 1, 2, 3], True),
        ([9, 1, 2, 3, 4, 1, 2, 3, 4], True),
        ([5, 5, 5, 5, 5, 5], True),
        ([1, 2, 1, 2], False),
        ([1, 2, 3, 1, 2, 3, 9], False),
        ([1, 2, 3], False),
        ([], False),
    ],
)
def test_ends_in_repetition(text: list[int], expected: bool):
    assert measures.ends_in_repetition(text) is expected


def test_mauve_of_one_distribution_and_of_two():
    rng = np.random.default_rng(0)
    near, alike, far = rng.normal(size=(3, 200, 8))
    same = measures.Clusters(near, alike)
    different = measures.Clusters(near, far + 10 * np.eye(8)[0])
    assert same.mauve > 0.9
    assert different.mauve < 0.1
    low, high = measures.interval(same.mauve, lambda rng: same.resampled(200, rng))
    assert low < same.mauve < high


def test_an_interval_covers_the_mean_as_often_as_it_says():
    rng, inside = np.random.default_rng(1), 0
    for _ in range(200):
        sample = rng.normal(loc=3.0, size=50)
        low, high = measures.interval(sample.mean(), lambda rng, sample=sample: rng.choice(sample, 50).mean())
        inside += low < 3.0 < high
    assert 0.88 < inside / 200 < 0.99


def rows_of(rows: list[list[int]], lengths: list[int]) -> Rows:
    return Rows(np.array(rows, np.uint16), np.zeros(len(rows), np.int32), np.array(lengths, np.int32))


def test_prefixes_of_lines():
    rows = rows_of([[2, 5, 6, 7, 8, 9], [2, 5, 6, 7, 0, 0], [2, 5, 0, 0, 0, 0]], [6, 4, 2])
    found = held_out(rows, "lines", 2, 0, prompts=9, prompt_tokens=2, new_tokens=2)
    # The first row goes on beyond the window; the second ends after its third token; the third has no continuation.
    assert sorted(found) == [HeldOut([5, 6], [7, 0]), HeldOut([5, 6], [7, 8])]


def test_prefixes_of_packed_rows_begin_with_documents_and_then_go_on_inside_them():
    # The stream 2 | 5 6 7 8 9 10 11 | 2 | 12 13 14 | 2 in rows that overlap by one id.
    rows = rows_of([[2, 5, 6, 7, 8], [8, 9, 10, 11, 2], [2, 12, 13, 14, 2]], [5, 5, 5])
    found = held_out(rows, "packed", 2, 2, prompts=9, prompt_tokens=2, new_tokens=2)
    assert sorted(found[:2]) == [HeldOut([5, 6], [7, 8]), HeldOut([12, 13], [14, 2])]
    assert found[2:] == [HeldOut([9, 10], [11, 2])]
    assert held_out(rows, "packed", 2, 2, prompts=1, prompt_tokens=2, new_tokens=2, seed=0) == found[:1]


def test_prefixes_of_rows_with_whole_documents():
    # A row with two documents, one that is cut at the window's end, and the row with its rest.
    rows = rows_of(
        [[2, 5, 6, 7, 2, 8, 9, 10, 2, 0], [2, 11, 12, 13, 2, 14, 15, 16, 17, 18], [18, 19, 2] + [0] * 7], [9, 10, 3]
    )
    found = held_out(rows, "whole", 2, 2, prompts=9, prompt_tokens=2, new_tokens=2)
    assert sorted(found[:4]) == [
        HeldOut([5, 6], [7, 2]),
        HeldOut([8, 9], [10, 2]),
        HeldOut([11, 12], [13, 2]),
        HeldOut([14, 15], [16, 17]),
    ]
    assert not found[4:]


def test_prefixes_longer_than_any_text():
    rows = rows_of([[2, 5, 6, 0]], [3])
    with pytest.raises(UserError, match="--prompt-tokens 2: no held-out document is long enough"):
        held_out(rows, "lines", 2, 0, prompts=1, prompt_tokens=2, new_tokens=4)


@pytest.mark.parametrize(
    ("tokens", "size", "repeated"),
    [
        ([1, 2, 3, 4, 5], 4, 0.0),
        ([1, 2, 1, 2, 1, 2, 1, 2], 4, 3 / 5),  # 1212 and 2121, then three repetitions
        ([7] * 10, 2, 8 / 9),
        ([1, 2, 3], 4, 0.0),  # too short for a 4-gram
        ([], 2, 0.0),
    ],
)
def test_repetition(tokens: list[int], size: int, repeated: float):
    assert measures.repeated_ngrams(tokens, size) == pytest.approx(repeated)
    assert measures.distinct_ngrams(tokens, size) == pytest.approx(1 - repeated)
