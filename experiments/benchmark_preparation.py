"""How fast a corpus is prepared, and in how much memory, beside Hugging Face `datasets` with the same tokenizer.

./launch.sh experiments/benchmark_preparation.py                     # a gigabyte
./launch.sh experiments/benchmark_preparation.py --megabytes 50

Text of several lines a document is generated, and prepared three times, each time in a process of its own: from records
with `datasets` (load, map to ids, map to rows; skipped unless the extra `compare` is installed), from the same records
by this project (splits, ids, rows, bytes of each row and checksums), and from a text with separators. Writes a table
and JSON into runs/benchmarks.
"""

import dataclasses
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_PROGRAM = """
import pickle, sys
from pathlib import Path
from minigpt_jax.benchmark import preparation
task, folder = pickle.loads(Path(sys.argv[2]).read_bytes()), Path(sys.argv[3])
if sys.argv[1] == "datasets":
    print(preparation.theirs(task, folder))
else:
    print(preparation.ours(task.experiment if sys.argv[1] == "records" else task.separated, folder))
"""


@dataclass(frozen=True)
class Arguments:
    """Measure the preparation of a corpus, from its text to rows on disk."""

    megabytes: float = 1000
    """Text to prepare."""
    kind: Literal["wordpiece", "unigram", "bpe"] = "bpe"
    """The tokenizer, which is trained on a tenth of the text, at most 20 MB, beforehand."""
    vocabulary_size: int = 1000
    """Its pieces."""
    sequence_length: int = 128
    """Tokens in a window."""
    processes: int = os.cpu_count() or 1
    """Processes in which `datasets` encodes; this project takes one for each core."""
    output: Path = Path("runs/benchmarks")
    """Folder of the table and the JSON."""


def main(arguments: list[str]) -> int:
    """Prepares the text with each side and writes the table; returns the exit status."""
    import importlib.util
    import pickle

    from minigpt_jax import display, tokenizer
    from minigpt_jax.benchmark import preparation, rounds
    from minigpt_jax.cli import parser
    from minigpt_jax.config import TokenizerConfig
    from minigpt_jax.files import make_folder

    chosen: Arguments = parser.parse(Arguments, arguments, "minigpt benchmark_preparation.py")
    chosen = dataclasses.replace(chosen, output=make_folder(chosen.output, "--output"))
    sides = {"records": "minigpt_jax, records", "text": "minigpt_jax, a text with separators"}
    if importlib.util.find_spec("datasets"):
        sides = {"datasets": "datasets, records", **sides}
    costs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, records = preparation.write(folder, chosen.megabytes)
        config = TokenizerConfig(kind=chosen.kind, vocabulary_size=chosen.vocabulary_size, exact=False)
        sample = preparation.documents(min(20, chosen.megabytes / 10))
        tokenizer.train(config, sample).save(folder / "tokenizer")
        [pieces] = [path for path in (folder / "tokenizer").iterdir() if path.suffix in (".model", ".txt")]
        task = preparation.Task(text, records, pieces, config, chosen.sequence_length, chosen.processes)
        (folder / "task").write_bytes(pickle.dumps(task))
        for side, title in sides.items():
            display.console.print(f"{title} …")
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                costs[title] = preparation.measured(_PROGRAM, side, str(folder / "task"), cache)
    table = rounds.markdown_table(
        ["", "seconds", "MB a second", "CPU seconds", "peak memory, MB", "rows"],
        [
            [title, cost.seconds, chosen.megabytes / cost.seconds, cost.cpu_seconds, cost.peak_megabytes, cost.rows]
            for title, cost in costs.items()
        ],
    )
    figures = {title: dataclasses.asdict(cost) for title, cost in costs.items()}
    heading = f"{chosen.megabytes:,.0f} MB of text, {chosen.kind}, {chosen.processes} processes"
    path = rounds.write(chosen.output, "preparation", "Preparing a corpus", {heading: table}, figures)
    display.console.print(path.read_text(), markup=False)
    return 0
