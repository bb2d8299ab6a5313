"""Parquet and Zstandard files, and documents between separators: what is read, and mistakes that a user can make."""

import gzip
import json
import random
import tracemalloc
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from corpus_files import assert_one_clear_line, everything, write

from minigpt_jax.config import DataConfig, Experiment, validate
from minigpt_jax.corpora import Text, base, document_bytes, open_corpus, parquet, read_files
from minigpt_jax.errors import UserError

END = "<|endoftext|>"
STORIES = [f"story {number}\n\n  and its – second line {'漢' * (number % 5)}" for number in range(50)]


def table(path: Path, *columns: pa.Array | list, names: tuple[str, ...] = ("text",), **settings) -> str:
    pq.write_table(pa.table(list(columns), names=list(names)), path, **settings)
    return str(path)


def records(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({field: text}) + "\n" for text in texts).encode()


def test_the_same_documents_are_the_same_corpus_in_every_kind_of_file(tmp_path):
    text = f"\n{END}\n".join(STORIES)
    separated = [
        write(tmp_path / "a.txt", text),
        write(tmp_path / "b.TXT", "\ufeff" + f"{END}\n{text}{END}\n".replace("\n", "\r\n")),
        write(tmp_path / "c.txt.gz", gzip.compress(text.encode())),
        write(tmp_path / "d.txt.zst", zstd.compress(text.encode())),
        write(tmp_path / "e.zst", zstd.compress(text[:500].encode()) + zstd.compress(text[500:].encode())),
    ]
    columns = [
        write(tmp_path / "f.jsonl.zst", zstd.compress(records(STORIES))),
        write(tmp_path / "g.jsonl.GZ", gzip.compress(records(STORIES))),
        table(tmp_path / "h.parquet", [1] * 50, STORIES, names=("id", "text"), row_group_size=7),
        table(tmp_path / "i.parquet", pa.array(STORIES, pa.large_string()), compression="zstd"),
        table(tmp_path / "j.parquet", pa.array(STORIES).dictionary_encode()),
    ]
    corpora = [Text([file], held_out=0.1, separator=END) for file in separated]
    corpora += [Text([file], held_out=0.1) for file in columns]
    first = everything(corpora[0])
    assert sorted(chain(*first.values())) == sorted(STORIES)
    for corpus in corpora:
        assert everything(corpus) == first
        assert corpus.fingerprint == corpora[0].fingerprint
        for split, texts in first.items():
            assert document_bytes(corpus, split).tolist() == [len(text.encode()) for text in texts]


@pytest.mark.parametrize("separator", ["\n\n", "---", "aa", "é", END, "\r\n.\r\n", r"\n\n", r"\t"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64, 1 << 18])
def test_documents_end_at_separators_wherever_chunks_end(tmp_path, monkeypatch, separator, chunk):
    monkeypatch.setattr(base, "CHUNK", chunk)
    rng = random.Random(chunk)
    plain = separator.replace(r"\n", "\n").replace(r"\t", "\t")
    parts = [plain, plain[:-1], plain[1:], "a", "\n", "\r\n", "\r", "é", "漢 "]
    text = "".join(rng.choices(parts, k=400))
    expected = text.replace("\r\n", "\n").replace("\r", "\n").split(plain.replace("\r\n", "\n"))
    expected = [document.strip("\n") for document in expected]
    with (tmp_path / "a.txt").open("w", newline="") as file:
        file.write(text)
    found = list(read_files([str(tmp_path / "a.txt")], separator=separator))
    assert found == [document for document in expected if document.strip()]
    assert len(found) > 5


def test_a_separator_leaves_records_whole(tmp_path):
    texts = [f"a{END}b {number}" for number in range(3)]
    files = [write(tmp_path / "a.jsonl", records(texts)), table(tmp_path / "b.parquet", texts)]
    assert list(read_files(files, separator=END)) == texts * 2


def test_a_large_file_is_cut_in_bounded_memory(tmp_path):
    text = f"{'word ' * 300}\n{END}\n" * 8_000
    file = write(tmp_path / "a.txt.zst", zstd.compress(text.encode()))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_files([file], separator=END)) == 8_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(text) / 3


def test_a_row_group_of_any_size_is_read_in_batches(tmp_path, monkeypatch):
    texts = [f"{number} {'word ' * 200}" for number in range(20_000)]
    file = table(tmp_path / "a.parquet", texts, row_group_size=len(texts), use_dictionary=False, compression="none")
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert list(read_files([file])) == texts
    finally:
        pa.set_memory_pool(before)
    assert 0 < pool.max_memory() < 12_000_000  # the file has 20 MB
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 100_000)
    assert list(read_files([file])) == texts


def test_a_corpus_that_changes_while_it_is_read_is_noticed(tmp_path):
    file = write(tmp_path / "a.txt", "\n".join(STORIES))
    corpus = Text([file])
    list(corpus.documents("train"))
    write(tmp_path / "a.txt", "\n".join([*STORIES, "one more"]))
    with pytest.raises(UserError) as error:
        list(corpus.documents("valid"))
    assert_one_clear_line(error.value, "--data.files", "a.txt", "has changed")


