"""A model with its tokenizer and weights: texts in, texts or log-probabilities out."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minigpt_jax import model, samplers
from minigpt_jax.config import Experiment
from minigpt_jax.errors import UserError
from minigpt_jax.generate import continuations, requests
from minigpt_jax.generate.generation import Generation, generations
from minigpt_jax.generate.methods import as_sampler
from minigpt_jax.generate.programs import programs
from minigpt_jax.generate.settings import GenerationSettings, check_row_ids, signature_of_settings
from minigpt_jax.generate.text_stream import TextStream
from minigpt_jax.generate.texts import StopScanner, abbreviated, as_prompts, as_texts
from minigpt_jax.ops.platform import on_cpu
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import Sampler
from minigpt_jax.samplers.buckets import power_bucket
from minigpt_jax.tokenizer import Tokenizer, with_tokenizer

if TYPE_CHECKING:
    from minigpt_jax.generate.beam_tree import BeamTree
    from minigpt_jax.generate.held_out import HeldOut
    from minigpt_jax.generate.inspection import Inspected
    from minigpt_jax.generate.verdict import Verdict

CHUNK_TOKENS = 8
"""New tokens between two looks at the text, where it is streamed or searched for stop strings."""


class DecodeForm(NamedTuple):
    """The form of a model that is sampled from."""

    model: model.GPT
    weights: Any


class Plan(NamedTuple):
    """What a call of `generate` runs."""

    rows: list[requests.Row]
    processors: tuple[samplers.Processor, ...]
    top_logprobs: int
    """Most probable tokens that the program records; at least as many as any row asks for."""


class LanguageModel:
    """A model with its tokenizer and weights.

    Attributes:
        path: the folder that the model was loaded from, or None.
        end_ids: the labels that stand for the end of a document in training; give them as `stop` to let a text end.
    """

    def __init__(
        self,
        experiment: Experiment,
        tokenizer: Tokenizer,
        weights: Any,
        step: int | None = None,
        path: Path | None = None,
    ) -> None:
        devices.check_types()
        self.experiment = experiment = with_tokenizer(experiment, tokenizer)
        self.tokenizer = tokenizer
        self.step = step
        self.path = path
        self.model = model.build(experiment)
        self.weights = weights
        self.end_ids = tokenizer.special.ends(experiment.data.layout)

    def __repr__(self) -> str:
        config = self.experiment.model
        size = f"{config.num_layers} layers of {config.width}, {len(self.tokenizer):,} pieces"
        return f"LanguageModel({self.experiment.name!r}, {size}, window {self.model.sequence_length}, step {self.step})"

    @property
    def end_id(self) -> int:
        """The first of `end_ids`."""
        return self.end_ids[0]

    @property
    def weights(self) -> Any:
        """The parameter tree. Give another one to sample from that."""
        return self._weights

    @weights.setter
    def weights(self, weights: Any) -> None:
        self._weights = weights
        self.__dict__.pop("decode_form", None)

    @functools.cached_property
    def decode_form(self) -> DecodeForm:
        """The model and weights in the form that is sampled from, made when it is first needed."""
        gpt, own = model.for_decoding(self.model, self.weights)
        # On CPU a step of few rows takes about half the time in float32, whatever type the run was trained in.
        return DecodeForm(gpt.clone(dtype=jnp.float32) if on_cpu() else gpt, own)

    @signature_of_settings
    def generate(
        self,
        prompts: str | Iterable[str | Sequence[int]],
        sampler: Sampler | str | None = None,
        max_new_tokens: int | None = None,
        *,
        settings: GenerationSettings | Sequence[GenerationSettings] | None = None,
        row_ids: Iterable[int] | None = None,
        **changes: Any,
    ) -> list[Generation]:
        """Continues each prompt. Prompts of any lengths, the empty one included, share one compiled program.

        Args:
            prompts: strings, or one string, which gives a list of one. A prompt may also be a list of token ids without
                the start token.
            sampler: a method such as `TopP(p=0.9)`, or its text, such as "top_p:p=0.9"; greedy search by default.
            settings: all other settings, for all prompts or a sequence with one for each prompt.
            row_ids: what each prompt's draws depend on besides the seed; 0, 1, 2 … by default.
            changes: fields of `GenerationSettings` by name, such as seed=1, stop=["\\n"] or num_return_sequences=3.
                They take precedence over `settings`.

        Returns:
            The texts of all prompts in order, those of one prompt side by side.

        Raises:
            UserError: a setting that is not allowed, or a prompt that leaves no room in the window.
        """
        method, given = as_sampler(sampler), as_prompts(prompts)
        asked = _settings(settings, len(given), max_new_tokens, changes)
        *_, last = self._chunks(given, method, asked, row_ids)
        return last

    @signature_of_settings
    def stream(
        self,
        prompt: str,
        sampler: Sampler | str | None = None,
        max_new_tokens: int | None = None,
        *,
        full: bool = False,
        settings: GenerationSettings | None = None,
        row_ids: Iterable[int] | None = None,
        **changes: Any,
    ) -> Iterator[str]:
        """Yields the text of `generate([prompt], …)` piece by piece as it is made: whole words, whole characters.

        What may turn out to begin a stop is held back until it is known. `full` yields the prompt too, as in
        `Generation.full_text`. The other arguments are those of `generate`.

        Raises:
            UserError: as `generate` does, and for beam search or several texts.
        """
        method, [asked] = as_sampler(sampler), _settings(settings, 1, max_new_tokens, changes)
        if not method.streams:
            raise UserError(
                f"{method.name} knows its text only at the end and cannot be streamed; take another sampler"
            )
        if not isinstance(prompt, str):
            raise UserError(f"prompt: must be one string to be streamed, not {type(prompt).__name__}")
        if asked.num_return_sequences != 1:
            raise UserError("--num-return-sequences: one text is streamed at a time; take generate for several")
        prompt_ids = self.tokenizer.encode_batch([prompt])[0] if full else None
        text = TextStream(self.tokenizer, asked, prompt_ids)
        for [generation], final in _mark_last(self._chunks([prompt], method, [asked], row_ids, streamed=True)):
            if piece := text.piece(generation, final):
                yield piece

    def score(self, texts: str | Iterable[str]) -> list[float]:
        """The log-probability of each text, in nats, its end not included; one string gives a list of one.

        Raises UserError for a text that does not fit in the window.
        """
        texts = as_texts(texts, "texts")
        ids = self.ids(texts)
        window = self.model.sequence_length
        for text, tokens in zip(texts, ids, strict=True):
            if len(tokens) > window + 1:
                raise UserError(
                    f"the text {abbreviated(text)!r} has {len(tokens) - 1} tokens, and the window holds {window}; "
                    "shorten it"
                )
        found = dict(continuations.scores(self, [(tokens[:1], tokens[1:]) for tokens in ids]))
        return [found[i].logprob for i in range(len(ids))]

    def compare(
        self,
        methods: Iterable[Sampler | str],
        prompts: "Iterable[str | HeldOut]",
        max_new_tokens: int = 96,
        seed: int = 0,
        progress: bool = False,
    ) -> "list[Verdict]":
        """The measures of each method's continuations of many prompts; see `generate.verdict.compare`."""
        from minigpt_jax.generate import verdict

        return verdict.compare(self, methods, prompts, max_new_tokens, seed, progress)

    def inspect(
        self,
        prompt: str | list[int],
        tokens: Sequence[int],
        sampler: Sampler | str | None = None,
        settings: GenerationSettings | None = None,
        count: int | None = None,
    ) -> "list[Inspected]":
        """What the method chose from at each of the tokens that it generated; see `generate.inspection.inspect`."""
        from minigpt_jax.generate import inspection

        method, asked = as_sampler(sampler), settings or GenerationSettings()
        return inspection.inspect(self, prompt, tokens, method, asked, count)

    def beam_tree(
        self, prompt: str | list[int], sampler: Sampler | str = "beam", settings: GenerationSettings | None = None
    ) -> "BeamTree":
        """The surviving and the dropped hypotheses of a beam search; see `generate.beam_tree.beam_tree`."""
        from minigpt_jax.generate import beam_tree

        return beam_tree.beam_tree(self, prompt, as_sampler(sampler), settings or GenerationSettings())

    def ids(self, texts: Sequence[str | list[int]]) -> list[list[int]]:
        """The ids of each text, the start token first.

        Raises:
            UserError: a text was given as token ids, of which the vocabulary lacks one.
        """
        encoded = [self.tokenizer.encode_batch([one])[0] if isinstance(one, str) else one for one in texts]
        for token in itertools.chain.from_iterable(encoded):
            if not 0 <= token < len(self.tokenizer):
                raise UserError(f"prompts: there is no token {token}; ids go from 0 to {len(self.tokenizer) - 1:,}")
        return [[self.tokenizer.special.start, *tokens] for tokens in encoded]

    def _chunks(
        self,
        prompts: Sequence[str | list[int]],
        sampler: Sampler,
        settings: Sequence[GenerationSettings],
        row_ids: Iterable[int] | None,
        streamed: bool = False,
    ) -> Iterator[list[Generation]]:
        """The texts so far, each time that the host looks at them; the last time they are whole."""
        if not prompts:
            yield []
            return
        plan = self.plan(prompts, sampler, settings, row_ids)
        rows = plan.rows
        sizes = requests.sizes(rows, self.model.sequence_length)
        request = devices.split_rows(requests.request(rows, sizes, self.tokenizer, self.model.vocabulary_size))
        structure = jax.tree.structure(sampler)
        gpt, weights = self.decode_form
        compiled = programs(gpt, sizes.slots, sizes.room, structure, plan.processors, plan.top_logprobs)  # pyright: ignore[reportArgumentType]
        scanners = [StopScanner.of(row.settings, self.tokenizer.decode) for row in rows]
        finish = lambda output: generations(self.tokenizer, rows, scanners, devices.join_rows(output))  # noqa: E731
        if not streamed and not any(scanners):
            yield finish(compiled.whole(weights, request, sampler))[0]
            return
        state = compiled.start(weights, request, sampler)
        done = np.zeros(sizes.rows, bool)
        for until in range(CHUNK_TOKENS, sizes.room + CHUNK_TOKENS, CHUNK_TOKENS):
            state = compiled.advance(state, weights, request, sampler, jnp.int32(until), devices.split_rows(done))
            texts, stopped = finish(compiled.result(state, request, sampler))
            yield texts
            done[: len(rows)] = stopped
            if not devices.join_rows(state.running)[~done].any():
                return

    def plan(
        self,
        prompts: Sequence[str | list[int]],
        sampler: Sampler,
        settings: Sequence[GenerationSettings],
        row_ids: Any = None,
    ) -> Plan:
        """What `generate` runs for these prompts, each with settings of its own. Nothing is compiled or run here.

        Raises:
            UserError: as `generate` does.
        """
        sampler.validate(len(self.tokenizer))
        if any(one.stop_strings for one in settings) and not sampler.streams:
            raise UserError(
                f"--stop: {sampler.name} takes token ids and no strings, whose end it cannot see in its loop"
            )
        processors, top_logprobs = self._static(settings)
        ids = self.ids(prompts)
        texts = [one if isinstance(one, str) else self.tokenizer.decode(one) for one in prompts]
        rows = requests.rows(texts, ids, check_row_ids(row_ids, len(prompts)), sampler, settings, self.model)
        return Plan(rows, processors, top_logprobs)

    def _static(self, settings: Sequence[GenerationSettings]) -> tuple[tuple[samplers.Processor, ...], int]:
        """What a compiled program depends on: the processors, and a bucket for the number of most probable tokens."""
        processors = tuple(settings[0].processors)
        if any(tuple(one.processors) != processors for one in settings):
            raise UserError("processors: the prompts of one call share them; make a call for each list of processors")
        most, vocabulary_size = max(one.top_logprobs for one in settings), self.model.vocabulary_size
        if most > vocabulary_size:
            raise UserError(f"--top-logprobs {most}: the vocabulary has {vocabulary_size:,} tokens; ask for fewer")
        return samplers.checked(processors), power_bucket(most, 8, vocabulary_size) if most else 0


def _settings(
    settings: GenerationSettings | Sequence[GenerationSettings] | None,
    prompts: int,
    max_new_tokens: int | None,
    changes: dict[str, Any],
) -> list[GenerationSettings]:
    """The settings of each prompt; the keywords of the call take precedence."""
    if max_new_tokens is not None:
        changes = {"max_new_tokens": max_new_tokens, **changes}
    given = GenerationSettings() if settings is None else settings
    if isinstance(given, GenerationSettings):
        return [given.replace(**changes)] * prompts
    if not isinstance(given, Sequence) or not all(isinstance(one, GenerationSettings) for one in given):
        raise UserError(f"settings {settings!r}: must be a minigpt_jax.GenerationSettings, or one for each prompt")
    if len(given) != prompts:
        raise UserError(f"settings: {len(given)} given for {prompts} prompts; give one, or one per prompt")
    return [one.replace(**changes) for one in given]


def _mark_last(items: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    previous = next(items)
    for item in items:
        yield previous, False
        previous = item
    yield previous, True
