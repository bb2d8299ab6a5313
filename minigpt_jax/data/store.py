"""The token store: a corpus is tokenised once and stored on disk, as a matrix of rows for each split.

This module does not need TensorFlow.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from minigpt_jax import display, files
from minigpt_jax import tokenizer as tokenizers
from minigpt_jax.cache import atomic_folder
from minigpt_jax.cache import lock as cache_lock
from minigpt_jax.config import DataConfig, Experiment, Layout, TokenizerConfig, flatten, options
from minigpt_jax.corpora import SPLITS, Corpus, Split, document_bytes
from minigpt_jax.data.batch import Batch
from minigpt_jax.data.encoding import encode, encode_all
from minigpt_jax.data.rows import CUT, Rows, without_prefixes, zero_padded_lengths
from minigpt_jax.errors import UserError
from minigpt_jax.tokenizer import Tokenizer

Part = Literal["train", "valid", "test", "anneal"]
FORMAT = 1

BatchSource = Callable[..., Iterator[Batch]]
"""A function such as `pipeline.batches`: (rows, batch_size, seed, start, process_index, process_count) → batches."""
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""A function (items, title, number of items) → items that shows the progress of the iteration under a title."""


def no_progress(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """A `Track` that does not show anything."""
    del title, total
    return items


@dataclass(frozen=True)
class Prepared:
    """A corpus that is ready for training: its tokenizer and the rows of each split.

    With `data.anneal_fraction`, the part `anneal` has the prefixes of long training documents, on which the last steps
    train, and `train` has the text without these prefixes.
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
        """Training batches from number `start`, drawn by `source`. The last ones come from `anneal`, if it exists."""
        rest = (process_index, process_count)
        size, seed = experiment.train.batch_size, experiment.seed
        fraction = experiment.data.anneal_fraction
        switch = total_steps - max(1, round(fraction * total_steps)) if fraction else total_steps
        if switch == total_steps:
            return source(self.splits["train"], size, seed, start, *rest)
        first = source(self.splits["train"], size, seed, start, *rest) if start < switch else iter(())
        last = source(self.splits["anneal"], size, seed, max(0, start - switch), *rest)
        return itertools.chain(itertools.islice(first, max(0, switch - start)), last)


def prepare(
    experiment: Experiment, corpus: Corpus, cache: Path, track: Track = no_progress, tokenizer: Tokenizer | None = None
) -> Prepared:
    """Trains the tokenizer and tokenises the corpus, or reads both from `cache` if they are there and undamaged.

    Args:
        tokenizer: takes the place of the experiment's tokenizer, if given.

    Raises:
        UserError: the corpus is too small for one row, or for the vocabulary.
    """
    data, trained = experiment.data, tokenizer is None and _is_trained(experiment.tokenizer)
    if tokenizer is None:
        tokenizer = _tokenizer(experiment, corpus, cache, track)
    experiment = tokenizers.with_tokenizer(experiment, tokenizer)
    description = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        **keyed(experiment, "store"),
    }
    folder = cache / "stores" / _key(description)
    with cache_lock(folder):
        splits = _open(folder, description, data)
        if splits is None:
            if not trained:  # otherwise the warning came before the vocabulary was trained
                _warn_of_dropped_text(corpus, data)
            _build(folder, description, data, corpus, tokenizer, track)
            splits = _open(folder, description, data)
        assert splits is not None, f"the store that was just written to {folder} is damaged"
    return Prepared(tokenizer, splits)


def keyed(experiment: Experiment, cache: Literal["tokenizer", "store"]) -> dict[str, Any]:
    """The fields on which a cached tokenizer or store depends (`Facts.caches`): the part of its key beside the text.

    Values that give the same rows have the same key. The names in it are those of the first version, so that older
    caches are still found.
    """
    data, values = experiment.data, flatten(experiment)
    values["tokenizer.vocabulary_size"] = experiment.tokenizer.size
    fields = {
        option.name: values[option.name]
        for option in options(experiment)
        if cache in option.facts.caches and not (option.facts.newer and option.value == option.default)
    }
    held_out = data.layout_of("valid")
    if "lines" not in ((held_out,) if cache == "tokenizer" else (data.layout, held_out)):
        fields["data.min_bytes"] = None
    if cache == "tokenizer":
        pieces = {name.partition(".")[2]: fields.pop(name) for name in list(fields) if name.startswith("tokenizer.")}
        return {"tokenizer": pieces} | {name.partition(".")[2]: value for name, value in fields.items()}
    del fields["data.layout"], fields["data.evaluation_layout"], fields["data.anneal_fraction"]
    return {
        "layouts": [layout for _, layout in _parts(data).values()],
        "row_length": fields.pop("data.sequence_length") + 1,
        "dtype": np.min_scalar_type(fields.pop("tokenizer.vocabulary_size") - 1).name,
    } | {name.partition(".")[2]: value for name, value in fields.items()}


def _parts(data: DataConfig) -> dict[Part, tuple[Split, Layout]]:
    """The parts of a store: for each its split and its layout."""
    parts: dict[Part, tuple[Split, Layout]] = {split: (split, data.layout_of(split)) for split in SPLITS}
    if data.anneal_fraction:
        parts["anneal"] = "train", data.layout_of("valid")
    return parts


def documents(corpus: Corpus, split: Split, layout: Layout, min_bytes: int) -> Iterator[str]:
    """The documents that a layout uses: "lines" only those of more than `min_bytes` bytes, the others all."""
    texts = corpus.documents(split)
    return (text for text in texts if _is_used(text, layout, min_bytes))


def _used_sizes(corpus: Corpus, split: Split, layout: Layout, min_bytes: int) -> np.ndarray:
    """The UTF-8 bytes of each document that a layout uses [number of documents]."""
    all_sizes = document_bytes(corpus, split)
    return all_sizes[all_sizes > min_bytes] if layout == "lines" else all_sizes


def _is_used(text: str, layout: Layout, min_bytes: int) -> bool:
    return layout != "lines" or len(text.encode()) > min_bytes


def tokenise(texts: Iterable[str], experiment: Experiment, tokenizer: Tokenizer, source: str) -> Rows:
    """Cuts any texts into rows, in memory, in the layout of the experiment. `source` names them in an error.

    Raises:
        UserError: the layout uses none of the texts.
    """
    data, layout = experiment.data, experiment.data.layout_of("valid")
    used = [text for text in texts if _is_used(text, layout, data.min_bytes)]
    cut = CUT[layout]
    encoded = iter(encode(tokenizer, used))
    parts = list(cut(encoded, data.sequence_length + 1, tokenizer.special)) if used else []
    if not sum(len(rows) for rows, *_ in parts):
        least = "" if layout != "lines" else f", as this run uses only lines of more than {data.min_bytes} bytes"
        raise UserError(f"{source}: there is no text to evaluate{least}; give more text")
    rows, sizes, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
    dtype = np.min_scalar_type(experiment.tokenizer.rows - 1)
    return Rows(rows.astype(dtype), sizes.astype(np.int32), lengths.astype(np.int32))


def _tokenizer(experiment: Experiment, corpus: Corpus, cache: Path, track: Track) -> Tokenizer:
    config = experiment.tokenizer
    if config.file is not None:
        tokenizer = tokenizers.from_file(config)
        if isinstance(tokenizer, tokenizers.HuggingFace):
            display.console.print(f"--tokenizer.file {config.file}: {tokenizers.summary(tokenizer)}")
        return tokenizer
    if not _is_trained(config):
        return tokenizers.byte()
    data, layout = experiment.data, experiment.data.layout_of("valid")
    description = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        **keyed(experiment, "tokenizer"),
    }
    folder = cache / "tokenizers" / _key(description)
    with cache_lock(folder):
        tokenizer = _open_tokenizer(folder, description)
        if tokenizer is None:
            _warn_of_dropped_text(corpus, data)
            total = len(_used_sizes(corpus, "train", layout, data.min_bytes))
            if not total:
                raise _too_small(data, "train", layout)
            texts = documents(corpus, "train", layout, data.min_bytes)
            texts = track(texts, "training the tokenizer", total)
            with atomic_folder(folder) as partial:
                tokenizer = tokenizers.train(config, texts)
                tokenizer.save(partial)
                (partial / "description.json").write_text(
                    json.dumps({**description, "fingerprint": tokenizer.fingerprint}, indent=2)
                )
    return tokenizer


def _is_trained(config: TokenizerConfig) -> bool:
    """Whether the pieces depend on the training text."""
    return config.file is None and config.kind != "byte"


def _open_tokenizer(folder: Path, description: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer in `folder`, or None if it is missing or damaged."""
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
    with atomic_folder(folder) as partial:
        for part, (split, layout) in _parts(config).items():
            used = _used_sizes(corpus, split, layout, config.min_bytes)
            texts = iter(track(documents(corpus, split, layout, config.min_bytes), f"tokenising {part}", len(used)))
            encoded = encode_all(texts, tokenizer, int(used.sum(dtype=np.int64)))
            cut_prefixes = part == "train" and config.anneal_fraction > 0
            if cut_prefixes:
                encoded = without_prefixes(encoded, length, config.min_bytes)
            count = labels = 0
            with (
                (partial / f"{part}.rows").open("wb") as rows_file,
                (partial / f"{part}.bytes").open("wb") as bytes_file,
                (partial / f"{part}.lengths").open("wb") as lengths_file,
            ):
                for rows, sizes, lengths in CUT[layout](encoded, length, tokenizer.special):
                    rows_file.write(rows.astype(dtype).tobytes())
                    bytes_file.write(sizes.astype(np.int32).tobytes())
                    lengths_file.write(lengths.astype(np.int32).tobytes())
                    count += len(rows)
                    labels += int(lengths.sum()) - len(rows)
            if not count or (part == "train" and layout == "packed" and labels < length - 1):
                raise _too_small(config, split, layout, cut_prefixes)
            meta["splits"][part] = {
                "rows": count,
                "sha256": {kind: files.sha256(partial / f"{part}.{kind}") for kind in ("rows", "bytes", "lengths")},
                "floor": corpus.floor(split) if layout != "lines" and not cut_prefixes else None,
            }
        (partial / "meta.json").write_text(json.dumps(meta, indent=2))


def _warn_of_dropped_text(corpus: Corpus, config: DataConfig) -> None:
    """Warns if the layout drops more than half of the training text."""
    if config.layout != "lines":
        return
    present = document_bytes(corpus, "train")
    used = present[present > config.min_bytes]
    share = used.sum(dtype=np.int64) / max(1, present.sum(dtype=np.int64))
    if 0 < share < 0.5:
        display.warn(
            f"only {len(used):,} of {len(present):,} training documents, with {share:.0%} of the text, are longer than "
            f"--data.min-bytes {config.min_bytes} and used; --data.layout packed uses all of the text, "
            "as experiments/text.py does"
        )


def _too_small(config: DataConfig, split: Split, layout: Layout, cut_prefixes: bool = False) -> UserError:
    if cut_prefixes:
        return UserError(
            f"--data.anneal-fraction {config.anneal_fraction}: the prefixes of long documents are almost all of the "
            "text, which leaves too little for the other steps; set it to 0"
        )
    if layout == "lines":
        return UserError(
            f"--data.min-bytes {config.min_bytes}: no document of the {split} split is longer; lower it, or use "
            "--data.layout packed, which uses all the text, as experiments/text.py does"
        )
    if split == "train" and layout == "packed":  # of which an incomplete window is left out
        return UserError(
            f"--data.sequence-length {config.sequence_length}: the {split} split is shorter than one window; "
            "give more text or a shorter window"
        )
    return UserError(f"the {split} split has no documents; give it at least one")


def _open(folder: Path, description: dict[str, Any], data: DataConfig) -> dict[Part, Rows] | None:
    """The rows in `folder`, or None if the store is missing, damaged or of another description."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["description"] != description:
            return None
        splits: dict[Part, Rows] = {}
        for part in _parts(data):
            about = meta["splits"][part]
            if any(files.sha256(folder / f"{part}.{kind}") != total for kind, total in about["sha256"].items()):
                return None
            shape = (about["rows"], description["row_length"])
            rows = np.memmap(folder / f"{part}.rows", np.dtype(description["dtype"]), mode="r", shape=shape)
            sizes = np.memmap(folder / f"{part}.bytes", np.int32, mode="r", shape=shape[:1])
            if "lengths" in about["sha256"]:
                lengths = np.memmap(folder / f"{part}.lengths", np.int32, mode="r", shape=shape[:1])
            else:  # a store of an earlier version
                lengths = zero_padded_lengths(rows)
            splits[part] = Rows(rows, sizes, lengths, about["floor"])
        return splits
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _key(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:24]
