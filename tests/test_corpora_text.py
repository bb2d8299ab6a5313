"""Any text as a corpus: what is read, how it is cut and held out, and the mistakes that a user can make."""

import gzip
import json
import os
import random
import tracemalloc
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from corpus_files import assert_one_clear_line, everything, write
from simplebooks_archive import damage, make_archive

from minigpt_jax.config import DataConfig
from minigpt_jax.corpora import SPLITS, Text, base, open_corpus
from minigpt_jax.errors import UserError

TRAIN = "simplebooks/simplebooks-92-raw/train.txt"
VALID = "simplebooks/simplebooks-92-raw/valid.txt"


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
    corpora = [Text([file], text_field="body", held_out=0.1) for file in [*files, str(tmp_path / "g.zip")]]
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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("document", ["line", "file"])
def test_line_ends_of_every_system_are_the_same_text(tmp_path, monkeypatch, end, document):
    monkeypatch.setattr(base, "CHUNK", 7)  # so that some ends are cut in two
    lines = [f"line {number}" for number in range(20)]
    found = everything(Text([write(tmp_path / f"{i}.txt", end.join(lines[i:])) for i in range(3)], document))
    expected = lines if document == "line" else ["\n".join(lines[i:]) for i in range(3)]
    assert set(chain(*found.values())) == set(expected)


def test_documents_without_visible_characters_are_skipped(tmp_path):
    blank = ["\u200b\u200b", "\ufeff", "\u2060 \u200d", "\xad", "\u3164\ufe0f", "\0\0", "\x1b", "\u2028\u3000"]
    lines = ["a real line", "\u200ba word", "\U0001f642\ufe0f", "nul\0 within"]
    file = write(tmp_path / "a.txt", "\n".join([*blank, *lines, *blank]))
    records = write(tmp_path / "b.jsonl", "\n".join(json.dumps({"text": line}) for line in [*blank, *lines]))
    assert sorted(chain(*everything(Text([file])).values())) == sorted(lines)
    assert sorted(chain(*everything(Text([records])).values())) == sorted(lines)
    with pytest.raises(UserError, match=r"b.txt contains no text"):
        Text([write(tmp_path / "b.txt", "\n".join(blank))])


def test_fingerprints_are_those_of_older_runs(tmp_path):
    text = "".join(f"line {number} – naïve\x0b\u2028 \0{'漢' * (number % 7)}\n\n" for number in range(300))
    files = [write(tmp_path / "a.txt", text), write(tmp_path / "b.txt", "\ufeff" + text.replace("\n", "\r\n"))]
    files += [write(tmp_path / "c.jsonl", "".join(json.dumps({"text": line}) + "\n" for line in text.split("\n")))]
    for file in files:
        assert Text([file]).fingerprint.startswith("7f0fa87000efdc62")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for number in range(9):
            archive.writestr(f"{number}.txt", text[300 * number :][:400])
    assert Text([files[0], str(tmp_path / "d.zip")]).fingerprint.startswith("d6330a4dcdaa3ffe")
    assert Text([files[1], str(tmp_path / "d.zip")], "file", held_out=0.1).fingerprint.startswith("87cc9e73323a6496")


