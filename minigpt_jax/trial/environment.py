"""What a trial needs around it: a corpus made ready, a source of batches, and settings that can work."""

import contextlib
import importlib.metadata
import platform
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from minigpt_jax import config, corpora, display
from minigpt_jax.cache import cache_dir
from minigpt_jax.config import Experiment
from minigpt_jax.data import store
from minigpt_jax.data.store import BatchSource, Prepared
from minigpt_jax.errors import UserError
from minigpt_jax.generate.texts import abbreviated
from minigpt_jax.parallel import devices
from minigpt_jax.storage.trackers import check_trackers
from minigpt_jax.tokenizer import Tokenizer
from minigpt_jax.train import memory, optim


@dataclass(frozen=True)
class Corpus:
    """A corpus ready for training.

    Attributes:
        prepared: the tokenizer, and each split as rows of tokens.
        fingerprints: hashes of the corpus, where it is known, and of the tokenizer.
    """

    prepared: Prepared
    fingerprints: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, prepared: Prepared, corpus: str | None = None) -> "Corpus":
        """A corpus with the fingerprint `corpus`, or one whose text is not known."""
        fingerprints = {} if corpus is None else {"corpus": corpus}
        return cls(prepared, fingerprints | {"tokenizer": prepared.tokenizer.fingerprint})

    def total_steps(self, experiment: Experiment) -> int:
        """The number of steps that the experiment takes, which is its schedule's horizon."""
        return experiment.train.steps or experiment.train.epochs * self.steps_per_epoch(experiment)

    def steps_per_epoch(self, experiment: Experiment) -> int:
        """The number of steps in which each training row is read once."""
        return self.prepared.splits["train"].steps_per_epoch(experiment.train.batch_size)


def prepare(experiment: Experiment) -> Corpus:
    """Reads and tokenises the experiment's corpus, or finds in the cache what an earlier run has made of it."""
    corpus = corpora.open_corpus(experiment.data, cache_dir())
    prepared = store.prepare(experiment, corpus, cache_dir(), display.track)
    return Corpus.of(prepared, corpus.fingerprint)


def tf_data_batches() -> BatchSource:
    """The training batches by tf.data."""
    from minigpt_jax.data import pipeline  # TensorFlow takes seconds to import, and may not be there

    return pipeline.batches


def versions() -> dict[str, str]:
    """Versions of what a result depends on, of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in ("minigpt-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def check_experiment(experiment: Experiment) -> Experiment:
    """The experiment with the code that it names loaded.

    Raises UserError for settings that cannot work, by themselves or on this machine's devices.
    """
    config.validate(experiment)
    experiment = config.code.load(experiment, [Path.cwd()])
    devices.check_types()
    devices.check_batch_size(experiment.train.batch_size, experiment.train.accumulate)
    memory.check_memory(experiment)
    check_trackers(experiment.train.trackers)
    return experiment


def check_samples(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """Raises UserError if the texts to sample at each evaluation cannot be sampled."""
    settings, window = experiment.sample, experiment.data.sequence_length
    for prompt, ids in zip(settings.prompts, tokenizer.encode_batch(settings.prompts), strict=True):
        length = 1 + len(ids)
        if length > window:
            raise UserError(
                f"--sample.prompts {abbreviated(prompt)!r}: {length} tokens with [BOS], and the window holds {window}; "
                "shorten it"
            )
        room = window + 1 - length  # the last new token is never read, so it needs no position
        if experiment.model.positions == "learned" and (settings.max_new_tokens or 0) > room:
            raise UserError(
                f"--sample.max-new-tokens {settings.max_new_tokens}: the prompt {abbreviated(prompt)!r} leaves room "
                f"for {room}, since learned positions end at {window}; ask for fewer, or take --model.positions rope"
            )


def warn_of_another_horizon(experiment: Experiment, before: int, after: int, step: int) -> None:
    """Warns where the `step` steps made so far were planned for another number of all steps, and it shows in them."""
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
            f"{after:,}: the result is not that of one run of {after:,}; for that, train anew in another --run-dir"
        )
