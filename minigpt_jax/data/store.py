"""The token store: a corpus tokenised once, as a matrix of rows on disk for each split. No TensorFlow here.

A row is T + 1 ids: features and labels, which overlap (`batch.Batch`). In the `lines` layout it is [BOS] and the first
T ids of one long document, padded; in the `packed` layout the text of all documents is one stream,
`[BOS] document [BOS] document … [BOS]`, cut into rows that overlap by one id, so that every id but the first is a
label once and a document's end is the label [BOS].
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import joblib
import numpy as np

from minigpt_jax import tokenizer as tokenizers
from minigpt_jax.batch import Batch
from minigpt_jax.config import BOS_ID, DataConfig, Experiment, to_json
from minigpt_jax.corpora import Corpus
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import Tokenizer

Split = Literal["train", "valid", "test"]
Part = Literal["train", "valid", "test", "finish"]
Layout = Literal["lines", "packed"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
FORMAT = 1
DOCUMENTS_A_CHUNK = 1024
DOCUMENTS_A_WORKER = 50_000

BatchSource = Callable[..., Iterator[Batch]]
"""As `pipeline.batches`: (rows, batch_size, seed, start, process_index, process_count) → endless batches."""
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""Wraps an iterable of so many items to show progress under a title."""


def no_progress(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """A `Track` that shows nothing."""
    del title, total
    return items


@dataclass(frozen=True)
class Rows:
    """One split's rows.

    Attributes:
        rows: [rows, T+1] token ids.
        bytes: [rows] UTF-8 bytes of the original text that a row's labels stand for.
        floor: nats that the corpus's own generator gives these texts, ends included, where there is one and the rows
            hold all of their text.
    """

    rows: np.ndarray
    bytes: np.ndarray
    floor: float | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def floor_bits_per_byte(self) -> float | None:
        return None if self.floor is None else self.floor / np.log(2) / int(self.bytes.sum())

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches that hold every row once, the last one filled up."""
        return -(-len(self) // batch_size)

    def take(self, indices: np.ndarray) -> Batch:
        """Rows by index; an index past the end gives a row of zeros, which weighs nothing."""
        inside = indices < len(self)
        safe = np.where(inside, indices, 0)
        return Batch(
            np.where(inside[:, None], self.rows[safe], self.rows.dtype.type(0)),
            np.where(inside, self.bytes[safe], np.int32(0)),
        )

    def in_order(self, batch_size: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """All rows once, a process's share of each batch, for evaluation; the last batch is filled up."""
        share = batch_size // process_count
        for start in range(process_index * share, len(self) + process_index * share, batch_size):
            yield self.take(np.arange(start, start + share))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, rows=self.rows, bytes=self.bytes, floor=np.float64(_nan_if_none(self.floor)))

    @classmethod
    def load(cls, path: Path) -> "Rows":
        with np.load(path) as arrays:
            floor = float(arrays["floor"])
            return cls(arrays["rows"], arrays["bytes"], None if np.isnan(floor) else floor)


