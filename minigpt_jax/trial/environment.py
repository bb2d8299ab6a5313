"""The environment of a trial: its prepared corpus, the source of its batches, and checks of its settings."""

from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from minigpt_jax import config, corpora, display, tokenizer
from minigpt_jax.cache import cache_dir
from minigpt_jax.config import Experiment
from minigpt_jax.data import store
from minigpt_jax.data.rows import Rows
from minigpt_jax.data.store import BatchSource, Prepared
from minigpt_jax.errors import UserError
from minigpt_jax.generate.texts import abbreviated
from minigpt_jax.parallel import devices
from minigpt_jax.storage.trackers import check_trackers
from minigpt_jax.tokenizer import Tokenizer, with_tokenizer
from minigpt_jax.train import memory, optim


@dataclass(frozen=True)
class Corpus:
    """A corpus that is ready for training.

    Attributes:
        prepared: the tokenizer, and the rows of tokens of each split.
        fingerprints: hashes of the tokenizer and, if it is known, of the corpus.
    """

    prepared: Prepared
    fingerprints: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, prepared: Prepared, corpus: str | None = None) -> "Corpus":
        """Makes a corpus from its prepared rows.

        Args:
            corpus: the fingerprint of its text, if that is known.
        """
        fingerprints = {} if corpus is None else {"corpus": corpus}
        return cls(prepared, fingerprints | {"tokenizer": prepared.tokenizer.fingerprint})

    def settled(self, experiment: Experiment) -> Experiment:
        """The experiment with the settings filled in that follow from the tokenizer of this corpus."""
        return with_tokenizer(experiment, self.prepared.tokenizer)

    def unknown_tokens(self) -> dict[str, int]:
        """The number of labels of each held-out part that stand for text without a piece."""
        unknown, splits = self.prepared.tokenizer.special.unknown, self.prepared.splits

        def count(split: Rows) -> int:
            if unknown is None:
                return 0
            is_text = np.arange(1, split.rows.shape[1])[None] < split.lengths[:, None]  # padding may have the same id
            return int(np.count_nonzero((split.rows[:, 1:] == unknown) & is_text))

        return {"validation": count(splits["valid"]), "test": count(splits["test"])}

    def total_steps(self, experiment: Experiment) -> int:
        """The number of steps of the experiment, which is also the horizon of its schedule."""
        return experiment.train.steps or experiment.train.epochs * self.steps_per_epoch(experiment)

    def steps_per_epoch(self, experiment: Experiment) -> int:
        """The number of steps in which every training row is read once."""
        return self.prepared.splits["train"].steps_per_epoch(experiment.train.batch_size)


def prepare(experiment: Experiment, tokenizer: Tokenizer | None = None) -> Corpus:
    """Reads and tokenises the corpus of the experiment, or takes the result of an earlier run from the cache.

    Args:
        tokenizer: takes the place of the experiment's tokenizer, if given.
    """
    corpus = corpora.open_corpus(experiment.data, cache_dir())
    prepared = store.prepare(experiment, corpus, cache_dir(), display.track, tokenizer)
    return Corpus.of(prepared, corpus.fingerprint)


def tf_data_batches() -> BatchSource:
    """The source of training batches that uses tf.data."""
    from minigpt_jax.data import pipeline  # TensorFlow takes seconds to import, and may not be installed

    return pipeline.batches


def check_experiment(experiment: Experiment, tokenizer: Tokenizer | None = None) -> Experiment:
    """Checks a valid experiment on this machine, and returns it with the user's code loaded that it names.

    Args:
        tokenizer: takes the place of the experiment's tokenizer, if given. The file of the latter is then not read.

    Raises:
        UserError: this machine's devices, memory or packages do not suffice for the experiment.
    """
    experiment = config.code.load(experiment, [Path.cwd()])
    experiment = _with_given_tokenizer(experiment) if tokenizer is None else with_tokenizer(experiment, tokenizer)
    devices.check_types()
    devices.check_batch_size(experiment.train.batch_size, experiment.train.accumulate)
    memory.check_memory(experiment)
    check_trackers(experiment.train.trackers)
    return experiment


def _with_given_tokenizer(experiment: Experiment) -> Experiment:
    """The experiment with the settings that follow from its tokenizer, if that is known before the corpus is."""
    if experiment.tokenizer.file is None:
        return experiment
    return with_tokenizer(experiment, tokenizer.from_file(experiment.tokenizer))


def check_samples(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Checks that the prompts, and the texts that are sampled from them at each evaluation, fit into the window.

    Raises:
        UserError: a prompt or a text is too long.
    """
    settings, window = experiment.sample, experiment.data.sequence_length
    for prompt, ids in zip(settings.prompts, tokenizer.encode_batch(settings.prompts), strict=True):
        length = 1 + len(ids)
        if length > window:
            raise UserError(
                f"--sample.prompts {abbreviated(prompt)!r}: {length} tokens with the start token, but the window "
                f"holds {window}; shorten it"
            )
        room = window + 1 - length  # the last new token is never read, so it needs no position
        if experiment.model.positions == "learned" and (settings.max_new_tokens or 0) > room:
            raise UserError(
                f"--sample.max-new-tokens {settings.max_new_tokens}: the prompt {abbreviated(prompt)!r} leaves room "
                f"for {room}, because learned positions end at {window}; ask for fewer, or use --model.positions rope"
            )


def warn_of_another_horizon(experiment: Experiment, before: int, after: int, step: int) -> None:
    """Warns if a new number of steps changes how a resumed run would have trained the steps that it already made.

    Args:
        before, after: the planned number of steps before and now.
        step: the number of steps made so far.
    """
    optimizer, annealed = experiment.optimizer, experiment.data.anneal_fraction
    then, now = (
        optim.schedule(optimizer.schedule, optim.hyperparameters(optimizer, total), jnp.arange(step))
        for total in (before, after)
    )
    same_rates = np.allclose(then, now)
    same_rows = not annealed or step <= min(before, after) * (1 - annealed)
    if before != after and not (same_rates and same_rows):
        schedule = f"--data.anneal-fraction {annealed}" if same_rates else f"--optimizer.schedule {optimizer.schedule}"
        display.warn(
            f"{step:,} steps followed the {schedule} of a run of {before:,} steps, and the rest follow that of "
            f"{after:,}: the result differs from that of a single run of {after:,}; for that, train from scratch in "
            "another --run-dir"
        )
