"""How training scales: steps and examples per second by devices and processes, and where the time of a step goes.

./launch.sh experiments/benchmark_scaling.py
./launch.sh experiments/benchmark_scaling.py --width 768 --num-layers 12 --batch-size 64    # on an accelerator

Each configuration is a process of its own, and rounds of all of them alternate, so that a machine that slows down does
so for all; medians are reported. On a CPU the devices are simulated: they share its cores, so more of them show the
cost of communication and no speed-up. The batches lie in memory, so no TensorFlow is needed. Writes a table and JSON
into runs/benchmarks.
"""

import dataclasses
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIGURATIONS = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2))
"""(devices a process, processes), where devices are simulated."""


@dataclass(frozen=True)
class Arguments:
    """Measure training on 1, 2, 4 and 8 devices and in 1 and 2 processes."""

    steps: int = 40
    """Steps that are timed in each round, after as many as one dispatch for compilation."""
    rounds: int = 3
    """Rounds over all configurations."""
    batch_size: int = 16
    """Rows in a global batch."""
    sequence_length: int = 128
    """Tokens in a row."""
    num_layers: int = 2
    """Decoder blocks."""
    width: int = 64
    """Width of the residual stream."""
    num_heads: int = 4
    """Attention heads."""
    feed_forward: int = 256
    """Hidden width of the feed-forward layer."""
    vocabulary_size: int = 1000
    """Rows of the embedding."""
    dispatches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """On an accelerator: the numbers of steps per dispatch to compare."""
    output: Path = Path("runs/benchmarks")
    """Folder of the table and the JSON."""


def main(arguments: list[str]) -> int:
    """Runs all configurations and writes the table; returns the exit status."""
    from minigpt_jax.cli import parser
    from minigpt_jax.files import make_folder

    chosen: Arguments = parser.parse(Arguments, arguments, "minigpt benchmark_scaling.py")
    chosen = dataclasses.replace(chosen, output=make_folder(chosen.output, "--output"))
    shown = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.default_backend(), jax.device_count())"],
        capture_output=True,
        text=True,
        check=True,
    )
    backend, count = shown.stdout.split()[-2:]
    simulated = backend == "cpu"
    cases = [(*case, 1) for case in CONFIGURATIONS] if simulated else [(int(count), 1, n) for n in chosen.dispatches]
    rounds: dict[tuple[int, int, int], list[dict[str, float]]] = {case: [] for case in cases}
    for number, case in itertools.product(range(chosen.rounds), cases):
        print(f"round {number + 1}: {case[1]} × {case[0]} devices, {case[2]} steps a dispatch", flush=True)
        rounds[case].append(_measure(chosen, *case, simulated))
    rows = [
        {"devices": devices, "processes": processes, "steps_per_execution": together}
        | {name: statistics.median(one[name] for one in measured) for name in measured[0]}
        for (devices, processes, together), measured in rounds.items()
    ]
    table = _table(rows)
    print("\n" + table)
    (chosen.output / "scaling.md").write_text(table)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(chosen).items()}
    result = {"backend": backend, "settings": settings, "rows": rows}
    (chosen.output / "scaling.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {chosen.output}/scaling.md and scaling.json")
    return 0


def _measure(chosen: Arguments, devices: int, processes: int, together: int, simulated: bool) -> dict[str, float]:
    """One round of one configuration, in processes of its own; the figures are those of the first."""
    environment = dict(os.environ)
    if simulated:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    settings = {name: value for name, value in dataclasses.asdict(chosen).items() if name != "output"}
    program = f"import runpy; runpy.run_path({str(Path(__file__).resolve())!r})['_worker']()"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(settings), str(together), address, str(processes), str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a measuring process failed; what it said stands above")
    return json.loads(outputs[0].splitlines()[-1])


def _worker() -> None:
    """Times the trainer's own steps on rows in memory, and prints the figures as JSON."""
    settings, together, address, processes, number = sys.argv[1:]
    chosen, size = Arguments(**json.loads(settings)), int(together)
    import jax
    import numpy as np

    if int(processes) > 1:
        jax.distributed.initialize(address, int(processes), int(number))
    from minigpt_jax.benchmark import rounds
    from minigpt_jax.config import DataConfig, Experiment, ModelConfig, TokenizerConfig
    from minigpt_jax.data.batch import Batch
    from minigpt_jax.parallel import devices
    from minigpt_jax.train.program import DataParallel

    shape = {name: getattr(chosen, name) for name in ("num_layers", "width", "num_heads", "feed_forward")}
    experiment = Experiment(
        "benchmark",
        data=DataConfig(sequence_length=chosen.sequence_length, layout="packed"),
        tokenizer=TokenizerConfig(vocabulary_size=chosen.vocabulary_size),
        model=ModelConfig(**shape),
    )
    devices.check_batch_size(chosen.batch_size)
    program = DataParallel(experiment)
    inputs = program.inputs(experiment, chosen.steps)
    state = program.init(inputs)
    share = chosen.batch_size // jax.process_count()
    draws = np.random.default_rng(int(number))

    def stream() -> Iterator[Batch]:
        while True:
            rows = draws.integers(3, chosen.vocabulary_size, (share, chosen.sequence_length + 1), np.uint16)
            sizes = np.full(share, 4 * chosen.sequence_length, np.int32)
            yield Batch(rows, sizes, np.full(share, chosen.sequence_length + 1, np.int32))

    streams = [stream()]
    state, out = program.steps(state, inputs, program.draw(streams, size), size)  # compiles
    jax.block_until_ready(out)
    spent = {"input": 0.0, "dispatch": 0.0, "compute": 0.0}
    dispatches = max(1, chosen.steps // size)
    begun = mark = time.perf_counter()
    pending = out

    def lap(name: str) -> None:
        nonlocal mark
        now = time.perf_counter()
        spent[name] += now - mark
        mark = now

    for _ in range(dispatches):  # as `fit` does: a dispatch is queued before the one before it is fetched
        batches = program.draw(streams, size)
        lap("input")
        state, out = program.steps(state, inputs, batches, size)
        lap("dispatch")
        program.fetch(pending, size)
        lap("compute")
        pending = out
    program.fetch(pending, size)
    lap("compute")
    steps, seconds = dispatches * size, time.perf_counter() - begun
    stats = jax.local_devices()[0].memory_stats() or {}
    figures = {
        "steps_per_second": steps / seconds,
        "examples_per_second": steps * chosen.batch_size / seconds,
        "tokens_per_second": steps * chosen.batch_size * chosen.sequence_length / seconds,
        **{f"{name}_ms": 1000 * value / steps for name, value in spent.items()},
        "host_memory_mb": rounds.peak_memory(),
        "device_memory_mb": stats.get("peak_bytes_in_use", 0) / 2**20,
    }
    print(json.dumps(figures))


def _table(rows: list[dict[str, float]]) -> str:
    from minigpt_jax.benchmark.rounds import markdown_table

    names = list(rows[0])
    cells = [[f"{row[name]:,.2f}" if isinstance(row[name], float) else row[name] for name in names] for row in rows]
    return markdown_table([name.replace("_", " ") for name in names], cells)