@dataclass(frozen=True)
class Prepared:
    """A corpus made ready: its tokenizer and the rows of each split.

    With `data.finish`, the heads of the training split's long documents are `finish`, and `train` what they leave.
    """

    tokenizer: Tokenizer
    splits: dict[Part, Rows]

    def training_batches(
        self,
        source: BatchSource,
        experiment: Experiment,
        total_steps: int,
        start: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Training batches from number `start` on, drawn by `source`; the last ones of `total_steps` from `finish`."""
        rest = (process_index, process_count)
        size, seed = experiment.train.batch_size, experiment.seed
        finish = experiment.data.finish
        switch = total_steps - max(1, round(finish * total_steps)) if finish else total_steps
        if switch == total_steps:
            return source(self.splits["train"], size, seed, start, *rest)
        first = source(self.splits["train"], size, seed, start, *rest) if start < switch else iter(())
        last = source(self.splits["finish"], size, seed, max(0, start - switch), *rest)
        return itertools.chain(itertools.islice(first, max(0, switch - start)), last)


def prepare(experiment: Experiment, corpus: Corpus, cache: Path, track: Track = no_progress) -> Prepared:
    """Trains the tokenizer and tokenises the corpus, or takes both from `cache` where they are there and whole.

    Raises UserError where the corpus is too small for a row, or cannot fill the vocabulary.
    """
    data, tokenizer = experiment.data, _tokenizer(experiment, corpus, cache, track)
    description = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "row_length": data.sequence_length + 1,
        "dtype": np.min_scalar_type(experiment.tokenizer.vocabulary_size - 1).name,
        "layouts": [layout for _, layout in _parts(data).values()],
        "min_bytes": data.min_bytes if "lines" in (data.layout, data.layout_of("valid")) else None,
    }
    folder = cache / "stores" / _key(description)
    with _lock(folder):
        splits = _open(folder, description, data)
        if splits is None:
            _build(folder, description, data, corpus, tokenizer, track)
            splits = _open(folder, description, data)
        assert splits is not None, f"the store that was just written to {folder} is damaged"
    return Prepared(tokenizer, splits)


def _parts(data: DataConfig) -> dict[Part, tuple[Split, Layout]]:
    """What a store holds: of which split, and in which layout."""
    parts: dict[Part, tuple[Split, Layout]] = {split: (split, data.layout_of(split)) for split in SPLITS}
    if data.finish:
        parts["finish"] = "train", data.layout_of("valid")
    return parts


def documents(corpus: Corpus, split: Split, layout: Layout, min_bytes: int) -> Iterator[str]:
    """The documents that a layout keeps: all of them if packed, only the long ones if a line is a row."""
    texts = corpus.documents(split)
    return (text for text in texts if _kept(text, layout, min_bytes))


def _kept(text: str, layout: Layout, min_bytes: int) -> bool:
    return layout == "packed" or len(text.encode()) > min_bytes


def tokenise(texts: Iterable[str], experiment: Experiment, tokenizer: Tokenizer, source: str) -> Rows:
    """Rows of any texts, in memory, cut as those of the experiment's corpus; `source` names them in an error.

    Raises UserError where the layout keeps none of them.
    """
    data, layout = experiment.data, experiment.data.layout_of("valid")
    kept = [text for text in texts if _kept(text, layout, data.min_bytes)]
    cut = _CUT[layout]
    parts = list(cut(iter(_encode_chunk(tokenizer, kept)), data.sequence_length + 1)) if kept else []
    if not sum(len(rows) for rows, _ in parts):
        least = "" if layout == "packed" else f", as the run took lines of more than {data.min_bytes} bytes alone"
        raise UserError(f"{source}: no text to evaluate{least}; give more of it")
    rows, sizes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Rows(rows.astype(np.min_scalar_type(experiment.tokenizer.vocabulary_size - 1)), sizes.astype(np.int32))


def _tokenizer(experiment: Experiment, corpus: Corpus, cache: Path, track: Track) -> Tokenizer:
    config = experiment.tokenizer
    if config.file is not None:
        return tokenizers.from_file(config)
    settings = to_json(experiment)
    data, layout = experiment.data, experiment.data.layout_of("valid")
    description = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "tokenizer": settings["tokenizer"],
        "min_bytes": data.min_bytes if layout == "lines" else None,
    }
    folder = cache / "tokenizers" / _key(description)
    with _lock(folder):
        tokenizer = _open_tokenizer(folder, description)
        if tokenizer is None:
            total = sum(1 for _ in documents(corpus, "train", layout, data.min_bytes))
            if not total:
                raise _too_small(data, "train", layout)
            texts = documents(corpus, "train", layout, data.min_bytes)
            texts = track(texts, "training the tokenizer", total)
            with _written_whole(folder) as partial:
                tokenizer = tokenizers.train(config, texts)
                tokenizer.save(partial)
                (partial / "description.json").write_text(
                    json.dumps({**description, "fingerprint": tokenizer.fingerprint}, indent=2)
                )
    return tokenizer


def _open_tokenizer(folder: Path, description: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer in `folder`, or None where it is missing or damaged."""
    try:
        tokenizer = tokenizers.load(folder)
        expected = {**description, "fingerprint": tokenizer.fingerprint}
        return tokenizer if json.loads((folder / "description.json").read_text()) == expected else None
    except (OSError, ValueError, UserError):
        return None


def _build(
    folder: Path, description: dict[str, Any], config: DataConfig, corpus: Corpus, tokenizer: Tokenizer, track: Track
) -> None:
    length, dtype = description["row_length"], np.dtype(description["dtype"])
    meta: dict[str, Any] = {"description": description, "splits": {}}
    with _written_whole(folder) as partial:
        for part, (split, layout) in _parts(config).items():
            total = sum(1 for _ in documents(corpus, split, layout, config.min_bytes))
            texts = iter(track(documents(corpus, split, layout, config.min_bytes), f"tokenising {part}", total))
            encoded = _encoded(texts, tokenizer, total)
            headless = part == "train" and config.finish > 0
            if headless:
                encoded = _without_heads(encoded, length, config.min_bytes)
            count = labels = 0
            with (
                (partial / f"{part}.rows").open("wb") as rows_file,
                (partial / f"{part}.bytes").open("wb") as bytes_file,
            ):
                for rows, sizes in _CUT[layout](encoded, length):
                    rows_file.write(rows.astype(dtype).tobytes())
                    bytes_file.write(sizes.astype(np.int32).tobytes())
                    count += len(rows)
                    labels += np.count_nonzero(rows[:, 1:])
            if not count or (part == "train" and layout == "packed" and labels < length - 1):
                raise _too_small(config, split, layout, headless)
            meta["splits"][part] = {
                "rows": count,
                "floor": corpus.floor(split) if layout == "packed" and not headless else None,
                "sha256": {kind: _sha256(partial / f"{part}.{kind}") for kind in ("rows", "bytes")},
            }
        (partial / "meta.json").write_text(json.dumps(meta, indent=2))


def _encoded(texts: Iterator[str], tokenizer: Tokenizer, total: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Ids, the bytes of text up to the end of each, and the bytes of the whole, document by document.

    Chunks of documents are encoded by all cores, where there are enough of them to pay for starting processes.
    """
    chunks = iter(lambda: list(itertools.islice(texts, DOCUMENTS_A_CHUNK)), [])
    workers = min(os.cpu_count() or 1, total // DOCUMENTS_A_WORKER + 1)
    work = (joblib.delayed(_encode_chunk)(tokenizer, chunk) for chunk in chunks)
    encoded: Any = joblib.Parallel(workers, return_as="generator")(work)
    yield from itertools.chain.from_iterable(encoded)


def _encode_chunk(tokenizer: Tokenizer, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray, int]]:
    encoded = tokenizer.encode_batch_with_ends(texts)
    return [(ids, ends, len(text.encode())) for text, (ids, ends) in zip(texts, encoded, strict=True)]


def _line_rows(
    encoded: Iterator[tuple[np.ndarray, np.ndarray, int]], length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for ids, ends, _ in encoded:
        if len(ids):
            ids, ends = ids[: length - 1], ends[: length - 1]
            row = np.zeros(length, np.int64)
            row[0] = BOS_ID
            row[1 : 1 + len(ids)] = ids
            yield row[None], ends[-1:]


def _without_heads(
    encoded: Iterator[tuple[np.ndarray, np.ndarray, int]], length: int, min_bytes: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Of the documents that are rows in the lines layout, what stands after those rows; the others as they are."""
    for ids, ends, text_bytes in encoded:
        if text_bytes <= min_bytes:
            yield ids, ends, text_bytes
        elif len(ids) >= length:
            head = ends[length - 2]
            yield ids[length - 1 :], ends[length - 1 :] - head, text_bytes - head


def _packed_rows(
    encoded: Iterator[tuple[np.ndarray, np.ndarray, int]], length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    step = length - 1
    ids_parts, sizes_parts = [np.array([BOS_ID])], [np.array([0])]
    pending = 1

    def cut(last: bool) -> tuple[np.ndarray, np.ndarray]:
        nonlocal ids_parts, sizes_parts, pending
        ids, sizes = np.concatenate(ids_parts), np.concatenate(sizes_parts)
        count = (len(ids) - 1) // step
        if last and (len(ids) - 1) % step:
            count += 1
            ids = np.pad(ids, (0, count * step + 1 - len(ids)))
            sizes = np.pad(sizes, (0, count * step + 1 - len(sizes)))
        if not count:
            return np.zeros((0, length), np.int64), np.zeros(0, np.int64)
        rows = np.lib.stride_tricks.sliding_window_view(ids, length)[::step][:count]
        # A row's bytes are its labels': the id that it shares with the row before belongs to that one.
        row_bytes = sizes[1 : 1 + count * step].reshape(count, step).sum(axis=1)
        ids_parts, sizes_parts = [ids[count * step :]], [sizes[count * step :]]
        pending = len(ids_parts[0])
        return rows, row_bytes

    for ids, ends, text_bytes in encoded:
        # The boundary after a document carries what follows its last token, so that all bytes are counted.
        sizes = np.diff(np.append(ends, text_bytes), prepend=0)
        ids_parts += [ids, np.array([BOS_ID])]
        sizes_parts.append(sizes)
        pending += len(ids) + 1
        if pending > 1024 * length:
            yield cut(last=False)
    yield cut(last=True)


_CUT = {"lines": _line_rows, "packed": _packed_rows}


def _too_small(config: DataConfig, split: Split, layout: Layout, headless: bool = False) -> UserError:
    if headless:
        return UserError(
            f"--data.finish {config.finish}: the heads of the long documents are next to all of the text; drop it"
        )
    if layout == "lines":
        return UserError(
            f"--data.min-bytes {config.min_bytes}: no document of the {split} split is longer; lower it, or take "
            "--data.layout packed, which uses all the text"
        )
    return UserError(
        f"--data.sequence-length {config.sequence_length}: the {split} split is shorter than one window; "
        "give more text or a shorter window"
    )


def _open(folder: Path, description: dict[str, Any], data: DataConfig) -> dict[Part, Rows] | None:
    """The store in `folder`, or None where it is missing, another's, or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["description"] != description:
            return None
        splits: dict[Part, Rows] = {}
        for part in _parts(data):
            about = meta["splits"][part]
            if any(_sha256(folder / f"{part}.{kind}") != total for kind, total in about["sha256"].items()):
                return None
            shape = (about["rows"], description["row_length"])
            rows = np.memmap(folder / f"{part}.rows", np.dtype(description["dtype"]), mode="r", shape=shape)
            sizes = np.memmap(folder / f"{part}.bytes", np.int32, mode="r", shape=shape[:1])
            splits[part] = Rows(rows, sizes, about["floor"])
        return splits
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:24]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock(folder: Path) -> filelock.BaseFileLock:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(f"{folder}.lock")


class _written_whole:
    """A folder that appears under its name only once all of it is written, in place of what was there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.partial = folder, folder.with_name(folder.name + ".partial")

    def __enter__(self) -> Path:
        shutil.rmtree(self.partial, ignore_errors=True)  # of a process that was killed; the lock is ours
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        for path in self.partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(self.folder, ignore_errors=True)
        self.partial.rename(self.folder)


def _nan_if_none(value: float | None) -> float:
    return np.nan if value is None else value
