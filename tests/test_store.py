"""The token store against rows cut naively, and what becomes of damaged stores."""

import itertools
import json
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigpt_jax.config import BOS_ID, DataConfig, Experiment, TokenizerConfig
from minigpt_jax.data import store
from minigpt_jax.data.rows import Rows
from minigpt_jax.errors import UserError

WORDS = "the king was dead and so was his old dog who had never liked him much".split()


class Tales:
    """A corpus of generated documents of very different lengths."""

    name = "tales"

    def __init__(self, count: int = 60, seed: int = 0):
        self.fingerprint = f"tales {count} {seed}"
        rng = np.random.default_rng(seed)
        self.texts = {
            split: [" ".join(rng.choice(WORDS, rng.integers(1, 90))) + " ." for _ in range(n)]
            for split, n in (("train", count), ("valid", 7), ("test", 5))
        }
        self.reads = 0

    def documents(self, split: str) -> Iterator[str]:
        self.reads += 1
        return iter(self.texts[split])

    def floor(self, split: str) -> float | None:
        return 100.0 + len(self.texts[split])


def experiment(
    layout: str, length: int = 16, kind: str = "wordpiece", size: int | None = None, **data: object
) -> Experiment:
    size = size or (300 if kind == "bpe" else 38)
    return Experiment(
        "tales",
        data=DataConfig(layout=layout, sequence_length=length, min_bytes=40, **data),  # type: ignore[arg-type]
        tokenizer=TokenizerConfig(kind=kind, vocabulary_size=size),  # type: ignore[arg-type]
    )


def test_the_lines_layout_has_the_prefix_of_each_long_document(tmp_path: Path):
    corpus = Tales()
    prepared = store.prepare(experiment("lines"), corpus, tmp_path)
    long = [text for text in corpus.texts["train"] if len(text.encode()) > 40]
    assert 0 < len(long) < len(corpus.texts["train"])
    expected = np.zeros((len(long), 17), np.uint8)
    sizes = []
    for row, text in zip(expected, long, strict=True):
        ids = prepared.tokenizer.encode_batch([text])[0][:16]
        row[: len(ids) + 1] = [BOS_ID, *ids]
        # What the ids stand for is the shortest head of the text that has them.
        head = next(n for n in range(len(text) + 1) if prepared.tokenizer.encode_batch([text[:n]])[0] == ids)
        sizes.append(head)
    rows = prepared.splits["train"]
    assert rows.rows.dtype == np.uint8
    np.testing.assert_array_equal(rows.rows, expected)
    np.testing.assert_array_equal(rows.bytes, sizes)
    assert rows.floor is None  # the rows do not hold all the text


def test_evaluation_has_a_layout_and_its_vocabulary(tmp_path: Path):
    """Trained on all the text, and evaluated as what was trained on lines, with the same vocabulary."""
    corpus = Tales()
    corpus.texts["train"] += ["thehis thehis"] * 99  # too short for a line
    lines, packed = (store.prepare(experiment(layout, size=45), corpus, tmp_path) for layout in ("lines", "packed"))
    mixed = store.prepare(experiment("packed", size=45, evaluation_layout="lines"), corpus, tmp_path)
    assert mixed.tokenizer.fingerprint == lines.tokenizer.fingerprint != packed.tokenizer.fingerprint
    for split in ("valid", "test"):
        np.testing.assert_array_equal(mixed.splits[split].rows, lines.splits[split].rows)
        assert mixed.splits[split].floor is None
    assert mixed.splits["train"].bytes.sum() == sum(len(text.encode()) for text in corpus.texts["train"])


