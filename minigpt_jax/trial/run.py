"""`run(experiment)`: from corpus to checkpoint, with hooks for logging, evaluation, samples and saving."""

import contextlib
import functools
import importlib.metadata
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import config, corpora, display, generate, model, rng, samplers
from minigpt_jax.cache import cache_dir
from minigpt_jax.config import Experiment
from minigpt_jax.data import store
from minigpt_jax.data.batch import Batch
from minigpt_jax.data.store import BatchSource, Prepared
from minigpt_jax.errors import UserError
from minigpt_jax.generate.texts import head
from minigpt_jax.parallel import devices, processes
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_dir import (
    Resume,
    RunDir,
    check_resume,
    check_room,
    check_same,
    drop_records_after,
    has_checkpoint,
    lock,
    read_metrics,
    whole_file,
    write_description,
    write_tokenizer,
    write_whole,
)
from minigpt_jax.storage.trackers import Recorder
from minigpt_jax.tokenizer import Tokenizer
from minigpt_jax.train import evaluate, memory, optim
from minigpt_jax.train.loop import Hook, NonFiniteLossError, fit, plan
from minigpt_jax.train.metrics import Sums
from minigpt_jax.train.state import Progress, TrainState
from minigpt_jax.train.step import StepMetrics, Trainer, init_state, train_step, train_steps
from minigpt_jax.trial.signals import stop_signals


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        interrupted: whether a signal stopped it before its last step.
        valid: sums of the last evaluation of this process, if it came to one.
        best_step: where --train.patience ended it, the step of the lowest validation loss.
    """

    run_dir: Path
    state: TrainState
    progress: Progress
    interrupted: bool
    valid: Sums | None
    best_step: int | None = None


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
    """Trains an experiment in a run directory, resuming from its latest whole checkpoint if it has one.

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
    devices.check_types()
    devices.check_batch_size(experiment.train.batch_size, experiment.train.accumulate)
    memory.check_memory(experiment)
    files = RunDir(Path(run_dir or Path("runs") / experiment.name))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.parameter_shapes(experiment)))

    def check() -> None:
        check_room(files, 3 * weights * (2 + experiment.train.keep))
        check_resume(files, resume)
        check_same(files, experiment)

    processes.from_first(check)
    fingerprints: dict[str, str] = {}
    display.console.quiet = not processes.is_first()
    if prepared is None:
        prepared, fingerprints["corpus"] = processes.first_then_others(lambda: _prepare(experiment))
    made = prepared
    fingerprints["tokenizer"] = made.tokenizer.fingerprint
    check_samples(experiment, made.tokenizer)
    with contextlib.ExitStack() as held:

        def claim() -> int | None:
            held.enter_context(lock(files))
            before = total_steps(files.experiment(), made) if has_checkpoint(files) else None
            describe(files, experiment, made, fingerprints)
            return before

        horizon = processes.from_first(claim)
        if not files.config.exists():
            raise UserError(f"--run-dir {files.path}: must lie on a disk that all processes share; name such a folder")
        return _train(experiment, files, made, batches or tf_data_batches(), horizon)


def _prepare(experiment: Experiment) -> tuple[Prepared, str]:
    corpus = corpora.open_corpus(experiment.data, cache_dir())
    prepared = store.prepare(experiment, corpus, cache_dir(), display.track)
    sizes = {part: int(rows.bytes.sum()) for part, rows in prepared.splits.items()}
    display.console.print(
        f"{sizes['train'] + sizes.get('finish', 0):,} bytes of text to train on · {sizes['valid']:,} held out for "
        f"validation · {sizes['test']:,} for testing"
    )
    return prepared, corpus.fingerprint


def describe(files: RunDir, experiment: Experiment, prepared: Prepared, fingerprints: dict[str, str]) -> None:
    """Fills a locked run directory with what training does not write. UserError if it is another experiment's."""
    check_same(files, experiment, fingerprints)
    write_description(files, experiment, fingerprints, versions())
    write_tokenizer(files, prepared.tokenizer.save)
    for split in ("valid", "test"):
        with whole_file(files.rows(split)) as file:
            prepared.splits[split].save(file)


