"""`run(experiment)` trains one trial, from the corpus to the last checkpoint."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import jax

from minigpt_jax import config, display, model
from minigpt_jax.config import Experiment
from minigpt_jax.data.store import BatchSource, Prepared
from minigpt_jax.errors import UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.parallel import processes
from minigpt_jax.storage.resume import Resume, check_resume, check_same
from minigpt_jax.storage.run_dir import RunDir, bytes_needed, check_free, check_room
from minigpt_jax.train import evaluate
from minigpt_jax.train.loop import Hook, NonFiniteLossError, Training, fit
from minigpt_jax.train.metrics import LossSums
from minigpt_jax.train.program import DataParallel
from minigpt_jax.train.state import Progress, TrainState
from minigpt_jax.trial import environment, initial
from minigpt_jax.trial.environment import Corpus
from minigpt_jax.trial.open_run import OpenRun
from minigpt_jax.trial.signals import stop_signals


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        interrupted: whether a signal stopped the run before its last step.
        valid: the sums of the last evaluation in this process, or None if there was none.
        best_step: the step of the lowest validation loss if --train.patience ended the run, else None.
    """

    run_dir: Path
    state: TrainState
    progress: Progress
    interrupted: bool
    valid: LossSums | None
    best_step: int | None = None


def run(
    experiment: Experiment,
    run_dir: str | Path | None = None,
    *,
    prepared: Prepared | None = None,
    batches: BatchSource | None = None,
    resume: Resume = "auto",
    experiment_file: Path | None = None,
    init_from: LanguageModel | None = None,
) -> Result:
    """Trains an experiment in a run directory, and resumes from its latest intact checkpoint if it has one.

    If there are several processes, each of them makes this call.

    Args:
        run_dir: the run directory; by default runs/NAME.
        prepared: the tokenizer and rows, if they exist already. By default the corpus is read and tokenised.
        batches: makes the training batches. The default uses tf.data, which is the only use of TensorFlow.
        resume: "auto" resumes if there is a checkpoint, "always" refuses a run directory without a checkpoint, and
            "never" refuses one with a checkpoint.
        experiment_file: the file that defines the experiment, of which the run directory keeps a copy.
        init_from: a trained model whose weights and tokenizer the run starts with, at step 0 and with a fresh
            optimiser. `config.inherited(experiment, init_from.experiment)` gives an experiment that fits. A run that
            resumes needs only its own directory.

    Raises:
        UserError: the experiment is invalid, cannot run on this machine, or does not match the run directory. This is
            raised before any training. It is also raised if the loss becomes infinite or NaN.
    """
    config.validate(experiment)
    files = RunDir(Path(run_dir or Path("runs") / experiment.name))
    _, taken = initial.start_of(files, init_from)
    experiment = environment.check_experiment(experiment, taken)
    display.console.quiet = not processes.is_first()
    if init_from is not None:
        config.check_inherited(experiment, init_from.experiment, "the initial model")
    with contextlib.closing(_open(experiment, files, prepared, resume, experiment_file, init_from)) as opened:
        return _train(opened, batches or environment.tf_data_batches(), init_from)


def _open(
    experiment: Experiment,
    files: RunDir,
    prepared: Prepared | None,
    resume: Resume,
    experiment_file: Path | None,
    init_from: LanguageModel | None,
) -> OpenRun:
    """Opens the run directory, in the first process before the others."""
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.parameter_shapes(experiment)))

    def open_run() -> OpenRun:
        if processes.is_first():
            check_room(files, bytes_needed(weights, experiment.train.keep_checkpoints))
            check_free(files)
            check_resume(files, resume)
            check_same(files, experiment)
        origin, tokenizer = initial.start_of(files, init_from)
        corpus = environment.prepare(experiment, tokenizer) if prepared is None else Corpus.of(prepared)
        if prepared is None:
            sizes = {part: int(rows.bytes.sum()) for part, rows in corpus.prepared.splits.items()}
            display.console.print(
                f"{sizes['train'] + sizes.get('anneal', 0):,} bytes of text to train on · {sizes['valid']:,} held out "
                f"for validation · {sizes['test']:,} for testing"
            )
            unknown = corpus.unknown_tokens()
            if experiment.tokenizer.kind == "char" or any(unknown.values()):
                counted = " and ".join(f"{count:,} of the {part} part" for part, count in unknown.items())
                display.console.print(f"tokens that stand for text without a piece: {counted}")
        environment.check_samples(experiment, corpus.prepared.tokenizer)
        if not processes.is_first() and not files.config.exists():
            raise UserError(f"--run-dir {files.path}: must be on a disk that all processes share; name such a folder")
        return OpenRun(experiment, files, corpus, experiment_file, origin)

    return processes.first_then_others(open_run)


