"""SimpleBooks from an archive on disk, and the way corpora are opened."""

import random
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from corpus_files import assert_one_clear_line, everything, write
from simplebooks_archive import DOCUMENTS, LINES, damage, make_archive

from minigpt_jax.config import DataConfig
from minigpt_jax.corpora import SPLITS, SimpleBooks, Stories, Text, open_corpus
from minigpt_jax.corpora.base import read_lines
from minigpt_jax.errors import UserError

TRAIN = "simplebooks/simplebooks-92-raw/train.txt"
VALID = "simplebooks/simplebooks-92-raw/valid.txt"


# Lines.


def test_lines_are_those_of_text_line_dataset(tmp_path):
    import tensorflow as tf

    rng = random.Random(0)
    pieces = ["\n", "\r", "\r\n", "a", " ", "\x0b", "\x0c", "\x85", "\u2028", "é", "\ufeff", "\0"]
    cases = ["".join(rng.choices(pieces, k=rng.randrange(12))) for _ in range(200)]
    path = tmp_path / "lines.txt"
    path.write_bytes("\n".join(cases).encode())
    expected = [line.decode() for line in tf.data.TextLineDataset(str(path)).as_numpy_iterator()]
    with path.open("rb") as stream:
        found = dict(read_lines(stream, "x"))
    assert found == {number: line for number, line in enumerate(expected, 1) if line.strip()}


# SimpleBooks.


def test_simplebooks_streams_the_archives_lines_in_order(tmp_path):
    corpus = open_corpus(DataConfig(archive=make_archive(tmp_path / "a.zip")), tmp_path / "cache")
    assert everything(corpus) == DOCUMENTS
    assert everything(corpus) == DOCUMENTS  # as often as asked
    assert corpus.floor("valid") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]  # nothing unpacked, no cache made


def test_simplebooks_fingerprint_is_of_the_contents_and_the_configuration(tmp_path):
    small = {f"simplebooks/simplebooks-2-raw/{split}.txt": "\n".join(lines).encode() for split, lines in LINES.items()}
    first = make_archive(tmp_path / "a.zip", small)
    moved = Path(shutil.copy(first, tmp_path / "elsewhere.zip"))
    other = make_archive(tmp_path / "b.zip", small | {TRAIN: b"another text\n"})
    fingerprint = SimpleBooks(first, "simplebooks-92-raw").fingerprint
    assert fingerprint == SimpleBooks(moved, "simplebooks-92-raw").fingerprint
    assert len({fingerprint, SimpleBooks(other, "simplebooks-92-raw").fingerprint}) == 2
    assert len({fingerprint, SimpleBooks(first, "simplebooks-2-raw").fingerprint}) == 2


def _truncated(path: Path) -> Path:
    data = make_archive(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def _encrypted(path: Path) -> Path:
    data = bytearray(make_archive(path).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory's first entry
    path.write_bytes(data)
    return path


def _damaged(path: Path) -> Path:
    damage(make_archive(path), VALID)
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, ["no such file"]),
        (lambda path: path.mkdir() or path, ["not a file"]),
        (lambda path: Path(write(path, "")), ["not a zip", "cut short", "0 bytes"]),
        (lambda path: Path(write(path, "once upon a time\n" * 99)), ["not a zip"]),
        (_truncated, ["not a zip", "cut short"]),
        (_encrypted, ["train.txt", "encrypted"]),
        (_damaged, ["valid.txt", "cannot be read"]),
        (lambda path: make_archive(path, {VALID: b""}), ["valid.txt", "no text"]),
        (lambda path: make_archive(path, {TRAIN: b" \n\r\n"}), ["train.txt", "no text"]),
        (lambda path: make_archive(path, {VALID: b"one\ntwo \xe9\n"}), ["valid.txt", "not UTF-8", "byte 8", "line 2"]),
    ],
)
def test_a_wrong_archive_is_refused_when_it_is_opened(tmp_path, make, words):
    path = make(tmp_path / "a.zip")
    with pytest.raises(UserError) as error:
        open_corpus(DataConfig(archive=path), tmp_path)
    assert_one_clear_line(error.value, f"--data.archive {path}", *words)


def test_an_archive_without_the_configuration_says_what_is_there(tmp_path):
    with pytest.raises(UserError) as error:
        open_corpus(DataConfig(archive=make_archive(tmp_path / "a.zip"), simplebooks="simplebooks-2"), tmp_path)
    missing = ", ".join(f"simplebooks/simplebooks-2/{split}.txt" for split in SPLITS)
    assert_one_clear_line(error.value, f"lacks {missing};", "holds simplebooks-92-raw;", "--data.simplebooks")
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("thesis.docx", b"")
    with pytest.raises(UserError) as error:
        open_corpus(DataConfig(archive=path), tmp_path)
    assert_one_clear_line(error.value, "holds thesis.docx", "give the SimpleBooks archive")


def test_damage_in_the_training_part_is_found_while_it_is_read(tmp_path):
    text = b"".join(b"line %d\n" % number for number in range(1_000_000))  # more than is read ahead
    path = make_archive(tmp_path / "a.zip", {TRAIN: text})
    damage(path, TRAIN)
    corpus = SimpleBooks(path, "simplebooks-92-raw")
    with pytest.raises(UserError) as error:
        list(corpus.documents("train"))
    assert_one_clear_line(error.value, TRAIN, "cannot be read")
    path = make_archive(tmp_path / "b.zip", {TRAIN: b"fine\r\n\nalso fine\nol\xe9\n"})
    corpus = SimpleBooks(path, "simplebooks-92-raw")
    with pytest.raises(UserError) as error:
        list(corpus.documents("train"))
    assert_one_clear_line(error.value, f"{path}: {TRAIN}", "0xe9 at byte 19 (line 4)")


def test_opening_and_reading_import_no_tensorflow(tmp_path):
    archive = make_archive(tmp_path / "a.zip")
    program = f"""
import sys
from pathlib import Path
from minigpt_jax.config import DataConfig
from minigpt_jax import corpora
corpus = corpora.open_corpus(DataConfig(archive=Path({str(archive)!r})), Path())
assert list(corpus.documents("train"))
print([name for name in ("tensorflow", "tensorflow_datasets", "jax") if name in sys.modules])
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("corpus", ["simplebooks", "text"])
def test_reading_takes_no_memory_in_proportion_to_the_text(tmp_path, corpus):
    text = b"".join(b"%07d " % number + b"word " * 400 + b"\n" for number in range(10_000))
    if corpus == "simplebooks":
        config = DataConfig(archive=make_archive(tmp_path / "a.zip", {TRAIN: text}))
    else:
        config = DataConfig(corpus="text", files=(write(tmp_path / "a.txt", text),))
    tracemalloc.start()
    try:
        count = sum(1 for _ in open_corpus(config, tmp_path).documents("train"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count >= 9_600
    assert peak < 5_000_000 < len(text) / 4


# Which corpus.


def test_each_corpus_is_opened_by_its_name(tmp_path):
    files = (write(tmp_path / "a.txt", "one\ntwo\nthree\n"),)
    assert isinstance(open_corpus(DataConfig(corpus="text", files=files), tmp_path), Text)
    stories = open_corpus(DataConfig(corpus="stories", stories=3, stories_seed=1), tmp_path)
    assert isinstance(stories, Stories)
    assert stories.fingerprint == Stories(3, 1).fingerprint
