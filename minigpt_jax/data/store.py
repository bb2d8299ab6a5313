"""The token store: a corpus tokenised once, as a matrix of rows on disk for each split. No TensorFlow here."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np

from minigpt_jax import display
from minigpt_jax import tokenizer as tokenizers
from minigpt_jax.cache import lock as cache_lock
from minigpt_jax.cache import written_whole
from minigpt_jax.config import DataConfig, Experiment, to_json
from minigpt_jax.corpora import Corpus
from minigpt_jax.data.batch import Batch
from minigpt_jax.data.rows import CUT, Encoded, Layout, Rows, without_heads
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import Tokenizer

Split = Literal["train", "valid", "test"]
Part = Literal["train", "valid", "test", "finish"]
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
    with cache_lock(folder):
        splits = _open(folder, description, data)
        if splits is None:
            if experiment.tokenizer.file is not None:  # else it was told before the vocabulary was trained
                _tell_kept(corpus, data)
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
    cut = CUT[layout]
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
        # Without `exact` where it is set: what was trained before there was such a field is still found.
        "tokenizer": {k: v for k, v in settings["tokenizer"].items() if (k, v) != ("exact", True)},
        "min_bytes": data.min_bytes if layout == "lines" else None,
    }
    folder = cache / "tokenizers" / _key(description)
    with cache_lock(folder):
        tokenizer = _open_tokenizer(folder, description)
        if tokenizer is None:
            _tell_kept(corpus, data)
            total = sum(1 for _ in documents(corpus, "train", layout, data.min_bytes))
            if not total:
                raise _too_small(data, "train", layout)
            texts = documents(corpus, "train", layout, data.min_bytes)
            texts = track(texts, "training the tokenizer", total)
            with written_whole(folder) as partial:
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
    with written_whole(folder) as partial:
        for part, (split, layout) in _parts(config).items():
            total = sum(1 for _ in documents(corpus, split, layout, config.min_bytes))
            texts = iter(track(documents(corpus, split, layout, config.min_bytes), f"tokenising {part}", total))
            encoded = _encoded(texts, tokenizer, total)
            headless = part == "train" and config.finish > 0
            if headless:
                encoded = without_heads(encoded, length, config.min_bytes)
            count = labels = 0
            with (
                (partial / f"{part}.rows").open("wb") as rows_file,
                (partial / f"{part}.bytes").open("wb") as bytes_file,
            ):
                for rows, sizes in CUT[layout](encoded, length):
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


def _tell_kept(corpus: Corpus, config: DataConfig) -> None:
    """Warns where the layout drops most of the training text."""
    if config.layout == "packed":
        return
    sizes = [len(text.encode()) for text in corpus.documents("train")]
    kept = [size for size in sizes if size > config.min_bytes]
    if kept and 2 * sum(kept) < sum(sizes):
        display.warn(
            f"{len(kept):,} of {len(sizes):,} training documents are longer than --data.min-bytes {config.min_bytes} "
            f"and kept, with {sum(kept) / sum(sizes):.0%} of the text; --data.layout packed uses all of it, as "
            "experiments/text.py does"
        )


def _encoded(texts: Iterator[str], tokenizer: Tokenizer, total: int) -> Iterator[Encoded]:
    """Ids, the bytes of text up to the end of each, and the bytes of the whole, document by document.

    Chunks of documents are encoded by all cores, where there are enough of them to pay for starting processes.
    """
    chunks = iter(lambda: list(itertools.islice(texts, DOCUMENTS_A_CHUNK)), [])
    workers = min(os.cpu_count() or 1, total // DOCUMENTS_A_WORKER + 1)
    work = (joblib.delayed(_encode_chunk)(tokenizer, chunk) for chunk in chunks)
    encoded: Any = joblib.Parallel(workers, return_as="generator")(work)
    yield from itertools.chain.from_iterable(encoded)


def _encode_chunk(tokenizer: Tokenizer, texts: list[str]) -> list[Encoded]:
    encoded = tokenizer.encode_batch_with_ends(texts)
    return [(ids, ends, len(text.encode())) for text, (ids, ends) in zip(texts, encoded, strict=True)]


def _too_small(config: DataConfig, split: Split, layout: Layout, headless: bool = False) -> UserError:
    if headless:
        return UserError(
            f"--data.finish {config.finish}: the heads of the long documents are next to all of the text; drop it"
        )
    if layout == "lines":
        return UserError(
            f"--data.min-bytes {config.min_bytes}: no document of the {split} split is longer; lower it, or take "
            "--data.layout packed, which uses all the text, as experiments/text.py does"
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _key(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:24]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
