"""A model with its tokenizer and weights: texts in, texts or log-probabilities out."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import model, samplers, tokenizer
from minigpt_jax.cache import keep_compiled_programs
from minigpt_jax.config import BOS_ID, PAD_ID, Experiment
from minigpt_jax.errors import UserError
from minigpt_jax.generate.generation import Generation, generations
from minigpt_jax.generate.programs import bucket, programs, row_bucket, scorer, split
from minigpt_jax.generate.texts import (
    Stop,
    StopScanner,
    as_int,
    as_texts,
    before_stop,
    begun,
    head,
    settled,
    sorted_stops,
)
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import Sampler
from minigpt_jax.storage.checkpoint import Checkpoints
from minigpt_jax.storage.run_dir import RunDir
from minigpt_jax.tokenizer import Tokenizer

MOST_NEW_TOKENS = 2**20
TOKENS_A_CHUNK = 8
"""New tokens between two looks at the text, where it is streamed or searched for stop strings."""


class _Stepped(NamedTuple):
    """The form of a model that is sampled from."""

    model: model.GPT
    weights: Any


def load(run_dir: str | Path, step: int | Literal["best"] | None = None) -> "LanguageModel":
    """The model of a run directory, at its latest checkpoint or at that of `step`.

    Raises UserError where the directory, its checkpoint or their fit is missing.
    """
    files = RunDir(Path(run_dir))
    experiment = files.experiment()
    keep_compiled_programs()
    pieces = tokenizer.load(files.tokenizer)
    if not files.checkpoints.is_dir():
        raise UserError(f"{run_dir} holds no checkpoint yet; train on, to the first --train.checkpoint-every")
    use_ema = experiment.optimizer.ema_decay is not None
    with contextlib.closing(Checkpoints(files.checkpoints, read_only=True)) as checkpoints:
        weights, step = checkpoints.restore_weights(model.parameter_shapes(experiment), use_ema, step)
    return LanguageModel(experiment, pieces, weights, step)


class LanguageModel:
    """A model with its tokenizer and weights.

    Attributes:
        end_id: the label that stands for the end of a document in training; give it as `stop` to let a text end.
    """

    def __init__(self, experiment: Experiment, tokenizer: Tokenizer, weights: Any, step: int | None = None) -> None:
        devices.check_types()
        self.experiment = experiment
        self.tokenizer = tokenizer
        self.step = step
        self.model = model.build(experiment)
        self.weights = weights
        self.end_id = BOS_ID if experiment.data.layout == "packed" else PAD_ID

    def __repr__(self) -> str:
        config = self.experiment.model
        size = f"{config.num_layers} layers of {config.width}, {len(self.tokenizer):,} pieces"
        return f"LanguageModel({self.experiment.name!r}, {size}, window {self.model.sequence_length}, step {self.step})"

    @property
    def weights(self) -> Any:
        """The parameter tree. Give another one to sample from that."""
        return self._weights

    @weights.setter
    def weights(self, weights: Any) -> None:
        self._weights = weights
        self._stepped = _Stepped(*model.untied(self.model, weights))

    def generate(
        self,
        prompts: str | Iterable[str],
        sampler: Sampler | str | None = None,
        max_new_tokens: int | None = None,
        *,
        seed: int = 0,
        row_ids: Iterable[int] | None = None,
        stop: Iterable[Stop] | Stop = (),
        min_new_tokens: int = 0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        no_repeat_ngram: int = 0,
        logit_bias: Mapping[int, float] | None = None,
        num_return_sequences: int = 1,
    ) -> list[Generation]:
        """Goes on from each prompt; prompts of any lengths, the empty one included, share one compiled program.

        Args:
            prompts: strings, or one string, which gives a list of one.
            sampler: a method, or the name of one with its default settings; greedy search by default.
            max_new_tokens: to the end of the training window by default.
            seed: with a row's id and the position, all that a random draw depends on.
            row_ids: 0, 1, 2 … by default.
            stop: strings, token ids or sequences of ids, any of which ends a text at the token that completes it. They
                are looked for in the new tokens alone; one that is complete before `min_new_tokens` does not count.
            logit_bias: added to the logits of these ids; -inf bans one. [PAD], [BOS] and ids without a piece are banned
                unless they stand here or in `stop`.
            num_return_sequences: texts for each prompt, side by side: independent draws, or the best of beam search.

        Raises:
            UserError: a setting that cannot be, or a prompt that leaves no room in the window.
        """
        chunks = self._chunks(
            as_texts(prompts, "prompts"),
            _sampler(sampler),
            max_new_tokens,
            seed=seed,
            row_ids=row_ids,
            stop=stop,
            logit_bias=logit_bias,
            num_return_sequences=num_return_sequences,
            min_new_tokens=min_new_tokens,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            no_repeat_ngram=no_repeat_ngram,
        )
        *_, last = chunks
        return last

    def stream(
        self,
        prompt: str,
        sampler: Sampler | str | None = None,
        max_new_tokens: int | None = None,
        *,
        full: bool = False,
        **settings: Any,
    ) -> Iterator[str]:
        """Yields the text of `generate([prompt], …)` piece by piece as it is made: whole words, whole characters.

        What may turn out to begin a stop is held back until it is known. `full` yields the prompt too, as in
        `Generation.full_text`.

        Raises:
            UserError: as `generate` does, and for beam search or several texts.
        """
        method = _sampler(sampler)
        if isinstance(method, samplers.Beam):
            raise UserError("beam search knows its text only at the end and cannot be streamed; take another sampler")
        if not isinstance(prompt, str):
            raise UserError(f"prompt: must be one string to be streamed, not {type(prompt).__name__}")
        if settings.get("num_return_sequences", 1) != 1:
            raise UserError("num_return_sequences: one text is streamed at a time; take generate for several")
        strings, sequences = sorted_stops(settings.get("stop", ()))
        head_ids = self.tokenizer.encode_batch([prompt])[0] if full else []
        told = ""
        for [generation], final in _mark_last(
            self._chunks([prompt], method, max_new_tokens, streamed=True, **settings)
        ):
            text = generation.full_text if full else generation.text
            if not final:
                tokens = generation.tokens
                if held := begun(tokens, sequences):
                    text = self.tokenizer.decode(head_ids + tokens[: len(tokens) - held])
                text = settled(before_stop(text, strings))
            # What follows may still change the spacing before it; tell only what extends what has been told.
            if text.startswith(told) and len(text) > len(told):
                yield text[len(told) :]
                told = text

    def score(self, texts: str | Iterable[str]) -> list[float]:
        """The log-probability of each text, in nats, its end not included; one string gives a list of one.

        Raises UserError for a text that does not fit in the window.
        """
        texts = as_texts(texts, "texts")
        ids = [[BOS_ID, *tokens] for tokens in self.tokenizer.encode_batch(texts)]
        window = self.model.sequence_length
        for text, tokens in zip(texts, ids, strict=True):
            if len(tokens) > window + 1:
                raise UserError(
                    f"the text {head(text)!r} is {len(tokens) - 1} tokens long; the window holds {window}: shorten it"
                )
        width = bucket(max(map(len, ids), default=1) - 1, 8, window)
        rows = np.full((row_bucket(len(ids), devices.local_devices()), width + 1), PAD_ID, np.int32)
        for row, tokens in zip(rows, ids, strict=False):
            row[: len(tokens)] = tokens
        logprobs_B = devices.join_rows(scorer(self.model)(self.weights, devices.split_rows(rows)))  # pyright: ignore[reportArgumentType]
        return [float(value) for value in logprobs_B[: len(texts)]]

    def _chunks(
        self,
        prompts: Sequence[str],
        sampler: Sampler,
        max_new_tokens: int | None,
        *,
        streamed: bool = False,
        seed: int = 0,
        row_ids: Iterable[int] | None = None,
        stop: Iterable[Stop] | Stop = (),
        logit_bias: Mapping[int, float] | None = None,
        num_return_sequences: int = 1,
        min_new_tokens: int = 0,
        **controls: Any,
    ) -> Iterator[list[Generation]]:
        """The texts so far, each time that the host looks at them; the last time they are whole."""
        if not prompts:
            yield []
            return
        sampler.validate(len(self.tokenizer))
        seed, min_new_tokens = as_int(seed, "seed"), as_int(min_new_tokens, "min_new_tokens")
        max_new_tokens = None if max_new_tokens is None else as_int(max_new_tokens, "max_new_tokens")
        for name, value in controls.items():
            if not isinstance(value, int | float | np.number) or isinstance(value, bool):
                raise UserError(f"{name} {value!r}: must be a number")
        copies, kept = self._copies(sampler, as_int(num_return_sequences, "num_return_sequences"))
        ids = [[BOS_ID, *tokens] for tokens in self.tokenizer.encode_batch(prompts)]
        limits = [self._limit(prompt, len(row), max_new_tokens) for prompt, row in zip(prompts, ids, strict=True)]
        strings, sequences = sorted_stops(stop)
        if strings and isinstance(sampler, samplers.Beam):
            raise UserError("--stop: beam search takes token ids and no strings, whose end it cannot see in its loop")
        row_ids = [as_int(row, "row_ids") for row in (range(len(prompts)) if row_ids is None else row_ids)]
        if len(row_ids) != len(prompts):
            raise UserError(f"row_ids: {len(row_ids)} given for {len(prompts)} prompts; give one per prompt")

        rows = len(prompts) * copies
        window = self.model.sequence_length
        width = bucket(max(map(len, ids)), 8, window)
        room = bucket(max(limits), 16)
        padding = row_bucket(rows, devices.local_devices()) - rows
        request = samplers.request(
            [row for row in ids for _ in range(copies)] + [[BOS_ID]] * padding,
            vocabulary_size=self.model.vocabulary_size,
            max_new_tokens=[limit for limit in limits for _ in range(copies)] + [0] * padding,
            width=width,
            row_ids=[row for row in row_ids for _ in range(copies)] + [0] * padding,
            copies=[copy for _ in row_ids for copy in range(copies)] + [0] * padding,
            seed=seed,
            pad_id=PAD_ID,
            stops=sequences,
            logit_bias=self._bias(logit_bias or {}, sequences),
            min_new_tokens=min_new_tokens,
            **controls,
        )
        slots = min(width + room, window)
        compiled = programs(self._stepped.model, slots, room, jax.tree.structure(sampler))  # pyright: ignore[reportArgumentType]
        weights = self._stepped.weights
        scanners = [StopScanner(strings, self.tokenizer.decode, min_new_tokens) for _ in range(rows if strings else 0)]
        finish = functools.partial(
            generations, self.tokenizer.decode, prompts, ids, limits, copies, kept, sequences, scanners
        )
        shared, by_row = split(request)
        if not streamed and not strings:
            output = compiled.whole(weights, by_row, shared, sampler)
            yield finish(output)[0]
            return
        state = compiled.start(weights, by_row, shared, sampler)
        done = np.zeros(rows + padding, bool)
        for until in range(TOKENS_A_CHUNK, room + TOKENS_A_CHUNK, TOKENS_A_CHUNK):
            state = compiled.advance(
                state, weights, by_row, shared, sampler, jnp.int32(until), devices.split_rows(done)
            )
            texts, stopped = finish(compiled.result(state, by_row, shared, sampler))
            yield texts
            done[:rows] = stopped
            if not devices.join_rows(state.running)[~done].any():
                return

    def _copies(self, sampler: Sampler, count: int) -> tuple[int, int]:
        """Rows for each prompt, and hypotheses to keep of each row."""
        if count < 1:
            raise UserError(f"num_return_sequences {count}: must be 1 or more")
        if isinstance(sampler, samplers.Beam):
            if count > sampler.num_beams:
                raise UserError(f"num_return_sequences {count}: beam search has {sampler.num_beams} beams; widen it")
            return 1, count
        if count > 1 and isinstance(sampler, samplers.Greedy | samplers.Contrastive):
            raise UserError(
                f"num_return_sequences {count}: {sampler.name} search gives one text; take a random sampler"
            )
        return count, 1

    def _limit(self, prompt: str, length: int, max_new_tokens: int | None) -> int:
        window = self.model.sequence_length
        if length > window:
            raise UserError(
                f"--prompt {head(prompt)!r}: {length} tokens with [BOS], and the window holds {window}; shorten it"
            )
        if max_new_tokens is None:
            return max(window - length, 1)
        if not 1 <= max_new_tokens <= MOST_NEW_TOKENS:
            raise UserError(f"--max-new-tokens {max_new_tokens}: must lie between 1 and {MOST_NEW_TOKENS:,}")
        # The last new token is never read, so it needs no position.
        if self.experiment.model.positions == "learned" and length + max_new_tokens > window + 1:
            raise UserError(
                f"--max-new-tokens {max_new_tokens}: the prompt leaves room for {window + 1 - length}, since learned "
                f"positions end at {window}; ask for fewer, or train with --model.positions rope"
            )
        return max_new_tokens

    def _bias(self, asked: Mapping[int, float], stops: Sequence[Sequence[int]]) -> np.ndarray:
        bias = np.zeros(self.model.vocabulary_size, np.float32)
        bias[len(self.tokenizer) :] = -np.inf
        bias[[PAD_ID, BOS_ID]] = -np.inf
        for token in {token for sequence in stops for token in sequence if token < len(self.tokenizer)}:
            bias[token] = 0.0
        for token, value in asked.items():
            if not 0 <= token < self.model.vocabulary_size:
                raise UserError(f"--logit-bias {token}: ids go from 0 to {self.model.vocabulary_size - 1}")
            bias[token] = value
        return bias


def _sampler(sampler: Any) -> Sampler:
    """A method from what the caller gave: one, the name of one, or None for greedy search."""
    if sampler is None:
        return samplers.Greedy()
    if isinstance(sampler, str):
        return samplers.create(sampler)
    if not isinstance(sampler, Sampler):
        raise UserError(f"sampler {sampler!r}: must be a sampler such as minigpt_jax.TopP(p=0.9), or the name of one")
    return sampler


def _mark_last(items: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    previous = next(items)
    for item in items:
        yield previous, False
        previous = item
    yield previous, True
