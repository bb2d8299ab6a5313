"""The tutorial's KerasHub and this project, stage by stage: one machine, one corpus, one vocabulary, in turns.

    ./launch.sh experiments/compare_kerashub.py --data.archive simplebooks.zip
    ./launch.sh experiments/compare_kerashub.py --data.archive simplebooks.zip --stages step samplers --rounds 5

Stages: `vocabulary` and `tokenisation` (of all lines); `input` (an epoch of batches, once the first is over); `step`,
`evaluation` and `memory` (the reference configuration, same weights, same batches; a step also against its matrix
products alone); `samplers` (one prompt, 127 tokens, the tutorial's own way); `cold` (a new process, from its start to
the first sample); `perplexity` (both trained from the same weights on the same batches for --epochs, and then --fast in
a new process, with nothing cached, to time how soon it reaches the reference's final perplexity). What compiles is
called once before it is timed, and that call is reported apart. Writes compare_kerashub.md and .json. It needs the
extra `compare`.
"""

import dataclasses
import functools
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import joblib
import numpy as np

from minigpt_jax import corpora, display, tokenizer
from minigpt_jax.benchmark import kerashub, matmuls, rounds, sampling, tokenisation, tutorial
from minigpt_jax.benchmark.comparison import OURS, SIZE, THEIRS, Bench, Row, row, timed
from minigpt_jax.cli import parser
from minigpt_jax.config import DataConfig, Experiment, flag_name
from minigpt_jax.data import pipeline
from minigpt_jax.data.batch import Batch
from minigpt_jax.data.rows import zero_padded_lengths
from minigpt_jax.files import make_folder
from minigpt_jax.parallel import devices
from minigpt_jax.storage.run_dir import RunDir, read_metrics
from minigpt_jax.train import evaluate
from minigpt_jax.train.program import DataParallel
from minigpt_jax.trial.run import run

STEPS_A_ROUND = 3
WHAT_TEXT = (
    "corpus archive simplebooks files document separator text_field held_out stories stories_seed min_bytes".split()
)
"""Those of the fields of `DataConfig` that say which documents there are."""


@dataclass(frozen=True)
class Arguments:
    """Compare KerasHub's tutorial with this project, stage by stage."""

    data: DataConfig = field(default_factory=DataConfig)
    stages: tuple[str, ...] = (
        "vocabulary",
        "tokenisation",
        "input",
        "step",
        "evaluation",
        "memory",
        "samplers",
        "cold",
        "perplexity",
    )
    """What to compare."""
    rounds: int = 3
    """Times that each side is timed, in turn with the other; the median counts. The vocabulary is trained once."""
    epochs: int = 1
    """perplexity: epochs of the reference, on either side."""
    fast: Path = Path("experiments/simplebooks_fast.py")
    """perplexity: the experiment of this project that is to reach the reference's last perplexity sooner."""
    output: Path = Path("runs/benchmarks")
    """Folder for compare_kerashub.md and compare_kerashub.json."""


def main(arguments: list[str]) -> int:
    """Runs the stages, prints each line as it comes and writes the table."""
    chosen: Arguments = parser.parse(Arguments, arguments, "compare_kerashub.py")
    chosen = dataclasses.replace(chosen, output=make_folder(chosen.output, "--output"))
    table: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(chosen.data, Path(folder))
        for name in chosen.stages:
            for line in STAGES[name](bench, chosen):
                table.append(line)
                display.console.print(
                    f"{line.stage}: {THEIRS} {line.theirs:.4g} · {OURS} {line.ours:.4g} {line.unit} · "
                    f"ratio {line.ratio:.3g}"
                )
                _write(chosen, table)
    display.console.print((chosen.output / "compare_kerashub.md").read_text(), markup=False)
    return 0


def _write(chosen: Arguments, table: list[Row]) -> None:
    cells = [
        [line.stage, line.unit, line.theirs, line.ours, line.ratio, line.theirs_first or "", line.ours_first or ""]
        for line in table
    ]
    header = ["stage", "unit", THEIRS, OURS, "ratio", f"first call, {THEIRS}", f"first call, {OURS}"]
    tables = {"Stages": rounds.markdown_table(header, cells)}
    figures = [dataclasses.asdict(line) for line in table]
    rounds.write(chosen.output, "compare_kerashub", "KerasHub's tutorial and minigpt_jax", tables, figures)


def _vocabulary(bench: Bench, chosen: Arguments) -> Iterator[Row]:
    texts = [text for text in bench.corpus.documents("train") if len(text.encode()) > tutorial.MIN_STRING_LEN]
    ours = rounds.seconds(functools.partial(tokenizer.train, bench.experiment.tokenizer, texts))
    theirs = bench.their_vocabulary_seconds
    yield Row("vocabulary training", "s", theirs, ours, theirs / ours)