def _train(opened: OpenRun, source: BatchSource, init_from: LanguageModel | None) -> Result:
    experiment, corpus, total = opened.experiment, opened.corpus, opened.total_steps
    settings, rows = experiment.train, corpus.prepared.splits
    per_epoch = corpus.steps_per_epoch(experiment)
    program = DataParallel(experiment)
    inputs = program.inputs(experiment, total)
    state = program.init(inputs)
    display.console.print(display.parameter_table(state.params))
    display.console.print(
        f"{len(rows['train']):,} rows of {experiment.data.sequence_length} tokens · {per_epoch:,} steps per epoch · "
        f"{total:,} steps in total · {jax.device_count()} × {jax.devices()[0].device_kind}"
    )
    latest = opened.checkpoints.latest_intact()
    if latest is not None:
        state = opened.restore(state, latest)
        display.console.print(f"resuming from step {latest:,} of {opened.files.path}")
        if opened.planned_steps is not None:
            environment.warn_of_another_horizon(experiment, opened.planned_steps, total, latest)
    elif init_from is not None:
        state = initial.with_weights(state, init_from, experiment)
        display.console.print(f"starting from the weights of {init_from!r}")

    def evaluate_now(training: Training) -> None:
        with display.status("evaluating"):
            [sums] = program.evaluate(training.state.weights, rows["valid"], settings.batch_size)
        opened.evaluated(sums)
        display.console.print(f"step {training.step:,} · validation: {evaluate.describe(sums, rows['valid'])}")

    def sample_now(training: Training) -> None:
        for text in opened.sample(training.state.weights):
            display.console.print(f"  {text}")

    def save_if_best(training: Training) -> None:
        if settings.patience is not None and opened.losses[training.step] == min(opened.losses.values()):
            opened.save(training.state)  # the run may end long after it, and --step best asks for it

    evaluate_every = settings.evaluate_every or per_epoch
    hooks = [
        Hook(evaluate_now, evaluate_every),
        Hook(lambda training: opened.save(training.state), settings.checkpoint_every or per_epoch),
        Hook(save_if_best, evaluate_every),
        Hook(sample_now, evaluate_every),  # after the save, so that a failure here loses no training
    ]
    with (
        stop_signals() as stopped,
        contextlib.closing(opened),
        display.TrainingBar(opened.progress.step, total) as bar,
    ):
        opened.start(bar)
        progress = opened.progress
        training = Training(program, inputs, state, [opened], progress.step)
        if progress.step in opened.losses and not opened.files.sample(progress.step).exists():
            sample_now(training)  # the run was stopped after the save and before the sampling
        if progress.step == total and total not in opened.losses:  # it was stopped at the step that is now its last
            evaluate_now(training)
            opened.save_loss()
            sample_now(training)
        any_process = processes.any_process()
        patience = settings.patience
        try:
            fit(
                training,
                [
                    corpus.prepared.training_batches(
                        source, experiment, total, progress.step, jax.process_index(), jax.process_count()
                    )
                ],
                total if patience_ended(opened.losses, patience) is None else progress.step,
                log_every=settings.log_every,
                steps_per_execution=settings.steps_per_execution,
                hooks=hooks,
                should_stop=lambda: any_process(bool(stopped)) or patience_ended(opened.losses, patience) is not None,
            )
        except NonFiniteLossError as error:
            raise _diverged(opened, error) from error
        if progress.step:
            opened.save(training.state)
    best = patience_ended(opened.losses, patience) if progress.step < total else None
    interrupted = progress.step < total and best is None
    return Result(opened.files.path, training.state, progress, interrupted, opened.valid, best)


def _diverged(opened: OpenRun, error: NonFiniteLossError) -> UserError:
    opened.checkpoints.wait()
    last = opened.checkpoints.latest
    where = "there is no checkpoint yet" if last is None else f"the last good checkpoint is of step {last}"
    return UserError(
        f"{error}; {where} in {opened.files.checkpoints}; lower --optimizer.learning-rate or set "
        "--optimizer.clip-norm, with another --run-dir"
    )


def patience_ended(losses: dict[int, float], patience: int | None) -> int | None:
    """The step of the lowest loss if `patience` evaluations since have not improved on it, else None.

    Args:
        losses: the validation losses by step, in the order of steps.
        patience: the number of evaluations, or None for no limit.
    """
    if patience is None or not losses:
        return None
    best = min(losses, key=losses.__getitem__)
    return best if sum(step > best for step in losses) >= patience else None
