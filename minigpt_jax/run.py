"""`run(experiment)`: from corpus to checkpoint, with hooks for logging, evaluation, samples and saving."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minigpt_jax import config, corpora, display, evaluate, generate, model, optim, parallel, rng, samplers, train
from minigpt_jax.batch import Batch
from minigpt_jax.checkpoint import Checkpoints
from minigpt_jax.config import Experiment
from minigpt_jax.data import store
from minigpt_jax.data.store import BatchSource, Prepared
from minigpt_jax.errors import UserError
from minigpt_jax.metrics import Sums
from minigpt_jax.recorder import Recorder
from minigpt_jax.run_dir import (
    Resume,
    RunDir,
    check_resume,
    check_room,
    check_same,
    drop_records_after,
    lock,
    write_description,
    write_tokenizer,
    write_whole,
)
from minigpt_jax.state import Progress, TrainState


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        interrupted: whether a signal stopped it before its last step.
        valid: sums of the last evaluation of this process, if it came to one.
    """

    run_dir: Path
    state: TrainState
    progress: Progress
    interrupted: bool
    valid: Sums | None


def cache_dir() -> Path:
    """What runs share: $MINIGPT_CACHE, or a folder under ~/.cache."""
    return Path(os.environ.get("MINIGPT_CACHE") or Path.home() / ".cache" / "minigpt_jax")


def versions() -> dict[str, str]:
    """Versions of what a result depends on, of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in ("minigpt-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def run(
    experiment: Experiment,
    run_dir: str | Path | None = None,
    *,
    prepared: Prepared | None = None,
    batches: BatchSource | None = None,
    resume: Resume = "auto",
) -> Result:
    """Trains an experiment in a run directory, going on from its latest whole checkpoint if it has one.

    Where there are several processes, each of them makes this call.

    Args:
        run_dir: runs/NAME by default.
        prepared: tokenizer and rows, where they were made beforehand; else the corpus is read and tokenised.
        resume: always: refuse a run directory without a checkpoint; never: refuse one with any.
        batches: where training batches come from; tf.data by default, which is the only use of TensorFlow.

    Raises:
        UserError: for what cannot work, before any compute is spent; and where the loss ceases to be finite.
    """
    config.validate(experiment)
    parallel.check_batch_size(experiment.train.batch_size, experiment.train.accumulate)
    files = RunDir(Path(run_dir or Path("runs") / experiment.name))
    parallel.from_first(lambda: (check_resume(files, resume), check_same(files, experiment)))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.parameter_shapes(experiment)))
    parallel.from_first(lambda: check_room(files, 3 * weights * (2 + experiment.train.keep)))
    fingerprints: dict[str, str] = {}
    display.console.quiet = not parallel.is_first()
    if prepared is None:
        prepared, fingerprints["corpus"] = parallel.first_then_others(lambda: _prepare(experiment))
    made = prepared
    fingerprints["tokenizer"] = made.tokenizer.fingerprint
    with contextlib.ExitStack() as held:

        def claim() -> None:
            held.enter_context(lock(files))
            describe(files, experiment, made, fingerprints)

        parallel.from_first(claim)
        if not files.config.exists():
            raise UserError(f"--run-dir {files.path}: must lie on a disk that all processes share; name such a folder")
        return _train(experiment, files, made, batches or tf_data_batches())


def _prepare(experiment: Experiment) -> tuple[Prepared, str]:
    corpus = corpora.open_corpus(experiment.data, cache_dir())
    return store.prepare(experiment, corpus, cache_dir(), display.track), corpus.fingerprint


def describe(files: RunDir, experiment: Experiment, prepared: Prepared, fingerprints: dict[str, str]) -> None:
    """Fills a locked run directory with what training does not write. UserError if it is another experiment's."""
    check_same(files, experiment, fingerprints)
    write_description(files, experiment, fingerprints, versions())
    write_tokenizer(files, prepared.tokenizer.save)
    for split in ("valid", "test"):
        prepared.splits[split].save(files.rows(split))


def tf_data_batches() -> BatchSource:
    """The training batches by tf.data."""
    from minigpt_jax.data import pipeline  # TensorFlow takes seconds to import, and may not be there

    return pipeline.batches


