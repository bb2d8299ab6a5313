"""Text at addresses: listed and streamed over HTTP and from fsspec's memory, never stored, and noticed if changed."""

import functools
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from corpus_files import assert_one_clear_line, everything, write
from text_server import TextServer

from minigpt_jax import errors
from minigpt_jax.config import DataConfig, Experiment, validate
from minigpt_jax.corpora import Text, open_corpus, remote
from minigpt_jax.errors import UserError

END = "<|endoftext|>"
STORIES = [f"story {number}\nand its second line {'漢' * (number % 5)}" for number in range(60)]


def parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), file, row_group_size=9)
    return file.getvalue()


FILES = {
    "a.txt": f"\n{END}\n".join(STORIES[:20]).encode(),
    "b.txt.zst": zstd.compress(f"\n{END}\n".join(STORIES[20:30]).encode()),
    "c.jsonl.gz": gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in STORIES[30:45]).encode()),
    "d.parquet": parquet(STORIES[45:]),
}


@pytest.fixture
def server() -> Iterator[TextServer]:
    server = TextServer(dict(FILES))
    yield server
    server.close()


@pytest.fixture
def memory() -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for name, content in FILES.items():
        system.pipe(f"/texts/sub/{name}", content)
    system.pipe("/texts/.hidden/x.txt", b"x\n")
    system.pipe("/texts/README.md", b"x\n")
    yield "memory://texts"
    system.rm("/texts", recursive=True)


@pytest.fixture
def on_disk(tmp_path: Path) -> Text:
    for name, content in FILES.items():
        write(tmp_path / "disk" / name, content)
    return Text([str(tmp_path / "disk")], separator=END)


def test_texts_elsewhere_are_the_corpus_that_they_are_on_disk(server: TextServer, memory: str, on_disk: Text):
    specs = [
        [f"{server.address}/"],
        [f"{server.address}/*.*"],
        [f"{server.address}/{name}?download=true" for name in FILES],
        [memory],
        [f"{memory}/**"],
        [f"{memory}/sub/?.*", f"{memory}/sub/a.txt"],
    ]
    for spec in specs:
        corpus = Text(spec, separator=END)
        assert everything(corpus) == everything(on_disk)
        assert corpus.fingerprint == on_disk.fingerprint


def test_a_stream_comes_in_one_request_and_columns_in_parts(server: TextServer):
    server.files = {"a.txt": FILES["a.txt"] * 100, "d.parquet": parquet([f"{i} {'x' * 3000}" for i in range(3000)])}
    Text([f"{server.address}/a.txt"], separator=END)
    assert server.sent == len(server.files["a.txt"])
    server.ranges = False
    Text([f"{server.address}/a.txt"], separator=END)
    with pytest.raises(UserError) as error:
        Text([f"{server.address}/d.parquet"])
    assert_one_clear_line(error.value, f"--data.files {server.address}/d.parquet", "cannot send parts", "download")


def test_texts_that_did_not_change_are_not_read_again(server: TextServer, tmp_path: Path):
    read = functools.partial(Text, [f"{server.address}/"], separator=END, cache=tmp_path)
    first = read()
    assert server.sent > 0
    server.sent = 0
    again = read()
    assert server.sent < 1000  # the list
    assert again.fingerprint == first.fingerprint
    assert [again.document_bytes(split).tolist() for split in ("train", "valid", "test")] == [
        first.document_bytes(split).tolist() for split in ("train", "valid", "test")
    ]
    assert everything(again) == everything(first)
    assert read(held_out=0.2).fingerprint != first.fingerprint
    server.files["a.txt"] = FILES["a.txt"].replace(b"story 7\n", b"story x\n")  # as long as before
    changed = read()
    assert changed.fingerprint != first.fingerprint
    [scan] = [path for path in tmp_path.glob("scans/*") if path.is_dir()][:1]
    (scan / "sizes.npz").write_bytes(b"damaged")
    assert read().fingerprint == changed.fingerprint


@pytest.mark.parametrize("cached", [False, True])
def test_a_change_is_noticed_whatever_the_server_tells(server: TextServer, tmp_path: Path, cached: bool):
    server.etags = cached
    read = functools.partial(Text, [f"{server.address}/a.txt"], separator=END, cache=tmp_path)
    first = read()
    server.files["a.txt"] = FILES["a.txt"].replace(b"story 7\n", b"story x\n")
    with pytest.raises(UserError, match="has changed"):  # while a command runs
        everything(first)
    assert read().fingerprint != first.fingerprint
    assert bool(list(tmp_path.iterdir())) == cached