@pytest.mark.parametrize("flag", [["line"], ["file"]])
def test_documents_above_the_length_limit_are_refused(tmp_path, monkeypatch, flag):
    monkeypatch.setattr(base, "MAX_DOCUMENT", 1 << 20)
    bomb = gzip.compress(b"fine\nalso fine\n" + b"x" * 100_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            Text([write(tmp_path / "a.gz", bomb)], *flag)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    mend = ["line 3", "`fold"] if flag == ["line"] else ["--data.document line"]
    assert_one_clear_line(error.value, str(tmp_path / "a.gz"), "1 MiB", *mend)
    assert peak < 8_000_000
    with pytest.raises(UserError, match="line 2 is longer than 1 MiB"):
        open_corpus(DataConfig(archive=make_archive(tmp_path / "b.zip", {VALID: b"x\n" + bytes(4_000_000)})), tmp_path)


def test_a_zip_is_opened_once_for_all_its_members(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for number in range(500):
            file.writestr(f"{number:03}.txt", f"text {number}\n")
    opened = []
    original = zipfile.ZipFile.__init__
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda self, *args: opened.append(self) or original(self, *args))
    corpus = Text([str(tmp_path / "a.zip")])
    assert len(opened) == 1
    assert sum(map(len, everything(corpus).values())) == 500


@pytest.mark.parametrize("spec", ["", "*", "b.txt"])
def test_pipes_and_devices_are_refused_without_blocking(tmp_path, spec):
    write(tmp_path / "a.txt", "one\ntwo\nthree\n")
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(UserError) as error:
        Text([str(tmp_path / spec)])
    assert_one_clear_line(error.value, "--data.files", "b.txt", "not a file" if spec != "b.txt" else "neither a file")
    (tmp_path / "b.txt").unlink()
    (tmp_path / "b.txt").symlink_to("b.txt")
    with pytest.raises(UserError, match=r"b\.txt"):
        Text([str(tmp_path / spec)])


def test_linked_folders_are_followed_once(tmp_path):
    for name in ("here/z/a.txt", "there/b.txt", "there/.hidden/c.txt"):
        write(tmp_path / name, f"{name}\n{name} 2\n{name} 3\n")
    here = tmp_path / "here"
    before = Text([str(here)]).fingerprint
    (here / "a").symlink_to("z")  # in the folder itself, and so read by its own name
    (here / "z" / "loop").symlink_to(here)
    assert Text([str(here)]).fingerprint == before
    (here / "b").symlink_to("../there")
    (here / "c").symlink_to("../there")
    (tmp_path / "there" / "back").symlink_to("../here")
    found = everything(Text([str(here)]))
    assert sorted(chain(*found.values())) == sorted(
        f"{n}{i}" for n in ("here/z/a.txt", "there/b.txt") for i in ("", " 2", " 3")
    )


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "texts" / "a.txt", "one\ntwo\nthree\n")
    for spec in ("~/texts", "~/texts/*.txt", "~/texts/a.txt"):
        assert sum(map(len, everything(Text([spec])).values())) == 3
    make_archive(tmp_path / "a.zip")
    assert any(open_corpus(DataConfig(archive=Path("~/a.zip")), tmp_path).documents("valid"))
    with pytest.raises(UserError, match="no such file or folder"):
        Text(["~nobody-of-this-name/a.txt"])
    with pytest.raises(UserError, match="no such file"):
        open_corpus(DataConfig(archive=Path("~nobody-of-this-name/a.zip")), tmp_path)


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
        ("*.txt", None, ["matches no file"]),
        ("a.pdf", "x", ["a.pdf", ".jsonl", ".zip"]),
        ("a.tar.gz", "x", ["a.tar.gz", ".jsonl", ".zip"]),
        ("a.txt", "", ["a.txt contains no text"]),
        ("a.txt", "\r\n \n", ["a.txt contains no text"]),
        ("a.txt", "one\none\ntwo\n", ["2 distinct documents", "need one each"]),
        ("a.txt", b"one\ntw\xff\n", ["a.txt is not UTF-8", "0xff", "byte 6", "line 2"]),
        ("a.txt", "one\n".encode("utf-16"), ["UTF-16, not UTF-8", "`iconv -f utf-16 -t utf-8`"]),
        ("a.txt", "\n\none two\n".encode("utf-16-le"), ["UTF-16, not UTF-8", "`iconv -f utf-16le -t utf-8`"]),
        ("a.jsonl", '{"text": "один два"}\n'.encode("utf-16-be"), ["UTF-16", "`iconv -f utf-16be -t utf-8`"]),
        ("a.gz", gzip.compress("one\n".encode("utf-32"), mtime=0), ["UTF-32, not UTF-8", "`iconv -f utf-32 -t utf-8`"]),
        ("a.gz", "one\ntwo\n", ["a.gz cannot be read", "gzip"]),
        ("a.gz", gzip.compress(b"one\ntwo\nthree", mtime=0)[:-9], ["a.gz cannot be read", "end-of-stream"]),
        ("a.zip", "one\ntwo\n", ["a.zip is not a zip file"]),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n', ["a.jsonl:2 is not JSON"]),
        ("a.jsonl", '{"text": "a"}\n\n["b"]\n', ["a.jsonl:3 is a list", "one object per line"]),
        ("a.jsonl", '{"title": "a", "body": "b"}\n', ["a.jsonl:1", "'text'", "title, body", "--data.text-field"]),
        ("a.jsonl", '{"text": 1}\n', ["a.jsonl:1", "not a string", "--data.text-field"]),
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
