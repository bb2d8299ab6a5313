"""SimpleBooks from an archive on disk, any text, and the way they are opened."""

import gzip
import json
import random
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from simplebooks_archive import DOCUMENTS, LINES, damage, make_archive

from minigpt_jax.config import DataConfig
from minigpt_jax.corpora import SPLITS, SimpleBooks, Stories, Text, open_corpus
from minigpt_jax.corpora.base import read_lines
from minigpt_jax.errors import UserError

TRAIN = "simplebooks/simplebooks-92-raw/train.txt"
VALID = "simplebooks/simplebooks-92-raw/valid.txt"


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def everything(corpus) -> dict[str, list[str]]:
    return {split: list(corpus.documents(split)) for split in SPLITS}


def assert_one_clear_line(error: UserError, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    for word in words:
        assert word in text


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
    assert corpus.name == "simplebooks-92-raw"
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


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DataConfig(corpus="text"), ["--data.files"]),
        (DataConfig(corpus="text", files=(" ",)), ["--data.files"]),
        (DataConfig(files=("a.txt",)), ["--data.files goes with --data.corpus text", "simplebooks"]),
        (DataConfig(corpus="stories", archive=Path("a.zip")), ["--data.archive goes with", "simplebooks", "stories"]),
    ],
)
def test_a_flag_that_the_corpus_does_not_take_is_refused(tmp_path, config, words):
    with pytest.raises(UserError) as error:
        open_corpus(config, tmp_path)
    assert_one_clear_line(error.value, *words)


# Text.


def test_the_same_text_is_the_same_corpus_in_every_kind_of_file(tmp_path):
    lines = [f"line {number} – naïve" for number in range(49)] + ["\ufeffa mark that opens no file is text"]
    text = "\n".join(lines)
    jsonl = "\n".join(json.dumps({"id": number, "body": line}) + "\n" for number, line in enumerate(lines))
    files = [
        write(tmp_path / "a.txt", text),
        write(tmp_path / "b.TXT", "\ufeff" + text.replace("\n", "\r\n\r\n")),
        write(tmp_path / "c.txt.gz", gzip.compress(text.encode())),
        write(tmp_path / "d.gz", gzip.compress(text.encode())),
        write(tmp_path / "e.jsonl", jsonl),
        write(tmp_path / "f.jsonl.gz", gzip.compress(jsonl.encode())),
    ]
    with zipfile.ZipFile(tmp_path / "g.zip", "w") as file:  # the members in order of their names, not of the archive
        file.writestr("2.jsonl", "\n".join(jsonl.split("\n")[20:]))
        file.writestr("1.txt", "\n".join(lines[:10]))
        file.writestr("__MACOSX/._1.txt", b"\xff")
        file.writestr("readme.pdf", b"\xff")
    corpora = [Text([file], json_field="body", held_out=0.1) for file in [*files, str(tmp_path / "g.zip")]]
    first = everything(corpora[0])
    assert sorted(chain(*first.values())) == sorted(lines)
    assert [document for document in lines if document in first["train"]] == first["train"]
    for corpus in corpora:
        assert everything(corpus) == first
        assert corpus.fingerprint == corpora[0].fingerprint


def test_folders_globs_and_files_are_found_once_in_a_fixed_order(tmp_path):
    for name in ("b.txt", "a.txt", "sub/deep/c.txt", ".hidden/x.txt", ".y.txt", "picture.png", "old.tar.gz"):
        write(tmp_path / name, f"{name}\n{name} 2\n{name} 3\n")

    def read(*files: str) -> list[str]:
        corpus = Text([str(tmp_path / file) for file in files], held_out=0.4)
        found = everything(corpus)
        return sorted({line.split()[0] for lines in found.values() for line in lines if lines})

    def order(*files: str) -> str:
        return Text([str(tmp_path / file) for file in files]).fingerprint

    assert read(".") == ["a.txt", "b.txt", "sub/deep/c.txt"]
    assert read("*.txt") == ["a.txt", "b.txt"]
    assert read("**/*.txt") == read("*") == ["a.txt", "b.txt", "sub/deep/c.txt"]
    assert read("sub", "a.txt") == ["a.txt", "sub/deep/c.txt"]
    assert order(".") == order("*") == order("a.txt", "b.txt", "sub")
    assert order("a.txt", "*.txt", "sub/../a.txt") == order("a.txt", "b.txt")
    assert order("b.txt", "a.txt") != order("a.txt", "b.txt")
    write(tmp_path / "odd[1].txt", "one\ntwo\nthree\n")
    assert read("odd[1].txt") == ["one", "three", "two"]


def test_a_document_is_in_one_split_whatever_stands_around_it(tmp_path):
    rng = random.Random(0)
    lines = [f"document {number}" for number in range(2000)]
    shuffled = rng.sample(lines + lines[:500], 2500)
    splits = everything(Text([write(tmp_path / "a.txt", "\n".join(lines))], held_out=0.05))
    mixed = everything(Text([write(tmp_path / "b.txt", "\n".join(shuffled))], held_out=0.05))
    assert [len(splits[split]) for split in ("train", "valid", "test")] == [1800, 100, 100]
    for split in SPLITS:
        assert set(splits[split]) == set(mixed[split])
    assert sum(len(documents) for documents in mixed.values()) == 2500
    # More text moves the cuts a little and nothing else: hardly any document changes its split.
    more = everything(Text([str(tmp_path / "a.txt"), write(tmp_path / "c.txt", "a\nb\nc\nd\n")], held_out=0.05))
    assert len(set(splits["valid"]) ^ (set(more["valid"]) & set(lines))) <= 3