def total_steps(experiment: Experiment, prepared: Prepared) -> int:
    """Steps that a run takes, which is its schedule's horizon."""
    settings = experiment.train
    return settings.steps or settings.epochs * prepared.splits["train"].steps_per_epoch(settings.batch_size)


def check_samples(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Raises UserError if the texts to sample at each evaluation cannot be sampled."""
    settings, window = experiment.sample, experiment.data.sequence_length
    for prompt, ids in zip(settings.prompts, tokenizer.encode_batch(settings.prompts), strict=True):
        length = 1 + len(ids)
        if length > window:
            raise UserError(
                f"--sample.prompts {head(prompt)!r}: {length} tokens with [BOS], and the window holds {window}; "
                "shorten it"
            )
        room = window + 1 - length  # the last new token is never read, so it needs no position
        if experiment.model.positions == "learned" and (settings.max_new_tokens or 0) > room:
            raise UserError(
                f"--sample.max-new-tokens {settings.max_new_tokens}: the prompt {head(prompt)!r} leaves room "
                f"for {room}, since learned positions end at {window}; ask for fewer, or take --model.positions rope"
            )


def patience_ended(losses: dict[int, float], patience: int | None) -> int | None:
    """The step of the lowest loss, where `patience` evaluations have not come below it since; None where training may
    continue. `losses` are validation's, by step in order."""
    if patience is None or not losses:
        return None
    best = min(losses, key=losses.__getitem__)
    return best if sum(step > best for step in losses) >= patience else None


def check_horizon(experiment: Experiment, before: int, after: int, step: int) -> None:
    """Warns where the `step` steps made so far were planned for another number of all steps, and it shows in them."""
    optimizer, finish = experiment.optimizer, experiment.data.finish
    then, now = (
        optim.schedule(optimizer.schedule, optim.hyperparameters(optimizer, total), jnp.arange(step))
        for total in (before, after)
    )
    same_rates = np.allclose(then, now)
    same_rows = not finish or step <= min(before, after) * (1 - finish)
    if before != after and not (same_rates and same_rows):
        schedule = f"--data.finish {finish}" if same_rates else f"--optimizer.schedule {optimizer.schedule}"
        display.warn(
            f"{step:,} steps followed the {schedule} of a run of {before:,} steps, and the rest follow that of "
            f"{after:,}: the result is not that of one run of {after:,}; for that, train anew in another --run-dir"
        )


def tf_data_batches() -> BatchSource:
    """The training batches by tf.data."""
    from minigpt_jax.data import pipeline

    return pipeline.batches


def _train(
    experiment: Experiment, files: RunDir, prepared: Prepared, source: BatchSource, horizon: int | None
) -> Result:
    settings, rows = experiment.train, prepared.splits["train"]
    per_epoch = rows.steps_per_epoch(settings.batch_size)
    total = total_steps(experiment, prepared)
    gpt = model.build(experiment)
    trainer = Trainer(
        gpt,
        experiment.optimizer,
        train_pad_label=experiment.data.layout == "lines",
        accumulate=settings.accumulate,
        axis_name=devices.axis_name(),
    )
    hyper = optim.hyperparameters(experiment.optimizer, total)
    init = jax.jit(functools.partial(init_state, trainer))
    state, progress = devices.put_replicated(init(hyper, rng.stream(experiment.seed, "init"))), Progress()
    display.console.print(display.parameter_table(state.params))
    display.console.print(
        f"{len(rows):,} rows of {experiment.data.sequence_length} tokens · {per_epoch:,} steps an epoch · "
        f"{total:,} steps in all · {jax.device_count()} × {jax.devices()[0].device_kind}"
    )
    checkpoints = Checkpoints(files.checkpoints, settings.keep)
    newest = checkpoints.newest_whole()
    if newest is not None:
        state, progress = checkpoints.restore(state, newest)
        checkpoints.drop_after(newest)
        display.console.print(f"resuming from step {progress.step:,} of {files.path}")
        if horizon is not None and processes.is_first():
            check_horizon(experiment, horizon, total, progress.step)

    def earlier_losses() -> list[tuple[int, float]]:
        drop_records_after(files, progress.step)
        lines = [line for line in read_metrics(files) if line.get("split") == "valid"]
        return [(line["step"], math.inf if line.get("loss") is None else line["loss"]) for line in lines]

    losses = dict(processes.from_first(earlier_losses))
    valid: dict[int, Sums] = {}

    def evaluate_now(state: TrainState, progress: Progress) -> None:
        held_out = prepared.splits["valid"]
        with display.status("evaluating"):
            sums = valid[progress.step] = evaluate.evaluate(gpt, state.weights, held_out, settings.batch_size)
        losses[progress.step] = sums.loss if math.isfinite(sums.loss) else math.inf
        recorder.write(progress, "valid", sums)
        display.console.print(f"step {progress.step:,} · validation: {evaluate.describe(sums, held_out)}")

    def save(state: TrainState, progress: Progress) -> None:
        recorder.sync()
        checkpoints.save(state, progress, valid[progress.step].loss if progress.step in valid else None)

    def sample_now(state: TrainState, progress: Progress) -> None:
        if not processes.is_first():
            return
        weights = devices.local_copy(state.weights)
        texts = sample(experiment, generate.LanguageModel(experiment, prepared.tokenizer, weights))
        write_whole(files.sample(progress.step), "\n\n".join(texts) + "\n")
        for text in texts:
            display.console.print(f"  {text}")

    evaluate_every = settings.evaluate_every or per_epoch
    hooks = [
        Hook(evaluate_every, evaluate_now),
        Hook(settings.checkpoint_every or per_epoch, save),
        Hook(evaluate_every, sample_now),  # after the save: what fails here loses nothing
    ]
    one = devices.compile(functools.partial(train_step, trainer), donate=True)
    several = devices.compile(functools.partial(train_steps, trainer), donate=True)
    dropout_key = rng.stream(experiment.seed, "dropout")
    any_process = processes.any_process()

    def run_steps(state: TrainState, size: int, batch: Batch) -> tuple[TrainState, StepMetrics]:
        return (one if size == 1 else several)(state, batch, hyper, dropout_key)

    def patience() -> int | None:
        return patience_ended(losses, settings.patience)

    periods = [hook.every for hook in hooks]
    together = settings.steps_per_dispatch or devices.steps_per_dispatch(periods)
    ended = total if patience() is None else progress.step
    sizes = plan(progress.step, ended, together, periods)
    stream = prepared.training_batches(
        source, experiment, total, progress.step, jax.process_index(), jax.process_count()
    )
    dispatches = devices.prefetch((size, _draw(stream, size)) for size in sizes)
    with (
        stop_signals() as stopped,
        contextlib.closing(checkpoints),
        display.TrainingBar(progress.step, total) as bar,
        Recorder(files, experiment, hyper, bar, progress, total) as recorder,
    ):
        if progress.step in losses and not files.sample(progress.step).exists():
            sample_now(state, progress)  # it ended between the save and the texts
        try:
            state = fit(
                state,
                progress,
                dispatches,
                run_steps,
                total_steps=total,
                hooks=hooks,
                on_step=recorder.on_step,
                should_stop=lambda: any_process(bool(stopped)) or patience() is not None,
            )
        except NonFiniteLossError as error:
            checkpoints.wait()
            last = checkpoints.latest
            where = "there is no checkpoint yet" if last is None else f"the last good checkpoint is of step {last}"
            raise UserError(
                f"{error}; {where} in {files.checkpoints}; lower --optimizer.learning-rate or set "
                "--optimizer.clip-norm, with another --run-dir"
            ) from error
        if checkpoints.last_saved != progress.step and progress.step:
            save(state, progress)
    best = patience() if progress.step < total else None
    interrupted = progress.step < total and best is None
    return Result(files.path, state, progress, interrupted, valid.get(progress.step), best)


def _draw(stream: Iterator[Batch], size: int) -> Any:
    """The next batch on its way to the devices; several steps' batches are stacked."""
    if size == 1:
        return devices.put_batch(next(stream))
    batches = [next(stream) for _ in range(size)]
    return devices.put_batch(jax.tree.map(lambda *arrays: np.stack(arrays), *batches), row_axis=1)


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