def _tokenisation(bench: Bench, chosen: Arguments) -> Iterator[Row]:
    """By all cores on both sides: threads of tf.data, and processes, as the token store is made."""
    texts, pieces = list(bench.corpus.documents("train")), bench.prepared.tokenizer
    workers, chunks = joblib.Parallel(-1), [texts[i : i + 4096] for i in range(0, len(texts), 4096)]
    contenders = {
        THEIRS: lambda: tutorial.tokenise(bench.lines, bench.pieces),
        OURS: lambda: workers(joblib.delayed(tokenisation.flat_ids)(pieces, chunk) for chunk in chunks),
    }
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    yield timed("tokenisation", "MB a second", contenders, chosen.rounds, megabytes)


def _input(bench: Bench, chosen: Arguments) -> Iterator[Row]:
    steps = bench.prepared.splits["train"].steps_per_epoch(SIZE)
    stream = bench.batches()
    contenders = {
        THEIRS: lambda: sum(1 for _ in tutorial.batches(bench.lines, bench.pieces)),
        OURS: lambda: sum(1 for _ in itertools.islice(stream, steps)),
    }
    yield timed("input, after the first epoch", "batches a second", contenders, chosen.rounds, steps)


def _step(bench: Bench, chosen: Arguments) -> Iterator[Row]:
    keras = kerashub.tutorial_model(seed=0)
    state, step = bench.start(kerashub.from_keras(keras), total_steps=1)
    stream = bench.batches()

    def ours() -> Any:
        nonlocal state
        for batch in itertools.islice(stream, STEPS_A_ROUND):
            state, out = step(state, batch)
        return out

    rows = bench.rows(stream, STEPS_A_ROUND)
    contenders = {
        THEIRS: lambda: tutorial.fit(keras, rows),
        OURS: ours,
        "products": matmuls.of_train_step(bench.experiment),
    }
    timings = rounds.alternate(contenders, chosen.rounds)
    yield row("train step", "steps a second", timings, STEPS_A_ROUND)
    over = [timings[side].median / STEPS_A_ROUND / timings["products"].median for side in (THEIRS, OURS)]
    yield Row("train step over its matrix products alone", "times", over[0], over[1], over[0] / over[1])


def _evaluation(bench: Bench, chosen: Arguments) -> Iterator[Row]:
    keras = kerashub.tutorial_model(seed=0)
    weights = devices.put_replicated(kerashub.from_keras(keras))
    contenders = {
        THEIRS: lambda: tutorial.perplexity(keras, bench.valid),
        OURS: lambda: evaluate.evaluate(bench.gpt, weights, bench.prepared.splits["valid"], SIZE).perplexity,
    }
    yield timed("evaluation of the validation split", "s", contenders, chosen.rounds)


def _samplers(bench: Bench, chosen: Arguments) -> Iterator[Row]:
    lm = sampling.language_model(Experiment("reference"), sampling.weights_of_kerashub())
    for method in sampling.METHODS:
        theirs = sampling.of_kerashub(method, batch=1)
        way = f"{THEIRS}, the tutorial's way"  # which hands on no hidden states for contrastive search
        contenders = {
            THEIRS: theirs.get(way) or theirs[f"{THEIRS}, cached"],
            OURS: functools.partial(sampling.ours, lm, method, 1),
        }
        name = f"sampling, {method}" + ("" if way in theirs else " (KerasHub with a cache)")
        yield timed(name, "tokens a second", contenders, chosen.rounds, sampling.NEW)


FIRST_SAMPLE = """
import sys
from minigpt_jax.benchmark import kerashub
keras = kerashub.tutorial_model(seed=0)
keras.load_weights(sys.argv[1])
import numpy as np
prompt = np.zeros((1, kerashub.SEQ_LEN), np.int32)
prompt[0, 0] = 2
kerashub.tutorial_generate(keras, kerashub.keras_hub.samplers.TopKSampler(k=10), 1)(prompt)
"""


def _cold(bench: Bench, chosen: Arguments) -> Iterator[Row]:
    """Both from weights on disk to a top-k sample; ours with an empty cache of compiled programs, then a full one."""
    weights = bench.folder / "keras.weights.h5"
    kerashub.tutorial_model(seed=0).save_weights(weights)
    run_dir = bench.folder / "run"
    once = dataclasses.replace(bench.experiment, train=dataclasses.replace(bench.experiment.train, steps=1))
    run(once, run_dir, prepared=bench.prepared, batches=pipeline.batches)
    sample = ["-m", "minigpt_jax", "sample", str(run_dir), "--sampler", "top_k", "--k", "10", "--json"]

    def seconds(words: list[str], cache: str) -> float:
        command, environment = [sys.executable, *words], bench.environment(cache)
        return rounds.seconds(
            functools.partial(subprocess.run, command, check=True, env=environment, stdout=subprocess.DEVNULL)
        )

    theirs, cold, warm = [], [], []
    for i in range(chosen.rounds):
        theirs.append(seconds(["-c", FIRST_SAMPLE, str(weights)], "none"))
        cold.append(seconds(sample, f"cache-{i}"))
        warm.append(seconds(sample, f"cache-{i}"))
    middle = [float(np.median(times)) for times in (theirs, cold, warm)]
    yield Row("first sample, from a cold start", "s", middle[0], middle[1], middle[0] / middle[1])
    yield Row("first sample, a second start", "s", middle[0], middle[2], middle[0] / middle[2])