def test_the_anneal_part_has_the_prefixes_and_train_the_rest(tmp_path: Path):
    """Together they hold every training text once."""
    corpus = Tales()
    corpus.texts["train"] += ["the king is dead"] * 9  # too short for a line
    lines = store.prepare(experiment("lines"), corpus, tmp_path)
    annealed = store.prepare(experiment("packed", evaluation_layout="lines", anneal_fraction=0.3), corpus, tmp_path)
    prefixes, rest = annealed.splits["anneal"], annealed.splits["train"]
    np.testing.assert_array_equal(prefixes.rows, lines.splits["train"].rows)
    np.testing.assert_array_equal(prefixes.bytes, lines.splits["train"].bytes)
    expected = [BOS_ID]
    for text in corpus.texts["train"]:
        [ids] = annealed.tokenizer.encode_batch([text])
        ids = ids[prefixes.rows.shape[1] - 1 :] if len(text.encode()) > 40 else ids
        expected += [*ids, BOS_ID] if ids else []
    stream = [*rest.rows[:, :-1].ravel(), rest.rows[-1, -1]]
    np.testing.assert_array_equal(stream[: len(expected)], expected)
    assert not np.any(stream[len(expected) :])
    assert prefixes.bytes.sum() + rest.bytes.sum() == sum(len(text.encode()) for text in corpus.texts["train"])
    assert rest.floor is None


def test_prefixes_that_leave_no_text_for_other_steps_are_refused(tmp_path: Path):
    settings = experiment("packed", length=1000, evaluation_layout="lines", anneal_fraction=0.3)
    corpus = Tales()
    corpus.texts["train"] = [text for text in corpus.texts["train"] if len(text.encode()) > 40]
    with pytest.raises(UserError, match=r"--data.anneal-fraction 0.3: .*; set it to 0"):
        store.prepare(settings, corpus, tmp_path)


@pytest.mark.parametrize("start", [0, 3, 6, 7, 8, 9])
@pytest.mark.parametrize(("fraction", "switch"), [(0.0, 10), (0.3, 7), (0.34, 7), (1.0, 0), (1e-9, 9)])
def test_the_last_steps_train_on_the_prefixes(tmp_path: Path, fraction: float, switch: int, start: int):
    """Batch i is the same from any start: number i of `train`, or, after the switch, of `anneal` counted from there."""
    settings = experiment("packed", evaluation_layout="lines", anneal_fraction=fraction)
    prepared = store.prepare(settings, Tales(), tmp_path)

    def source(rows: Rows, size: int, seed: int, start: int, *process: int) -> Iterator[Any]:
        part = next(name for name, own in prepared.splits.items() if own is rows)
        return ((part, i, size, seed, process) for i in itertools.count(start))

    stream = prepared.training_batches(source, settings, 10, start, 1, 2)
    expected = [("train", i) if i < switch else ("anneal", i - switch) for i in range(start, 10)]
    assert list(itertools.islice(stream, 10 - start)) == [(*batch, 64, 0, (1, 2)) for batch in expected]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("length", [5, 16, 200])