@pytest.mark.parametrize("document", ["line", "file"])
@pytest.mark.parametrize("held_out", [0.001, 0.1, 0.49])
@pytest.mark.parametrize("count", [3, 4, 5, 10, 37])
def test_every_split_has_a_document(tmp_path, document, held_out, count):
    for number in range(count):
        write(tmp_path / f"{number:02}.txt", f"text {number}\n")
    found = everything(Text([str(tmp_path)], document, held_out=held_out))
    assert all(found.values())
    assert len({text.strip() for texts in found.values() for text in texts}) == count
    assert sum(len(texts) for texts in found.values()) == count


def test_a_file_as_a_document_keeps_its_lines(tmp_path):
    write(tmp_path / "a.txt", "\ufeffone\r\n\r\n two\n")
    write(tmp_path / "b.txt.gz", gzip.compress(b"three\nfour"))
    write(tmp_path / "c.jsonl", '{"text": "five\\nsix"}\n\n{"text": " "}\n{"text": "seven"}\n')
    write(tmp_path / "empty.txt", " \n")
    found = everything(Text([str(tmp_path)], "file"))
    assert sorted(chain(*found.values())) == ["five\nsix", "one\n\n two\n", "seven", "three\nfour"]


def test_text_fingerprint_is_of_contents_and_splits(tmp_path):
    text = "".join(f"document {number}\n" for number in range(100))
    first = Text([write(tmp_path / "a.txt", text)]).fingerprint
    assert first == Text([write(tmp_path / "elsewhere" / "b.txt", text)]).fingerprint
    others = [
        Text([write(tmp_path / "c.txt", text.replace("document 50", "document fifty"))]),
        Text([write(tmp_path / "d.txt", text + "document 100\n")]),
        Text([write(tmp_path / "e.txt", text + "document 50\n")]),
        Text([str(tmp_path / "a.txt")], held_out=0.2),
    ]
    assert len({first, *(corpus.fingerprint for corpus in others)}) == 5


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", None, ["no such file or folder"]),
        ("*.txt", None, ["matches nothing"]),
        ("a.pdf", "x", ["a.pdf", ".jsonl", ".zip"]),
        ("a.tar.gz", "x", ["a.tar.gz", ".jsonl", ".zip"]),
        ("a.txt", "", ["a.txt holds no text"]),
        ("a.txt", "\r\n \n", ["a.txt holds no text"]),
        ("a.txt", "one\none\ntwo\n", ["2 distinct documents", "need one each"]),
        ("a.txt", b"one\ntw\xff\n", ["a.txt is not UTF-8", "0xff", "byte 6", "line 2"]),
        ("a.txt", "one\n".encode("utf-16"), ["not UTF-8", "byte 0"]),
        ("a.gz", "one\ntwo\n", ["a.gz cannot be read", "gzip"]),
        ("a.gz", gzip.compress(b"one\ntwo\nthree", mtime=0)[:-9], ["a.gz cannot be read", "end-of-stream"]),
        ("a.zip", "one\ntwo\n", ["a.zip is not a zip file"]),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', ["a.jsonl:2 is not JSON"]),
        ("a.jsonl", '{"text": "a"}\n\n["b"]\n', ["a.jsonl:3 is a list", "one object a line"]),
        ("a.jsonl", '{"title": "a", "body": "b"}\n', ["a.jsonl:1", "'text'", "title, body", "--data.json-field"]),
        ("a.jsonl", '{"text": 1}\n', ["a.jsonl:1", "no string", "--data.json-field"]),
        ("a.jsonl", '{"text": "\\ud800"}\n', ["a.jsonl", "surrogate"]),
    ],
)
def test_wrong_text_is_refused_when_it_is_opened(tmp_path, name, content, words):
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        open_corpus(DataConfig(corpus="text", files=(str(tmp_path / name),)), tmp_path)
    assert_one_clear_line(error.value, "--data.files", str(tmp_path), *words)


def test_wrong_folders_and_zips_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no .*only nothing"):
        Text([str(tmp_path / "empty")])
    write(tmp_path / "pictures" / "a.png", "x")
    with pytest.raises(UserError, match=r"has no .*only a.png"):
        Text([str(tmp_path / "pictures")])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.png", b"")
    with pytest.raises(UserError, match=r"no .txt or .jsonl member; it holds a.png"):
        Text([str(tmp_path / "a.zip")])
    archive = make_archive(tmp_path / "b.zip")
    damage(archive, TRAIN)
    with pytest.raises(UserError, match=r"b.zip: simplebooks/simplebooks-92-raw/train.txt cannot be read"):
        Text([str(archive)])


@pytest.mark.parametrize("held_out", [0.0, 0.5, -1.0, float("nan")])
def test_held_out_leaves_something_to_train_on(tmp_path, held_out):
    with pytest.raises(UserError, match=r"--data.held-out .* above 0 and below 0.5"):
        Text([write(tmp_path / "a.txt", "one\ntwo\nthree\n")], held_out=held_out)
