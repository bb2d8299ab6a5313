"""The rows of a split: how documents are cut into them, their batches, and their file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigpt_jax.data.rows import CUT, Rows
from minigpt_jax.storage.run_dir import whole_file
from minigpt_jax.tokenizer import SpecialIds


def test_rows_in_order_visit_every_row_once_on_any_number_of_processes():
    lengths = np.arange(11, dtype=np.int32) % 3 + 1
    rows = Rows(np.arange(1, 34, dtype=np.uint8).reshape(11, 3), np.arange(11, dtype=np.int32), lengths)
    alone = [batch.rows for batch in rows.in_order(4)]
    assert [len(batch) for batch in alone] == [4, 4, 4]
    np.testing.assert_array_equal(np.concatenate(alone)[:11], rows.rows)
    assert not np.concatenate(alone)[11:].any()
    halves = zip(rows.in_order(4, 0, 2), rows.in_order(4, 1, 2), strict=True)
    for whole, (first, second) in zip(rows.in_order(4), halves, strict=True):
        np.testing.assert_array_equal(whole.rows, np.concatenate([first.rows, second.rows]))
        np.testing.assert_array_equal(whole.bytes, np.concatenate([first.bytes, second.bytes]))
        np.testing.assert_array_equal(whole.length, np.concatenate([first.length, second.length]))
    *_, last = rows.in_order(4)
    assert last.length.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("floor", [None, 12.5])
def test_rows_survive_the_run_directory(tmp_path: Path, floor: float | None):
    lengths = np.array([3, 2], np.int32)
    rows = Rows(np.arange(6, dtype=np.uint16).reshape(2, 3), np.array([4, 5], np.int32), lengths, floor)
    with whole_file(tmp_path / "data" / "valid.npz") as file:
        rows.save(file)
    loaded = Rows.load(tmp_path / "data" / "valid.npz")
    assert loaded.rows.dtype == np.uint16
    np.testing.assert_array_equal(loaded.rows, rows.rows)
    np.testing.assert_array_equal(loaded.bytes, rows.bytes)
    np.testing.assert_array_equal(loaded.lengths, rows.lengths)
    assert loaded.floor == floor


def test_rows_without_lengths_are_padded_with_zeros(tmp_path: Path):
    """Earlier versions saved no lengths, and their tokenizers had 0 for [PAD] alone."""
    rows = np.array([[2, 5, 0, 0], [2, 5, 6, 7]], np.uint8)
    np.savez(tmp_path / "valid.npz", rows=rows, bytes=np.array([1, 3], np.int32), floor=np.float64(np.nan))
    assert Rows.load(tmp_path / "valid.npz").lengths.tolist() == [2, 4]


@pytest.mark.parametrize("layout", ["lines", "packed"])
def test_special_tokens_are_the_tokenizers(layout: Any):
    """Ids of which 0 is a word, the start 9 and the end 8, as in a vocabulary that was not made here."""
    special = SpecialIds(start=9, line_end=8)
    texts = [(np.array([0, 1, 0]), np.array([1, 2, 3]), 3), (np.array([0]), np.array([1]), 2)]
    parts = list(CUT[layout](iter(texts), 5, special))
    rows, sizes, lengths = (np.concatenate(column).tolist() for column in zip(*parts, strict=True))
    if layout == "lines":
        assert rows == [[9, 0, 1, 0, 8], [9, 0, 8, 8, 8]]
        assert (sizes, lengths) == ([3, 1], [4, 2])
    else:
        assert [row[:length] for row, length in zip(rows, lengths, strict=True)] == [[9, 0, 1, 0, 9], [9, 0, 9]]
        assert sizes == [3, 2]


@pytest.mark.parametrize("length", [6, 17, 64])
def test_rows_of_whole_documents_hold_all_text_once_and_cut_only_what_does_not_fit(length: int):
    """Documents are runs of numbers that occur nowhere else, so that each label can be found again."""
    rng = np.random.default_rng(length)
    sizes = rng.integers(0, 30, 300)
    ends = 10 + np.cumsum(sizes)
    documents = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    texts = ((ids, 2 * np.arange(1, len(ids) + 1), 2 * len(ids) + 1) for ids in documents)
    parts = list(CUT["whole"](texts, length, SpecialIds(start=3, line_end=0)))
    rows, sizes_R, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
    labels = np.concatenate([row[1:n] for row, n in zip(rows, lengths, strict=True)])
    assert sorted(labels) == [3] * len(documents) + list(range(10, ends[-1]))
    # Two bytes a token, and one at the end of each document.
    assert sizes_R.tolist() == [sum(2 if i != 3 else 1 for i in row[1:n]) for row, n in zip(rows, lengths, strict=True)]
    found = {" ".join(map(str, row[:n])) for row, n in zip(rows, lengths, strict=True)}
    for ids in documents:
        if len(ids) + 2 <= length:
            assert any(" ".join(map(str, [3, *ids, 3])) in row for row in found)
    for row, n in zip(rows, lengths, strict=True):
        assert not row[n:].any()
        if row[0] != 3:  # the rest of a long document overlaps the row before by an id, and its end comes first
            assert row[0] in {other[-1] for other in rows}
            assert row[0] + 1 == row[1] or row[1] == 3


def test_rows_of_whole_documents_are_filled_well():
    """Best-fit packing fills rows almost whole, where taking the documents in turn does not."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 128, 5000)
    texts = ((np.full(size, 5), np.arange(1, size + 1), int(size)) for size in sizes)
    lengths = np.concatenate([part[2] for part in CUT["whole"](texts, 129, SpecialIds(start=3, line_end=0))])
    assert (lengths - 1).sum() > 0.98 * 128 * len(lengths)