def test_packed_rows_hold_all_text_once(tmp_path: Path, length: int, kind: str):
    corpus = Tales()
    prepared = store.prepare(experiment("packed", length, kind), corpus, tmp_path)
    for split, rows in prepared.splits.items():
        stream = [BOS_ID]
        for ids in prepared.tokenizer.encode_batch(corpus.texts[split]):
            stream += [*ids, BOS_ID]
        count = -(-(len(stream) - 1) // length)
        stream += [0] * (count * length + 1 - len(stream))
        expected = [stream[i * length : (i + 1) * length + 1] for i in range(count)]
        np.testing.assert_array_equal(rows.rows, expected)
        assert rows.bytes.sum() == sum(len(text.encode()) for text in corpus.texts[split])
        assert rows.floor == corpus.floor(split)


def test_rows_of_whole_documents_begin_with_them_and_have_the_corpus_floor(tmp_path: Path):
    corpus = Tales()
    prepared = store.prepare(experiment("whole", 400), corpus, tmp_path)
    for split, rows in prepared.splits.items():
        documents = [[BOS_ID, *ids, BOS_ID] for ids in prepared.tokenizer.encode_batch(corpus.texts[split])]
        assert max(map(len, documents)) <= 401
        assert (rows.rows[:, 0] == BOS_ID).all()
        assert (rows.lengths - 1).sum() == sum(len(ids) - 1 for ids in documents)
        assert rows.bytes.sum() == sum(len(text.encode()) for text in corpus.texts[split])
        assert rows.floor == corpus.floor(split)


def test_packed_bytes_go_with_their_labels(tmp_path: Path):
    corpus = Tales()
    corpus.texts["train"] = ["king dog", "was  dead "] * 40
    pieces = tmp_path / "pieces.txt"
    pieces.write_text("\n".join(["[PAD]", "[UNK]", "[BOS]", "king", "dog", "was", "dead"]))
    settings = Experiment(
        "x",
        data=DataConfig(layout="packed", sequence_length=3),
        tokenizer=TokenizerConfig(vocabulary_size=7, file=pieces),
    )
    rows = store.prepare(settings, corpus, tmp_path).splits["train"]
    # Labels: king, dog and the end of one document; was, dead and the end of the next, which carries the last space.
    np.testing.assert_array_equal(rows.rows[:2], [[2, 3, 4, 2], [2, 5, 6, 2]])
    np.testing.assert_array_equal(rows.bytes, [len("king dog"), len("was  dead ")] * 40)


def test_a_second_use_does_not_read_the_corpus(tmp_path: Path):
    corpus = Tales()
    first = store.prepare(experiment("packed"), corpus, tmp_path)
    reads = corpus.reads
    second = store.prepare(experiment("packed"), corpus, tmp_path)
    assert corpus.reads == reads
    np.testing.assert_array_equal(first.splits["train"].rows, second.splits["train"].rows)
    assert first.tokenizer.fingerprint == second.tokenizer.fingerprint


def test_another_corpus_or_setting_has_a_store_of_its_own(tmp_path: Path):
    for corpus, layout, length in [(Tales(), "packed", 16), (Tales(seed=1), "packed", 16), (Tales(), "packed", 8)]:
        prepared = store.prepare(experiment(layout, length), corpus, tmp_path)
        assert prepared.splits["train"].rows.shape[1] == length + 1
    assert len([path for path in (tmp_path / "stores").iterdir() if path.is_dir()]) == 3


DAMAGES = {
    "flipped byte": lambda folder: _flip(folder / "train.rows"),
    "cut short": lambda folder: (folder / "valid.rows").write_bytes(b"\0" * 40),
    "missing file": lambda folder: (folder / "test.bytes").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "cut meta": lambda folder: (folder / "meta.json").write_text('{"description": {'),
    "another's meta": lambda folder: _edit(folder / "meta.json"),
    "no sums": lambda folder: _without_sums(folder / "meta.json"),
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
    "a partial file": lambda folder: (shutil.rmtree(folder), folder.with_name(folder.name + ".partial").write_text("")),
}


def _without_sums(path: Path) -> None:
    path.write_text(re.sub('"sha256": {[^}]*}', '"sha256": []', path.read_text()))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _edit(path: Path) -> None:
    meta = json.loads(path.read_text())
    meta["description"]["corpus"] = "another"
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_store_is_rebuilt(tmp_path: Path, damage: str):
    corpus = Tales()
    whole = np.array(store.prepare(experiment("packed"), corpus, tmp_path).splits["train"].rows)
    folder = next(path for path in (tmp_path / "stores").iterdir() if path.is_dir())
    DAMAGES[damage](folder)
    reads = corpus.reads
    again = store.prepare(experiment("packed"), corpus, tmp_path)
    assert corpus.reads > reads
    np.testing.assert_array_equal(again.splits["train"].rows, whole)


def test_a_damaged_tokenizer_is_trained_again(tmp_path: Path):
    corpus = Tales()
    whole = store.prepare(experiment("packed"), corpus, tmp_path).tokenizer.fingerprint
    folder = next(path for path in (tmp_path / "tokenizers").iterdir() if path.is_dir())
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:20])
    assert store.prepare(experiment("packed"), corpus, tmp_path).tokenizer.fingerprint == whole
    shutil.rmtree(folder)
    folder.write_text("")
    assert store.prepare(experiment("packed"), corpus, tmp_path).tokenizer.fingerprint == whole


