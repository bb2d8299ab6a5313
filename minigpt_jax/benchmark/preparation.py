"""How a corpus becomes rows of token ids, here and with Hugging Face `datasets`, and what that costs.

Both sides read the same file of records, encode it with the same tokenizer in as many processes, and write rows of the
same length to disk.
"""

import dataclasses
import importlib
import itertools
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minigpt_jax import tokenizer as tokenizers
from minigpt_jax.config import BOS_ID, DataConfig, Experiment, TokenizerConfig
from minigpt_jax.corpora import Stories, open_corpus
from minigpt_jax.data import store

SEPARATOR = "<|endoftext|>"
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclasses.dataclass(frozen=True)
class Task:
    """What is prepared.

    Attributes:
        text: a file whose documents stand between separators.
        records: a .jsonl file of the same documents.
        tokenizer: the file of the pieces.
        config: the tokenizer's other settings.
        sequence_length: the number of tokens in a window.
        processes: the number of processes that encode.
    """

    text: Path
    records: Path
    tokenizer: Path
    config: TokenizerConfig
    sequence_length: int
    processes: int

    @property
    def experiment(self) -> Experiment:
        data = DataConfig(
            corpus="text", files=(str(self.records),), layout="packed", sequence_length=self.sequence_length
        )
        return Experiment("preparation", data, dataclasses.replace(self.config, file=self.tokenizer))

    @property
    def separated(self) -> Experiment:
        """The experiment that reads the file with separators."""
        data = dataclasses.replace(self.experiment.data, files=(str(self.text),), separator=SEPARATOR)
        return dataclasses.replace(self.experiment, data=data)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a side took.

    Attributes:
        seconds: by the clock.
        cpu_seconds: of all of its processes.
        peak_megabytes: the most memory that its processes had at once, without the pages of mapped files. NaN if the
            system does not tell.
        rows: how many rows it made.
    """

    seconds: float
    cpu_seconds: float
    peak_megabytes: float
    rows: int


def documents(megabytes: float) -> Iterator[str]:
    """Texts of several lines, about as many bytes in all: generated tales whose sentences are shuffled and numbered."""
    rng = random.Random(0)
    tales = list(itertools.islice(Stories(14_000, 0).documents("train"), 14_000))
    size = 0
    while size < 1e6 * megabytes:
        sentences = rng.choice(tales).split(". ")
        rng.shuffle(sentences)
        half = len(sentences) // 2
        text = ". ".join(sentences[:half]) + f".\n{rng.randrange(10**6)}. " + ". ".join(sentences[half:])
        size += len(text.encode())
        yield text


def write(folder: Path, megabytes: float) -> tuple[Path, Path]:
    """Writes the documents into a folder: as a text with separators, and as records."""
    text, records = folder / "text.txt", folder / "records.jsonl"
    with text.open("w") as text_file, records.open("w") as records_file:
        for document in documents(megabytes):
            text_file.write(f"{document}\n{SEPARATOR}\n")
            records_file.write(json.dumps({"text": document}) + "\n")
    return text, records


def ours(experiment: Experiment, folder: Path) -> int:
    """Prepares the corpus of an experiment in an empty cache, and returns the number of rows."""
    prepared = store.prepare(experiment, open_corpus(experiment.data, folder), folder)
    from joblib.externals import loky

    loky.get_reusable_executor().shutdown(wait=True)  # so that the time of its processes is counted
    return sum(len(prepared.splits[split]) for split in store.SPLITS)


def theirs(task: Task, folder: Path) -> int:
    """Does the same with `datasets`, in the way of its examples: encode, then join and cut. Returns the number of rows.

    The end of each batch of documents that does not fill a row is dropped.
    """
    datasets: Any = importlib.import_module("datasets")
    datasets.disable_progress_bars()
    pieces = tokenizers.from_file(task.experiment.tokenizer)
    length = task.sequence_length + 1

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        return {"ids": pieces.encode_batch(batch["text"])}

    def cut(batch: dict[str, list[list[int]]]) -> dict[str, list[Any]]:
        ids = [BOS_ID, *itertools.chain.from_iterable((*document, BOS_ID) for document in batch["ids"])]
        return {"rows": [ids[i : i + length] for i in range(0, len(ids) - length + 1, task.sequence_length)]}

    records: Any = datasets.load_dataset(
        "json", data_files=str(task.records), split="train", cache_dir=str(folder), num_proc=None
    )
    settings: dict[str, Any] = {"batched": True, "num_proc": task.processes}
    encoded = records.map(encode, remove_columns=records.column_names, **settings)
    return len(encoded.map(cut, remove_columns=["ids"], **settings))


def measured(program: str, *arguments: str) -> Cost:
    """What a Python program costs that prints its number of rows, in a process of its own."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    peak = float("nan")
    while process.poll() is None:
        now = sum(map(_anonymous_megabytes, _with_descendants(process.pid)))
        peak = now if not peak >= now else peak
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode or process.stdout is None:
        raise SystemExit("a measuring process failed; what it said stands above")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, cpu, peak or float("nan"), int(process.stdout.read().split()[-1]))


def _with_descendants(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except OSError:  # it has ended
            continue
        for child in found:
            yield from _with_descendants(int(child))


def _anonymous_megabytes(pid: int) -> float:
    """The memory of a process that no file backs, its part of what it shares with others."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1024
