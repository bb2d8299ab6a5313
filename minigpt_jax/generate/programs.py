"""The compiled programs of sampling and scoring. Weights are arguments, never constants."""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from minigpt_jax import model, samplers
from minigpt_jax.data.batch import Batch
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


@functools.lru_cache(16)
def scorer(gpt: GPT) -> Any:
    """The program (weights, batch) -> log-probability of each row's labels, in nats [B]."""

    def score(weights: Any, batch: Batch) -> Any:
        nats_BT = metrics.cross_entropy(model.logits(gpt, weights, batch.features), batch.labels)
        return -jnp.sum(nats_BT, axis=1, where=batch.is_label)

    return devices.compile_rows(score, (None, 0))


def _prefill(apply: Any, slots: int, tokens_BT: Any, length_B: Any) -> Any:
    return apply(tokens_BT, length_B, slots, method="prefill")


def row_bucket(rows: int, devices: int) -> int:
    """Rows rounded up so that nearby numbers share a program: 1, 4, 16, 32, 64 … times the devices."""
    return devices * next(n for n in itertools.chain((1, 4), (2**i for i in itertools.count(4))) if n * devices >= rows)


def bucket(size: int, least: int, most: int | None = None) -> int:
    """The next power of two times `least`, so that nearby sizes share a program; at most `most`."""
    bucket = least
    while bucket < size:
        bucket *= 2
    return bucket if most is None else min(bucket, most)