def _train(experiment: Experiment, files: RunDir, prepared: Prepared, source: BatchSource) -> Result:
    settings, rows = experiment.train, prepared.splits["train"]
    per_epoch = rows.steps_per_epoch(settings.batch_size)
    total_steps = settings.steps or settings.epochs * per_epoch
    gpt = model.build(experiment)
    trainer = train.Trainer(
        gpt,
        experiment.optimizer,
        train_pad_label=experiment.data.layout == "lines",
        accumulate=settings.accumulate,
        axis_name=parallel.axis_name(),
    )
    hyper = optim.hyperparameters(experiment.optimizer, total_steps)
    init = jax.jit(functools.partial(train.init_state, trainer))
    state, progress = parallel.put_replicated(init(hyper, rng.stream(experiment.seed, "init"))), Progress()
    display.console.print(display.parameter_table(state.params))
    display.console.print(
        f"{len(rows):,} rows of {experiment.data.sequence_length} tokens · {per_epoch:,} steps an epoch · "
        f"{total_steps:,} steps in all · {jax.device_count()} × {jax.devices()[0].device_kind}"
    )
    checkpoints = Checkpoints(files.checkpoints, settings.keep)
    newest = checkpoints.newest_whole()
    if newest is not None:
        state, progress = checkpoints.restore(state, newest)
        checkpoints.drop_after(newest)
        display.console.print(f"going on from step {progress.step:,} of {files.path}")
    parallel.from_first(lambda: drop_records_after(files, progress.step))

    valid: dict[int, Sums] = {}

    def evaluate_and_sample(state: TrainState, progress: Progress) -> None:
        held_out = prepared.splits["valid"]
        with display.status("evaluating"):
            sums = valid[progress.step] = evaluate.evaluate(gpt, state.weights, held_out, settings.batch_size)
        recorder.write(progress, "valid", sums)
        display.console.print(f"step {progress.step:,} · validation: {evaluate.describe(sums, held_out)}")
        if not parallel.is_first():
            return
        weights = parallel.local_copy(state.weights)
        texts = sample(experiment, generate.LanguageModel(experiment, prepared.tokenizer, weights))
        write_whole(files.samples / f"step-{progress.step:08}.txt", "\n\n".join(texts) + "\n")
        for text in texts:
            display.console.print(f"  {text}", markup=False)

    def save(state: TrainState, progress: Progress) -> None:
        recorder.sync()
        checkpoints.save(state, progress, valid[progress.step].loss if progress.step in valid else None)

    hooks = [
        train.Hook(settings.evaluate_every or per_epoch, evaluate_and_sample),
        train.Hook(settings.checkpoint_every or per_epoch, save),
    ]
    one = parallel.compile(functools.partial(train.train_step, trainer), donate=True)
    several = parallel.compile(functools.partial(train.train_steps, trainer), donate=True)
    dropout_key = rng.stream(experiment.seed, "dropout")
    any_process = parallel.any_process()

    def run_steps(state: TrainState, size: int, batch: Batch) -> tuple[TrainState, train.StepMetrics]:
        return (one if size == 1 else several)(state, batch, hyper, dropout_key)

    periods = [hook.every for hook in hooks]
    together = settings.steps_per_dispatch or parallel.steps_per_dispatch(periods)
    sizes = train.plan(progress.step, total_steps, together, periods)
    stream = prepared.training_batches(
        source, experiment, total_steps, progress.step, jax.process_index(), jax.process_count()
    )
    dispatches = parallel.prefetch((size, _draw(stream, size)) for size in sizes)
    with (
        contextlib.closing(checkpoints),
        display.TrainingBar(progress.step, total_steps) as bar,
        stop_signals() as stopped,
        Recorder(files, experiment, hyper, bar, progress, total_steps) as recorder,
    ):
        try:
            state = train.fit(
                state,
                progress,
                dispatches,
                run_steps,
                total_steps=total_steps,
                hooks=hooks,
                on_step=recorder.on_step,
                should_stop=lambda: any_process(bool(stopped)),
            )
        except train.NonFiniteLossError as error:
            checkpoints.wait()
            last = checkpoints.latest
            where = "there is no checkpoint yet" if last is None else f"the last good checkpoint is of step {last}"
            raise UserError(
                f"{error}; {where} in {files.checkpoints}; lower --optimizer.learning-rate or set "
                "--optimizer.clip-norm, with another --run-dir"
            ) from error
        if checkpoints.last_saved != progress.step and progress.step:
            save(state, progress)
    return Result(files.path, state, progress, progress.step < total_steps, valid.get(progress.step))


def _draw(stream: Iterator[Batch], size: int) -> Any:
    """The next batch on its way to the devices; several steps' batches are stacked."""
    if size == 1:
        return parallel.put_batch(next(stream))
    batches = [next(stream) for _ in range(size)]
    return parallel.put_batch(jax.tree.map(lambda *arrays: np.stack(arrays), *batches), row_axis=1)


def sample(experiment: Experiment, lm: generate.LanguageModel) -> list[str]:
    """The texts that the experiment has sampled at each evaluation, prompts included."""
    settings = experiment.sample
    outputs = lm.generate(
        list(settings.prompts),
        sampler=samplers.TopK(k=min(settings.k, len(lm.tokenizer)), temperature=settings.temperature),
        max_new_tokens=settings.max_new_tokens,
        seed=experiment.seed,
        stop=[lm.end_id] if experiment.data.layout == "packed" else [],  # the tutorial samples past the line's end
    )
    return [output.full_text.strip() for output in outputs]


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the step is finished and saved; a second Ctrl-C interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        display.console.print(f"{signal.Signals(number).name}: finishing the step and saving …")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
