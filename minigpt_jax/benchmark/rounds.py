"""Times contenders in turns, takes medians over several rounds, and writes tables.

On a shared machine, timings that are taken one after another depend on the load at the time. Timings that are taken in
turns, and their ratios, compare the programs.
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
from minigpt_jax.storage.versions import versions


@dataclass
class Timing:
    """The seconds that the calls of a contender took.

    Attributes:
        first: the first call, which includes compilation.
        rounds: each later call.
    """

    first: float
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def alternate(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Times the first call of each contender, then `rounds` rounds of calls in turns. Shows a progress bar.

    The time of a call ends when the JAX arrays in its result are ready.
    """
    timings = {name: Timing(seconds(call)) for name, call in contenders.items()}
    console = display.console
    for _ in track(range(rounds), "timing", console=console, transient=True, disable=not console.is_terminal):
        for name, call in contenders.items():
            timings[name].rounds.append(seconds(call))
    return timings


def seconds(call: Callable[[], Any]) -> float:
    """The time that a call takes, until the JAX arrays in its result are ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def peak_memory() -> float:
    """The peak memory of this process, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # the peak of getrusage is inherited from the parent process
        [peak] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(peak.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts in bytes


def machine() -> dict[str, Any]:
    """The machine and software that timings depend on: processor, cores, accelerator and versions."""
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
    """A table in Markdown. All columns but the first are aligned to the right."""
    rows = [[f"{cell:,.3g}" if isinstance(cell, float) else f"{cell}" for cell in row] for row in rows]
    aligns = ["---" if i == 0 else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), aligns, *rows]) + "\n"


def write(folder: Path, name: str, title: str, tables: Mapping[str, str], figures: Any) -> Path:
    """Writes NAME.md and NAME.json, with a description of the machine, into the folder. Returns the path of NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    described = f"{about['cores']} cores of {about['processor']}, {about['devices']}, "
    described += ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    sections = [f"# {title}", described, *(f"## {heading}\n\n{table}" for heading, table in tables.items())]
    (folder / f"{name}.json").write_text(json.dumps({"machine": about, "figures": figures}, indent=2) + "\n")
    path = folder / f"{name}.md"
    path.write_text("\n\n".join(section.strip() for section in sections) + "\n")
    return path
