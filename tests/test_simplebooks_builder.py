"""The TFDS builder: the same lines as the corpus, and never another archive's."""

import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from simplebooks_archive import DOCUMENTS, LINES, Server, make_archive

from minigpt_jax.corpora import SimpleBooks, Split, simplebooks_builder, simplebooks_download
from minigpt_jax.corpora.simplebooks import CONFIGURATIONS
from minigpt_jax.errors import UserError

SPLITS: dict[str, Split] = {"train": "train", "validation": "valid", "test": "test"}  # TFDS's name -> ours


def load(data_dir: Path, archive: Path | None = None, name: str = "simple_books") -> dict[str, list[str]]:
    """What a user's `tfds.load` gives, split by split, under the corpus's names."""
    kwargs = {"archive": archive} if archive else None
    found: Any = tfds.load(name, data_dir=str(data_dir), builder_kwargs=kwargs)
    return {
        SPLITS[split]: [row["text"].decode() for row in dataset.as_numpy_iterator()] for split, dataset in found.items()
    }


def test_the_builder_has_the_four_configurations():
    assert tuple(simplebooks_builder.SimpleBooks.builder_configs) == CONFIGURATIONS
    assert simplebooks_builder.SimpleBooks.name == "simple_books"


def test_lines_are_the_corpuss_and_another_archive_has_its_own(tmp_path):
    long = {"simplebooks/simplebooks-92-raw/train.txt": "".join(f"line {n}\n\n" for n in range(2000)).encode()}
    first = make_archive(tmp_path / "a.zip", long)
    data_dir = tmp_path / "data"
    corpus = SimpleBooks(first, "simplebooks-92-raw")
    expected = {split: list(corpus.documents(split)) for split in SPLITS.values()}
    assert load(data_dir, first) == expected
    assert load(data_dir, first) == expected  # from the prepared records
    # Another archive at the same path, of the same configuration, in the same data folder.
    make_archive(first, tag="other: ")
    assert load(data_dir, first) == {split: [f"other: {x}" for x in lines] for split, lines in LINES.items()}
    assert len(list((data_dir / "simple_books").glob("simplebooks-92-raw-*"))) == 2


def test_a_configuration_is_named_as_tfds_does(tmp_path):
    members = {
        f"simplebooks/simplebooks-2/{split}.txt": f"{split} of the small one\n".encode() for split in SPLITS.values()
    }
    archive = make_archive(tmp_path / "a.zip", members)
    found = load(tmp_path / "data", archive, "simple_books/simplebooks-2")
    assert found == {split: [f"{split} of the small one"] for split in SPLITS.values()}


def test_a_copy_of_the_builder_is_of_the_same_archive(tmp_path):
    builder = simplebooks_builder.SimpleBooks(archive=make_archive(tmp_path / "a.zip"), data_dir=tmp_path / "data")
    copy = pickle.loads(pickle.dumps(builder))
    assert copy.data_dir == builder.data_dir
    assert copy.builder_config.archive == str(tmp_path / "a.zip")


def test_without_an_archive_it_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    data = make_archive(tmp_path / "a.zip").read_bytes()
    server = Server(data)
    fetch = functools.partial(simplebooks_download.download, url=server.url, size=len(data))
    monkeypatch.setattr(simplebooks_builder, "download", fetch)
    try:
        assert load(tmp_path / "data") == DOCUMENTS
    finally:
        server.stop()
    assert (tmp_path / "data" / "simple_books" / "simplebooks-92-raw").is_dir()


def test_a_wrong_archive_is_refused_before_anything_is_prepared(tmp_path):
    with pytest.raises(UserError, match=r"no such file"):
        load(tmp_path / "data", tmp_path / "a.zip")
    with pytest.raises(UserError, match=r"does not contain simplebooks/simplebooks-2-raw/train.txt"):
        load(tmp_path / "data", make_archive(tmp_path / "b.zip"), "simple_books/simplebooks-2-raw")
    assert not (tmp_path / "data").exists()