def test_a_field_of_records_has_two_flags_for_one_field(tmp_path):
    assert DataConfig(json_field="body") == DataConfig(text_field="body")  # pyright: ignore[reportCallIssue]


TRUNCATED = zstd.compress("\n".join(f"{number} {random.Random(number).random()}" for number in range(500)).encode())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.zst", TRUNCATED[:-9], ["a.zst cannot be read", "end-of-stream"]),
        ("a.zst", TRUNCATED[:5], ["a.zst cannot be read"]),
        ("a.zst", b"one\ntwo\n", ["a.zst cannot be read", "decompress"]),
        ("a.zst", b"", ["a.zst"]),  # empty or truncated, according to the version of the library
        ("a.zst", zstd.compress(b""), ["a.zst contains no text"]),
        ("a.txt.zst", zstd.compress(b"one\ntw\xff\n"), ["not UTF-8", "0xff", "byte 6"]),
        ("a.tar.zst", b"x", ["a.tar.zst", "not of a supported kind", ".parquet"]),
        ("a.parquet.gz", b"x", ["a.parquet.gz", "not of a supported kind"]),
        ("a.parquet", b"", ["a.parquet cannot be read", "0 bytes"]),
        ("a.parquet", b"PAR1" + b"x" * 100, ["a.parquet cannot be read", "Parquet"]),
        ("a.jsonl.zst", zstd.compress(b'{"body": "a"}\n'), ["a.jsonl.zst:1", "'text'", "body", "--data.text-field"]),
    ],
)
def test_wrong_files_are_refused_when_they_are_opened(tmp_path, name, content, words):
    with pytest.raises(UserError) as error:
        open_corpus(DataConfig(corpus="text", files=(write(tmp_path / name, content),)), tmp_path)
    assert_one_clear_line(error.value, "--data.files", str(tmp_path), *words)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("column", "name", "words"),
    [
        (["a", "b", "c"], "body", ["no column 'text', only body", "--data.text-field"]),
        ([1, 2, 3], "text", ["column 'text' holds int64, not strings", "--data.text-field"]),
        ([["a"], ["b"]], "text", ["holds list", "not strings"]),
        ([{"text": "a"}, {"text": "b"}], "text", ["holds struct", "not strings"]),
        ([None, None], "text", ["holds null, not strings"]),
        (pa.array([b"a", b"b"]), "text", ["holds binary, not strings"]),
        (["a", "b", None, "d"], "text", ["row 3", "column 'text' is null", "drop"]),
        (pa.array([b"a", b"b", b"c\xff"]).view(pa.string()), "text", ["row 3", "is not UTF-8"]),
        (["a", "b" * 3000, "c"], "text", ["row 2", "longer than 0 MiB"]),
        (pa.array([], pa.string()), "text", ["contains no text"]),
    ],
)
def test_wrong_columns_are_refused_when_they_are_opened(tmp_path, monkeypatch, column, name, words):
    monkeypatch.setattr(base, "MAX_DOCUMENT", 2000)
    file = table(tmp_path / "a.parquet", column, names=(name,))
    with pytest.raises(UserError) as error:
        Text([file])
    assert_one_clear_line(error.value, f"--data.files {file}", *words)


def test_a_truncated_column_is_refused(tmp_path):
    file = Path(table(tmp_path / "a.parquet", STORIES * 50, use_dictionary=False, compression="zstd"))
    whole = file.read_bytes()
    file.write_bytes(whole[:40] + bytes(100) + whole[140:])
    with pytest.raises(UserError, match=r"a\.parquet cannot be read"):
        Text([str(file)])


@pytest.mark.parametrize("separator", [END, r"\n\n\n", "***"])
def test_a_separator_that_never_occurs_is_refused(tmp_path, separator):
    file = write(tmp_path / "a.txt", "\n".join(STORIES))
    with pytest.raises(UserError) as error:
        Text([file], separator=separator)
    assert_one_clear_line(error.value, f"--data.separator {separator!r}".replace(r"\\", "\\"), "never occurs", file)
    with pytest.raises(UserError, match="never occurs"):
        Text([table(tmp_path / "a.parquet", STORIES)], separator=separator)
    assert len(list(read_files([file], separator=separator))) == 1  # one document is a text to evaluate on


def test_a_document_without_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MAX_DOCUMENT", 1 << 20)
    file = write(tmp_path / "a.zst", zstd.compress(f"a{END}b{END}".encode() + b"x\n" * 50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            Text([file], separator=END)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_one_clear_line(error.value, file, f"there is no '{END}' in 1 MiB", "--data.separator")
    assert peak < 8_000_000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"separator": ""}, ["--data.separator ''", "must not be empty"]),
        ({"separator": END, "document": "file"}, ["--data.separator", "--data.document file", "drop one"]),
        ({"separator": END, "corpus": "stories", "files": ()}, ["--data.separator", "add --data.corpus text"]),
    ],
)
def test_separators_that_cannot_work_are_refused_before_any_work(fields, words):
    with pytest.raises(UserError) as error:
        validate(Experiment("x", data=DataConfig(**{"corpus": "text", "files": ("a.txt",)} | fields)))
    assert_one_clear_line(error.value, *words)
