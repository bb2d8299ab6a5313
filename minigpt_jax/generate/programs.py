"""The compiled programs of sampling and scoring. Weights are arguments, never constants."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from minigpt_jax import model, samplers
from minigpt_jax.model import GPT
from minigpt_jax.ops.platform import on_cpu
from minigpt_jax.parallel import devices
from minigpt_jax.samplers import Output, Processor, Request, Sampler
from minigpt_jax.train import metrics


@dataclass(frozen=True)
class Programs:
    """The compiled functions of one model, room and kind of sampler; see `samplers` for what each does."""

    whole: Any
    start: Any
    advance: Any
    result: Any


@functools.lru_cache(256)
def programs(
    gpt: GPT, slots: int, room: int, sampler: Any, processors: tuple[Processor, ...] = (), top_logprobs: int = 0
) -> Programs:
    """The programs for a cache of `slots` and `room` new tokens; `sampler` is the tree structure of one."""
    del sampler  # its structure alone is compiled for

    def bound(weights: Any) -> tuple[Any, Any]:
        apply = functools.partial(gpt.apply, {"params": weights})
        return functools.partial(_prefill, apply, slots), functools.partial(apply, method="step")

    def whole(weights: Any, request: Request, sampler: Sampler) -> Output:
        return samplers.decode(
            *bound(weights), sampler, request, room, processors=processors, top_logprobs=top_logprobs
        )

    def start(weights: Any, request: Request, sampler: Sampler) -> Any:
        return samplers.start(bound(weights)[0], sampler, request, room, top_logprobs=top_logprobs)

    def advance(state: Any, weights: Any, request: Request, sampler: Sampler, until: Any, done: Any) -> Any:
        state = samplers.halt(state, done)
        return samplers.advance(bound(weights)[1], sampler, request, state, until, processors=processors)

    def result(state: Any, request: Request, sampler: Sampler) -> Output:
        return samplers.result(sampler, request, state)

    compile_rows = functools.partial(devices.compile_rows, options=compiler_options())
    rows, all_rows = 0, None
    return Programs(
        whole=compile_rows(whole, (all_rows, rows, all_rows)),
        start=compile_rows(start, (all_rows, rows, all_rows)),
        advance=compile_rows(advance, (rows, all_rows, rows, all_rows, all_rows, rows), donate=(0,)),
        result=compile_rows(result, (rows, rows, all_rows)),
    )


def compiler_options() -> dict[str, Any]:
    """What makes steps of few rows fast on CPU."""
    return _without_ynnpack() if on_cpu() else {}


@functools.cache
def _without_ynnpack() -> dict[str, Any]:
    """The options that have XLA use Eigen's matrix products, where it knows them.

    YNNPACK's products, which XLA prefers since jaxlib 0.10, take up to twice as long there as Eigen's: they arrange
    the weights anew at each call.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:  # an experimental flag: other versions may lack it
        return {}
    return options


@functools.lru_cache(64)
def inspector(gpt: GPT, slots: int, sampler: Any, processors: tuple[Processor, ...] = (), count: int = 10) -> Any:
    """The program (weights, request, sampler, new tokens [B, M]) -> `samplers.Inspection` of `count` candidates.

    The other arguments are those of `programs`.
    """
    del sampler

    def inspect(weights: Any, request: Request, sampler: Sampler, tokens_BM: Any) -> samplers.Inspection:
        apply = functools.partial(gpt.apply, {"params": weights})
        step: Any = functools.partial(apply, method="step")
        prefill = functools.partial(_prefill, apply, slots)
        return samplers.inspect(prefill, step, sampler, request, tokens_BM, count, processors=processors)

    return devices.compile_rows(inspect, (None, 0, None, 0), options=compiler_options())


@functools.lru_cache(16)
def continuation_scorer(gpt: GPT) -> Any:
    """The program (weights, tokens [B, T+1], start [B], length [B]) -> log-probabilities [B] and [B] whether greedy.

    Both are of the tokens `start:length` of each row: their log-probability in nats, and whether each is the most
    probable one in its place.
    """

    def score(weights: Any, tokens_BU: Any, start_B: Any, length_B: Any) -> Any:
        labels_BT = tokens_BU[:, 1:]
        asked_BT = _asked(labels_BT, start_B, length_B)
        logits_BTV = model.logits(gpt, weights, tokens_BU[:, :-1])
        nats_BT = metrics.cross_entropy(logits_BTV, labels_BT)
        is_first_BT = jnp.argmax(logits_BTV, axis=-1) == labels_BT
        return -jnp.sum(nats_BT, axis=1, where=asked_BT), jnp.all(is_first_BT, axis=1, where=asked_BT)

    return devices.compile_rows(score, (None, 0, 0, 0))


@functools.lru_cache(16)
def judge(gpt: GPT) -> Any:
    """The program (weights, tokens [B, T+1], start [B], length [B]) -> nats [B] and features [B, D] of texts.

    The nats are those of the tokens `start:length` of each row. The features are the hidden state of the last token, or
    of the one before it if the window has no position for the last.
    """

    def judged(weights: Any, tokens_BU: Any, start_B: Any, length_B: Any) -> Any:
        tokens_BT, labels_BT = tokens_BU[:, :-1], tokens_BU[:, 1:]
        asked_BT = _asked(labels_BT, start_B, length_B)
        nats_BT = metrics.cross_entropy(model.logits(gpt, weights, tokens_BT), labels_BT)
        hidden_BTD = model.hidden(gpt, weights, tokens_BT)
        last_B = jnp.minimum(length_B, tokens_BT.shape[1]) - 1
        features_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
        return jnp.sum(nats_BT, axis=1, where=asked_BT), features_BD

    return devices.compile_rows(judged, (None, 0, 0, 0))


def _asked(labels_BT: Any, start_B: Any, length_B: Any) -> Any:
    """Whether each label is one of the tokens `start:length` of its row. Label i is token i + 1."""
    place_1T = 1 + jnp.arange(labels_BT.shape[1])[None]
    return (start_B[:, None] <= place_1T) & (place_1T < length_B[:, None])


def _prefill(apply: Any, slots: int, tokens_BT: Any, length_B: Any) -> Any:
    return apply(tokens_BT, length_B, slots, method="prefill")