@pytest.mark.parametrize(
    ("about", "suffices"),
    [
        ({"ETag": '"1f"'}, True),
        ({"ETag": 'W/"1f"'}, False),
        ({"Last-Modified": "Sun, 29 Nov 2026 12:00:00 GMT", "mtime": 1.0, "created": 1.0}, False),
        ({"crc32c": "x", "etag": None}, True),
        ({"blob_id": "x"}, True),
    ],
)
def test_what_tells_the_version_of_a_file(about: dict, suffices: bool):
    version = remote._version({"size": 1, **about})
    assert (version is not None) == suffices
    if suffices:
        assert version != remote._version({"size": 2, **about})
        assert version == remote._version({"size": 1, **about, "name": "elsewhere"})


def test_credentials_come_from_the_environment(server: TextServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server.password = "secret"
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fsspec.filesystem("http").clear_instance_cache()
    with pytest.raises(UserError) as error:
        Text([f"{server.address}/a.txt"], separator=END)
    assert_one_clear_line(error.value, f"--data.files {server.address}/a.txt", "401", "credentials in the environment")
    write(tmp_path / "netrc", "machine 127.0.0.1 login ann password secret\n")
    fsspec.filesystem("http").clear_instance_cache()
    assert len(Text([f"{server.address}/a.txt"], separator=END).document_bytes("train")) > 0


@pytest.mark.parametrize(
    "address",
    [
        "https://ann:hunter2@host/a.txt",
        "https://hunter2@host/a.txt",
        "s3://key:hun/ter2@bucket/a.txt",
        "https://host/a.txt?token=hunter2",
        "https://host/a.txt?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2",
        "https://host/a.txt?sv=1&sig=hunter2",
        "zip://a.txt::https://ann:hunter2@host/a.zip",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_shown(tmp_path: Path, address: str):
    calls = [
        lambda: validate(Experiment("x", data=DataConfig(corpus="text", files=("a.txt", address)))),
        lambda: validate(Experiment("x", data=DataConfig(corpus="stories", files=(address,)))),
        lambda: open_corpus(DataConfig(corpus="text", files=(address,)), tmp_path),
    ]
    for call in calls:
        with pytest.raises(UserError) as error:
            call()
        assert_one_clear_line(error.value, "--data.files", "HF_TOKEN", "~/.netrc")
        assert "ter2" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    ["hf://datasets/a/b@main/c.parquet", "hf://gpt2@main/a.txt", "https://host:80/a@b.txt?keywords=x", "a@b:c"],
)
def test_addresses_without_credentials_are_not_taken_for_such(address: str):
    assert not errors.has_credentials(address)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("{server}/nowhere.txt", ["404", "check the address"]),
        ("{server}/*.pdf", ["no file of a supported kind", "nothing"]),
        ("http://127.0.0.1:1/a.txt", ["cannot be read", "Cannot connect", "the network"]),
        ("https://nowhere.invalid/a.txt", ["cannot be read", "the network"]),
        ("hf://datasets/minigpt-nobody/nowhere/a.txt", ["cannot be read", "the network"]),
        ("memory://nowhere/a.txt", ["there is no such file or folder"]),
        ("memory://texts/README.md", ["not of a supported kind", ".parquet"]),
        ("memory://texts/.hidden", ["1 distinct document"]),
        ("nonsense://a.txt", ["nonsense:// is unknown", "hf://"]),
        ("simplecache::{server}/a.txt", ["is unknown", "hf://"]),
    ],
)
def test_addresses_that_cannot_be_read(
    server: TextServer, memory: str, monkeypatch: pytest.MonkeyPatch, address: str, words: list[str]
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    address = address.format(server=server.address)
    with pytest.raises(UserError) as error:
        Text([address])
    assert_one_clear_line(error.value, f"--data.files {address}", *words)


def test_a_connection_that_breaks_is_one_clear_line(server: TextServer):
    server.cut = 100
    with pytest.raises(UserError) as error:
        Text([f"{server.address}/a.txt"], separator=END)
    assert_one_clear_line(error.value, f"--data.files {server.address}/a.txt cannot be read", "the network")
    server.cut, server.files["e.zst"] = None, FILES["b.txt.zst"][:-9]
    with pytest.raises(UserError, match=r"e\.zst cannot be read.*end-of-stream"):
        Text([f"{server.address}/e.zst"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    def lacking(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacking)
    with pytest.raises(UserError) as error:
        Text(["s3://bucket/a.txt"])
    assert_one_clear_line(error.value, "--data.files s3://bucket/a.txt", "pip install 'minigpt_jax[remote]'")
    with pytest.raises(UserError, match="Install s3fs"):
        Text(["abfs://bucket/a.txt"])
