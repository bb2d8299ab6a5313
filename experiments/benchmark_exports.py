"""A run's model, timed in this project and in the programs that run its exports: Transformers and llama.cpp.

    ./launch.sh experiments/benchmark_exports.py RUN_DIR

The run has to be of a form that they know, such as `runs/plain`, which README makes under "What you get".

All programs have the same weights in float32 and write greedy texts to the end of the window, from empty prompts. They
take turns; medians count. llama.cpp is called through its Node binding, which `minigpt_jax/benchmark/llama_cpp.py` says
how to install; Transformers is in the extra `huggingface`. What is not installed is left out. Ours is timed as a user
calls it, from texts to texts, the others from ids to ids.
"""

import dataclasses
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from minigpt_jax import display
from minigpt_jax.benchmark import rounds
from minigpt_jax.benchmark.exported import Exported
from minigpt_jax.cli import parser
from minigpt_jax.files import make_folder


@dataclass(frozen=True)
class Arguments:
    """Time runs in this project, Transformers and llama.cpp."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, whose models have to be of an architecture that the others have too."""
    rounds: int = 7
    """Times that each program is timed, in turn with the others."""
    batch_sizes: tuple[int, ...] = (1, 32)
    """Prompts at once."""
    threads: tuple[int, ...] = (1,)
    """Threads of llama.cpp. At the size of these models more of them wait for each other longer than they compute."""
    output: Path = Path("runs/benchmarks")
    """Folder for exports.md and exports.json."""


def main(arguments: list[str]) -> int:
    """Times, prints and writes the tables."""
    chosen: Arguments = parser.parse(Arguments, arguments, "benchmark_exports.py")
    chosen = dataclasses.replace(chosen, output=make_folder(chosen.output, "--output"))
    figures, tables = [], {}
    for run in chosen.runs:
        for batch in chosen.batch_sizes:
            with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                exported = Exported(run, Path(folder), stack)
                found = timed(exported, run.name, batch, chosen)
            figures += found
            title = f"{run.name}, {batch} {'prompt' if batch == 1 else 'prompts'} at once"
            tables[title] = rounds.markdown_table(
                ["program", "seconds", "tokens a second", "times ours", "tokens equal to ours"],
                [
                    [one["program"], one["seconds"], f"{one['tokens_per_second']:,.0f}", one["ratio"], one["equal"]]
                    for one in found
                ],
            )
    path = rounds.write(chosen.output, "exports", "Exported models", tables, figures)
    display.console.print(path.read_text(), markup=False)
    return 0


def timed(exported: Exported, name: str, batch: int, chosen: Arguments) -> list[dict[str, Any]]:
    """The figures of each program."""
    contenders = exported.contenders(batch, tuple(dict.fromkeys(chosen.threads)))
    texts = {program: call() for program, call in contenders.items()}
    timings = rounds.alternate(contenders, chosen.rounds)
    ours = timings["minigpt_jax"].median
    return [
        {
            "run": name,
            "batch": batch,
            "program": program,
            "seconds": timing.median,
            "tokens_per_second": sum(map(len, texts[program])) / timing.median,
            "ratio": timing.median / ours,
            "equal": equal_until(texts[program][0], texts["minigpt_jax"][0]),
            "rounds": timing.rounds,
        }
        for program, timing in timings.items()
    ]


def equal_until(one: list[int], other: list[int]) -> int:
    """How many tokens two texts begin with in common. Ours never samples the end of a text, which others may."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
