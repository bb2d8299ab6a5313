"""The download of SimpleBooks, for real, from a server of the test's own."""

import json
import shutil
import socket
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from simplebooks_archive import DOCUMENTS, Server, damage, make_archive

from minigpt_jax import corpora
from minigpt_jax.config import DataConfig
from minigpt_jax.corpora import SPLITS, simplebooks_download
from minigpt_jax.corpora.simplebooks_download import download
from minigpt_jax.errors import UserError

TRAIN = "simplebooks/simplebooks-92-raw/train.txt"
VALID = "simplebooks/simplebooks-92-raw/valid.txt"


@pytest.fixture
def archive(tmp_path) -> Path:
    return make_archive(tmp_path / "made.zip")


@pytest.fixture
def server(archive, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(archive.read_bytes())
    yield server
    server.stop()


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def get(cache: Path, server: Server, size: int | None = None) -> simplebooks_download.Download:
    return download(cache, server.url, len(server.data) if size is None else size)


def refused(cache: Path, server: Server, size: int | None = None) -> str:
    """The line that the user gets; nothing may be left that a later start would take for the corpus."""
    with pytest.raises(UserError) as error:
        get(cache, server, size)
    assert "\n" not in str(error.value)
    assert {path.name for path in (cache / "simplebooks").iterdir()} <= {"unpacked"}
    assert not list((cache / "simplebooks").rglob("*.txt"))
    return str(error.value)


def test_it_is_fetched_unpacked_and_cached(tmp_path, cache, server, archive, monkeypatch):
    monkeypatch.setattr(
        corpora, "download", lambda cache: simplebooks_download.download(cache, server.url, len(server.data))
    )
    corpus = corpora.open_corpus(DataConfig(), cache)
    assert {split: list(corpus.documents(split)) for split in SPLITS} == DOCUMENTS
    assert server.requests == ["HEAD", "GET"]
    assert corpus.fingerprint == corpora.SimpleBooks(archive, "simplebooks-92-raw").fingerprint
    with zipfile.ZipFile(archive) as file:
        unpacked = next(cache.rglob("unpacked/*"))
        assert (unpacked / TRAIN).read_bytes() == file.read(TRAIN)
    assert {path.name for path in tmp_path.iterdir()} == {"made.zip", "cache"}
    server.stop()
    again = corpora.open_corpus(DataConfig(), cache)  # without a network
    assert {split: list(again.documents(split)) for split in SPLITS} == DOCUMENTS
    assert again.fingerprint == corpus.fingerprint
    (unpacked / VALID).write_bytes((unpacked / VALID).read_bytes().upper())
    with pytest.raises(UserError, match=r"valid\.txt has changed since it was unpacked"):
        corpora.open_corpus(DataConfig(), cache)


def test_processes_that_start_together_download_once(cache, server):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: get(cache, server), range(4)))
    assert len(set(results)) == 1
    assert server.requests == ["HEAD", "GET"]


def test_without_a_network_the_ways_out_are_named_at_once(cache):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        start = time.monotonic()
        with pytest.raises(UserError) as error:
            download(cache, f"http://127.0.0.1:{closed.getsockname()[1]}/simplebooks.zip")
    assert time.monotonic() - start < 5
    for words in ("refused", "--data.archive FILE.zip", "--data.corpus stories", "--data.corpus text --data.files"):
        assert words in str(error.value)


def test_a_silent_server_is_given_up(cache, monkeypatch):
    monkeypatch.setattr(simplebooks_download, "PROBE_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(UserError, match=r"timed out.*--data\.archive"):
            download(cache, f"http://127.0.0.1:{silent.getsockname()[1]}/simplebooks.zip")
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_that_refuses(cache, server, status):
    server.status = status
    assert f"Error {status}" in refused(cache, server)
    assert server.requests == ["HEAD"]


def test_another_size_is_not_even_fetched(cache, server):
    line = refused(cache, server, size=282_386_239)
    assert f"offers {len(server.data):,} bytes where SimpleBooks has 282,386,239" in line
    assert server.requests == ["HEAD"]


def test_another_size_is_refused_where_none_is_announced(cache, server):
    server.announced = None
    assert f"sent {len(server.data):,} bytes where" in refused(cache, server, size=len(server.data) + 1)


def test_a_transfer_cut_short(cache, server):
    whole = server.data
    server.data = whole[: len(whole) // 2]
    assert "--data.archive" in refused(cache, server, size=len(whole))
    assert server.requests == ["HEAD", "GET"]
    server.data = whole
    get(cache, server)


def test_something_else_than_a_zip(cache, server):
    server.data = b"<html>please log in</html>"
    server.announced = len(server.data)
    assert "not a zip" in refused(cache, server)


@pytest.mark.parametrize("name", ["../evil.txt", "simplebooks/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:/evil"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, cache, server, archive, name):
    server.data = make_archive(archive, {name: b"evil"}).read_bytes()
    server.announced = len(server.data)
    line = refused(cache, server)
    assert "refused" in line
    assert name in line
    assert not list(tmp_path.rglob("evil*"))


def test_a_damaged_member_is_refused(cache, server, archive):
    damage(archive, TRAIN)
    server.data = archive.read_bytes()
    assert "cannot be unpacked" in refused(cache, server)


def test_a_damaged_cache_is_fetched_anew(cache, server):
    kept, unpacked = get(cache, server)
    damage(kept, TRAIN)
    server.status = 503
    with pytest.raises(UserError, match="503"):
        get(cache, server)
    server.status = 200
    assert get(cache, server) == (kept, unpacked)
    assert kept.read_bytes() == server.data
    assert server.requests == ["HEAD", "GET", "HEAD", "HEAD", "GET"]


def test_another_archive_at_the_address_is_refused(cache, server):
    get(cache, server).archive.unlink()
    other = bytearray(server.data)
    other[10] ^= 0xFF  # the time of day in the first local header: as readable as before, but another file
    server.data = bytes(other)
    with pytest.raises(UserError, match=r"not the archive that was downloaded before.*delete .*archive\.json"):
        get(cache, server)
    (cache / "simplebooks" / simplebooks_download.RECORD).unlink()
    assert get(cache, server).archive.read_bytes() == server.data


def test_unpacked_files_are_put_back_and_checked(cache, server):
    _, unpacked = get(cache, server)
    server.stop()
    (unpacked / TRAIN).unlink()
    archive, unpacked = get(cache, server)
    corpus = corpora.SimpleBooks(archive, "simplebooks-92-raw", unpacked)
    assert list(corpus.documents("train")) == DOCUMENTS["train"]
    text = (unpacked / TRAIN).read_bytes()
    (unpacked / TRAIN).write_bytes(text.replace(b"king", b"King"))
    with pytest.raises(UserError, match=r"train\.txt has changed since it was unpacked; delete it"):
        list(corpus.documents("train"))
    shutil.rmtree(unpacked)
    get(cache, server)
    assert list(corpus.documents("train")) == DOCUMENTS["train"]


def test_a_cache_that_cannot_be_written(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot use the cache .*MINIGPT_CACHE"):
        get(tmp_path / "file", server)


def test_a_full_disk_is_told_before_the_download(cache, server, monkeypatch):
    full = shutil.disk_usage(cache.parent)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert "100 bytes free" in refused(cache, server)
    assert server.requests == ["HEAD"]


def test_a_record_that_is_no_json_counts_for_nothing(cache, server):
    kept, _ = get(cache, server)
    record = cache / "simplebooks" / simplebooks_download.RECORD
    record.write_text("{")
    assert get(cache, server).archive == kept
    assert json.loads(record.read_text())["url"] == server.url
