"""Timing side by side: all contenders in turns, medians of several rounds, and the table that comes of it.

On a machine that others use too, figures taken one after another compare hours of the day; figures taken in turns, and
their ratios, compare programs.
"""

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from rich.progress import track

from minigpt_jax import display
from minigpt_jax.trial.environment import versions


@dataclass
class Timing:
    """Seconds that a contender took.

    Attributes:
        first: the first call, compilation included.
        rounds: each later one.
    """

    first: float
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def alternate(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Times each contender's first call, then all of them in turn, `rounds` times over, with a bar.

    A contender returns what it has made; the clock stops once JAX's arrays in it are there.
    """
    timings = {name: Timing(seconds(call)) for name, call in contenders.items()}
    console = display.console
    for _ in track(range(rounds), "timing", console=console, transient=True, disable=not console.is_terminal):
        for name, call in contenders.items():
            timings[name].rounds.append(seconds(call))
    return timings


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes, until JAX's arrays in what it returns are there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def peak_memory() -> float:
    """Most memory that this process has held, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak is taken over from the parent process
        [peak] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(peak.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts in bytes


def machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, accelerator, versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": versions(),
    }


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; numbers are aligned right."""
    rows = [[f"{cell:,.3g}" if isinstance(cell, float) else f"{cell}" for cell in row] for row in rows]
    aligns = ["---" if i == 0 else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), aligns, *rows]) + "\n"


def write(folder: Path, name: str, title: str, tables: Mapping[str, str], figures: Any) -> Path:
    """Writes NAME.md and NAME.json into the folder, the machine with them; returns the former's path."""
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    described = f"{about['cores']} cores of {about['processor']}, {about['devices']}, "
    described += ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    sections = [f"# {title}", described, *(f"## {heading}\n\n{table}" for heading, table in tables.items())]
    (folder / f"{name}.json").write_text(json.dumps({"machine": about, "figures": figures}, indent=2) + "\n")
    path = folder / f"{name}.md"
    path.write_text("\n\n".join(section.strip() for section in sections) + "\n")
    return path