def test_a_cache_that_cannot_be_made_is_one_line():
    with pytest.raises(UserError, match="the cache /proc/nothing cannot be written: No such file"):
        store.prepare(experiment("packed"), Tales(), Path("/proc/nothing"))


@pytest.mark.parametrize("size", [100, 6000])  # neither the tokenizer fits, or the tokenizer alone
def test_a_full_disk_is_one_line_and_leaves_nothing_half_made(tmp_path: Path, size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(UserError, match=re.escape(f"the cache {tmp_path} cannot be written: File too large")):
            store.prepare(experiment("packed"), Tales(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    made = [path.parent.name for path in tmp_path.glob("*/*") if path.is_dir()]
    assert made == (["tokenizers"] if size == 6000 else [])
    store.prepare(experiment("packed"), Tales(), tmp_path)


def test_a_tokenizer_trained_before_the_field_exact_is_found(tmp_path: Path):
    store.prepare(experiment("packed"), Tales(), tmp_path)
    (file,) = (tmp_path / "tokenizers").glob("*/description.json")
    assert "exact" not in json.loads(file.read_text())["tokenizer"]


def test_a_store_cut_short_by_a_crash_is_not_taken_for_whole(tmp_path: Path):
    corpus = Tales()

    def crash(items, title, total):
        for i, item in enumerate(items):
            if title == "tokenising train" and i == 20:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        store.prepare(experiment("packed"), corpus, tmp_path, crash)
    assert not [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]
    store.prepare(experiment("packed"), corpus, tmp_path)


def test_a_split_without_documents_is_refused(tmp_path: Path):
    class NoneToValidate(Tales):
        def documents(self, split: Any) -> Any:
            return iter(()) if split == "valid" else super().documents(split)

    with pytest.raises(UserError, match="the valid split has no documents; give it at least one"):
        store.prepare(experiment("packed"), NoneToValidate(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        (experiment("packed", 100_000), "--data.sequence-length 100000"),
        (Experiment("x", data=DataConfig(min_bytes=10_000)), "--data.min-bytes 10000"),
    ],
)
def test_a_corpus_too_small_for_a_row_is_refused(tmp_path: Path, settings: Experiment, flag: str):
    with pytest.raises(UserError, match=flag):
        store.prepare(settings, Tales(), tmp_path)
    assert not list((tmp_path / "stores").glob("*/meta.json"))


@pytest.mark.parametrize("layout", ["lines", "packed"])
def test_a_store_of_an_earlier_version_opens(tmp_path: Path, layout: Any):
    fresh = store.prepare(experiment(layout, 100), Tales(), tmp_path)
    [meta] = (tmp_path / "stores").glob("*/meta.json")
    about = json.loads(meta.read_text())
    for part, split in about["splits"].items():
        (meta.parent / f"{part}.lengths").unlink()
        del split["sha256"]["lengths"]
    meta.write_text(json.dumps(about))
    written = meta.stat().st_mtime_ns
    again = store.prepare(experiment(layout, 100), Tales(), tmp_path)
    assert meta.stat().st_mtime_ns == written
    for part, rows in fresh.splits.items():
        np.testing.assert_array_equal(again.splits[part].lengths, rows.lengths)
        assert layout == "packed" or len(set(rows.lengths)) > 1


def test_a_layout_that_drops_most_of_the_text_says_so(tmp_path: Path, capsys: pytest.CaptureFixture):
    corpus = Tales()
    corpus.texts["train"] = ["the king was dead ." * 3] + ["the old dog liked him ." for _ in range(40)]
    store.prepare(experiment("lines", size=32), corpus, tmp_path)
    told = capsys.readouterr().err
    assert "1 of 41 training documents" in told
    assert "experiments/text.py" in told
    store.prepare(experiment("lines"), Tales(), tmp_path)
    store.prepare(experiment("packed", size=32), corpus, tmp_path)
    assert capsys.readouterr().err == ""
