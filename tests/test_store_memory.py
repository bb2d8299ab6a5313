"""What the preparation of a corpus holds in memory, and how often it reads the corpus."""

from pathlib import Path

import pytest
from test_store import Tales, experiment

from minigpt_jax.corpora import document_bytes
from minigpt_jax.data import encoding, store


@pytest.mark.parametrize("length", [1, 7, 50, 1000])
def test_chunks_of_documents_are_bounded_by_their_text(monkeypatch: pytest.MonkeyPatch, length: int):
    monkeypatch.setattr(encoding, "CHARACTERS_A_CHUNK", 300)
    monkeypatch.setattr(encoding, "DOCUMENTS_A_CHUNK", 40)
    texts = [f"{number:03}" + "x" * length for number in range(200)]
    chunks = list(encoding._chunks(iter(texts)))
    assert [text for chunk in chunks for text in chunk] == texts
    assert all(0 < len(chunk) <= 40 and sum(map(len, chunk[:-1])) < 300 for chunk in chunks)


class Sized(Tales):
    """A corpus that knows the sizes of its documents, as one of files does."""

    def document_bytes(self, split: str):
        return document_bytes(Tales(), split)


@pytest.mark.parametrize("layout", ["lines", "packed"])
def test_a_corpus_that_knows_its_sizes_is_read_once_for_the_tokenizer_and_once_a_part(tmp_path: Path, layout: str):
    corpus = Sized()
    store.prepare(experiment(layout), corpus, tmp_path)
    assert corpus.reads == 1 + len(store.SPLITS)
    counted = Tales()
    rows = store.prepare(experiment(layout), counted, tmp_path / "other").splits
    assert counted.reads > corpus.reads
    again = store.prepare(experiment(layout), corpus, tmp_path).splits
    assert all((rows[part].rows == again[part].rows).all() for part in rows)