def _memory(bench: Bench, chosen: Arguments) -> Iterator[Row]:
    """Peak memory of a process that trains on batches made beforehand, the interpreter and libraries included."""
    path = bench.folder / "rows.npy"
    np.save(path, bench.rows(bench.batches(), STEPS_A_ROUND))
    program = f"import runpy; runpy.run_path({str(Path(__file__).resolve())!r})['train_and_tell']"
    peaks = []
    for side in (THEIRS, OURS):
        words = [sys.executable, "-c", f"{program}({side!r}, {str(path)!r})"]
        shown = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        peaks.append(float(shown.stdout.splitlines()[-1]))
    theirs, ours = peaks
    yield Row("peak memory of training", "MB", theirs, ours, theirs / ours)


def train_and_tell(side: str, path: str) -> None:
    """Trains on the rows of a file in this process, and prints its peak in megabytes."""
    rows = np.load(path)
    if side == THEIRS:
        tutorial.fit(kerashub.tutorial_model(seed=0), rows)
    else:
        experiment = Experiment("simplebooks")
        program = DataParallel(experiment)
        inputs = program.inputs(experiment, 1)
        state = program.init(inputs)
        for part in np.split(rows, STEPS_A_ROUND):
            batch = Batch(part, np.zeros(len(part), np.int32), zero_padded_lengths(part))
            state, _ = program.steps(state, inputs, program.draw([iter([batch])], 1), 1)
        jax.block_until_ready(state)
    print(rounds.peak_memory())


def _perplexity(bench: Bench, chosen: Arguments) -> Iterator[Row]:
    """Equal steps from equal weights."""
    steps = chosen.epochs * bench.prepared.splits["train"].steps_per_epoch(SIZE)
    per_epoch = steps // chosen.epochs
    keras = kerashub.tutorial_model(seed=0)
    state, step = bench.start(kerashub.from_keras(keras), total_steps=steps)
    theirs_stream, ours_stream = bench.batches(), bench.batches()
    spent = {THEIRS: 0.0, OURS: 0.0}
    for epoch in range(1, chosen.epochs + 1):
        rows = bench.rows(theirs_stream, per_epoch)
        start = time.perf_counter()
        with display.status(f"epoch {epoch} of {THEIRS}"):
            tutorial.fit(keras, rows)
        middle = time.perf_counter()
        with display.status(f"epoch {epoch} of {OURS}"):
            for batch in itertools.islice(ours_stream, per_epoch):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
        spent[THEIRS] += middle - start
        spent[OURS] += time.perf_counter() - middle
        theirs = tutorial.perplexity(keras, bench.valid)
        ours = evaluate.evaluate(bench.gpt, state.weights, bench.prepared.splits["valid"], SIZE).perplexity
        yield Row(f"validation perplexity after epoch {epoch}", "ours / theirs", theirs, ours, ours / theirs)
    yield Row(f"training for {steps:,} steps", "s", spent[THEIRS], spent[OURS], spent[THEIRS] / spent[OURS])
    yield from _sooner(bench, chosen, theirs, spent[THEIRS])


def _sooner(bench: Bench, chosen: Arguments, theirs: float, seconds: float) -> Iterator[Row]:
    """A whole run of --fast against the perplexity that KerasHub ended with after so many seconds of training.

    KerasHub's time is its vocabulary and its training alone; ours is all there is, from the archive to the last sample.
    """
    data, fast, files = chosen.data, chosen.fast, RunDir(bench.folder / "fast")
    words = [str(fast), "--run-dir", str(files.path)]
    for name in WHAT_TEXT:
        value = getattr(data, name)
        if value != getattr(DataConfig(), name):
            words += [f"--data.{flag_name(name)}", *map(str, value if isinstance(value, tuple) else [value])]
    seconds += bench.their_vocabulary_seconds
    corpora.open_corpus(data, bench.folder / "empty")  # a download is nobody's time
    command, environment = [sys.executable, "-P", "-m", "minigpt_jax", *words], bench.environment("empty")
    ours = rounds.seconds(functools.partial(subprocess.run, command, check=True, env=environment))
    reached = [line for line in read_metrics(files) if line["split"] == "valid"][-1]["perplexity"]
    yield Row(f"validation perplexity, {fast.stem}", "ours / theirs", theirs, reached, reached / theirs)
    yield Row("wall-clock to it, vocabulary and compilation included", "s", seconds, ours, seconds / ours)


STAGES: dict[str, Callable[[Bench, Arguments], Iterator[Row]]] = {
    "vocabulary": _vocabulary,
    "tokenisation": _tokenisation,
    "input": _input,
    "step": _step,
    "evaluation": _evaluation,
    "memory": _memory,
    "samplers": _samplers,
    "cold": _cold,
    "perplexity": _perplexity,
}
