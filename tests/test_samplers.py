"""The while_loop and the methods that pick one token a row, on models whose text is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chi_square import follows
from fake_models import LETTERS, FakeModel, counting, decode, encode, hashing, reciting

from minigpt_jax import samplers
from minigpt_jax.errors import UserError

V = len(LETTERS)
SAMPLERS = [
    samplers.Greedy(),
    samplers.Random(1.5),
    samplers.TopK(5, 2.0),
    samplers.TopP(0.8),
    samplers.MinP(0.2, 1.5),
    samplers.Typical(0.7),
    samplers.Beam(3, 0.6),
    samplers.Contrastive(3, 0.6),
]
RANDOM = [sampler for sampler in SAMPLERS if hasattr(sampler, "temperature")]


@functools.cache
def program(model: FakeModel):
    return jax.jit(functools.partial(samplers.decode, model.prefill, model.step), static_argnums=2)


def run(model, sampler, prompts, max_new_tokens, room=12, **settings):
    request = samplers.request(prompts, vocabulary_size=V, max_new_tokens=max_new_tokens, width=8, **settings)
    return jax.tree.map(np.asarray, program(model)(sampler, request, room))


def texts(output):
    return [decode(tokens[:length]) for tokens, length in zip(output.tokens[:, 0], output.length[:, 0], strict=True)]


def log_softmax(x):
    return x - x.max() - np.log(np.sum(np.exp(x - x.max())))


COUNTER, HASH = counting(V), hashing(V, slots=24)
LINES = ["once upon a time", "the king is dead.", "a cat."]
RECITER = reciting(LINES)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_ragged_prompts_go_on_where_they_end(sampler):
    # A counting machine that is all but sure of itself: every method says the same.
    if isinstance(sampler, samplers.Contrastive):
        sampler = samplers.Contrastive(3, 0.01)
    sure = dataclasses.replace(sampler, temperature=0.5) if sampler in RANDOM else sampler
    out = run(COUNTER, sure, [encode("ab"), encode("mmmmm"), encode("xyz")], [4, 6, 1])
    assert texts(out) == ["cdef", "nopqrs", " "]
    assert out.length[:, 0].tolist() == [4, 6, 1]
    assert not out.stopped[:, 0].any()
    assert np.all(out.tokens[:, 0][np.arange(12)[None] >= out.length[:, :1]] == 0)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_a_hidden_line_is_read_from_the_cache(sampler):
    sure = dataclasses.replace(sampler, temperature=0.5) if sampler in RANDOM else sampler
    prompts = [encode("onc"), encode("t"), encode("a c"), encode("the king")]
    out = run(RECITER, sure, prompts, 12, stops=[encode("ime"), encode("."), encode("is d")])
    assert texts(out) == ["e upon a tim", "he king is d", "at.", " is d"]
    assert out.stopped[:, 0].tolist() == [False, True, True, True]


def test_stops_in_the_prompt_do_not_count():
    out = run(COUNTER, samplers.Greedy(), [encode("abc"), encode("b")], 4, stops=[encode("cd"), encode("ef")])
    assert texts(out) == ["def", "cd"]


def test_the_longest_and_the_shortest_of_stops_that_overlap():
    out = run(
        COUNTER, samplers.Greedy(), [encode("a"), encode("bc")], 9, stops=[encode("bcdefg"), encode("efg"), encode("g")]
    )
    assert texts(out) == ["bcdefg", "defg"]
    out = run(
        COUNTER, samplers.Greedy(), [encode("a"), encode("bc")], 9, stops=[encode("bcdef"), encode("efg"), encode("h")]
    )
    assert texts(out) == ["bcdef", "defg"]


def test_no_stop_before_the_minimum():
    # Banned where it would come, the stop is passed over for the lowest of tokens that are all alike: padding.
    prompts = [encode("a"), encode("bc"), encode("z")]
    out = run(COUNTER, samplers.Greedy(), prompts, 5, stops=[encode("d")], min_new_tokens=2)
    assert texts(out) == ["bcd", "··abc"[:1] + "abcd"[:4], " .·ab"]


def test_rows_without_room_are_at_rest_from_the_start():
    for sampler in SAMPLERS:
        out = run(COUNTER, sampler, [encode("a"), encode("b"), encode("c")], [0, 3, 0])
        assert out.length[:, 0].tolist() == [0, 3, 0]
        assert not out.tokens[[0, 2], 0].any()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_logprobs_are_the_models_own(sampler):
    bias = np.zeros(V)
    bias[[1, 2, 3]] = [-np.inf, 2.0, -1.0]
    prompts = [[4, 2, 9], [7], [3, 3, 3, 3, 3]]
    settings = {"stops": [[5], [9, 2]], "repetition_penalty": 1.4, "logit_bias": bias}
    out = run(HASH, sampler, prompts, [10, 12, 8], **settings)
    for prompt, tokens, logprobs, length, score in zip(
        prompts, out.tokens[:, 0], out.logprobs[:, 0], out.length[:, 0], out.score[:, 0], strict=True
    ):
        assert 1 not in tokens[:length]
        text = list(prompt)
        for token, logprob in zip(tokens[:length], logprobs[:length], strict=True):
            assert logprob == pytest.approx(log_softmax(HASH.logits(text))[token], abs=1e-5)
            text.append(token)
        assert not logprobs[length:].any()
        if not isinstance(sampler, samplers.Beam):
            assert score == pytest.approx(logprobs.sum(), abs=1e-4)


def test_greedy_takes_the_best_at_every_step():
    prompts = [[4, 2, 9], [7], [3, 3, 3, 3, 3]]
    out = run(HASH, samplers.Greedy(), prompts, 12, stops=[[5]])
    for prompt, tokens, length, stopped in zip(
        prompts, out.tokens[:, 0], out.length[:, 0], out.stopped[:, 0], strict=True
    ):
        text = list(prompt)
        while len(text) < len(prompt) + 12 and text[-1] != 5:
            text.append(int(np.argmax(HASH.logits(text))))
        assert tokens[:length].tolist() == text[len(prompt) :]
        assert stopped == (text[-1] == 5)


@pytest.mark.parametrize("sampler", RANDOM, ids=lambda sampler: sampler.name)
def test_temperature_zero_is_greedy(sampler):
    prompts = [[4, 2, 9], [7], [3, 3, 3, 3, 3]]
    cold = run(HASH, dataclasses.replace(sampler, temperature=0.0), prompts, 12)
    np.testing.assert_array_equal(cold.tokens, run(HASH, samplers.Greedy(), prompts, 12).tokens)
    cool = run(HASH, dataclasses.replace(sampler, temperature=1e-20), prompts, 12)
    np.testing.assert_array_equal(cool.tokens, cold.tokens)


def reference_probabilities(sampler, logits):
    """What each method draws from, by sorting, in NumPy."""
    p = np.exp(log_softmax(logits / sampler.temperature))
    match sampler:
        case samplers.TopK():
            order, size = np.argsort(-p), sampler.k
        case samplers.TopP():
            order = np.argsort(-p)
            size = np.searchsorted(np.cumsum(p[order]), sampler.p) + 1
        case samplers.MinP():
            order = np.argsort(-p)
            size = np.sum(p >= sampler.p * p.max())
        case samplers.Typical():
            order = np.argsort(np.abs(-np.log(p) + np.sum(p * np.log(p))))
            size = np.searchsorted(np.cumsum(p[order]), sampler.p) + 1
        case samplers.Random():
            order, size = np.arange(len(p)), len(p)
    out = np.zeros_like(p)
    out[order[:size]] = p[order[:size]]
    return out / out.sum()


@pytest.mark.parametrize("sampler", RANDOM, ids=lambda sampler: sampler.name)
def test_random_methods_draw_what_they_say(sampler):
    """The second token, over rows that differ in nothing but their id, for the commonest first one."""
    sampler = dataclasses.replace(sampler, temperature=1.5)
    out = run(HASH, sampler, [[6, 11]] * 3000, [2] * 3000, room=2)
    first = np.bincount(out.tokens[:, 0, 0], minlength=V)
    assert follows(first, reference_probabilities(sampler, HASH.logits([6, 11])))
    common = int(first.argmax())
    second = np.bincount(out.tokens[out.tokens[:, 0, 0] == common, 0, 1], minlength=V)
    probabilities = reference_probabilities(sampler, HASH.logits([6, 11, common]))
    likely = probabilities * second.sum() > 6  # the rest are too rare for the test: one group
    group = lambda x: np.append(x[likely], x[~likely].sum())  # noqa: E731
    assert follows(group(second), np.maximum(group(probabilities), 0)) or group(probabilities)[-1] * second.sum() < 6
    assert second[probabilities == 0].sum() == 0


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_a_row_does_not_depend_on_the_others(sampler):
    prompt = [4, 2, 9]
    [alone] = run(HASH, sampler, [prompt], 12, row_ids=[17], seed=5, stops=[[5]]).tokens
    others = [[v % V, (3 * v) % V][: 1 + v % 2] for v in range(64)]
    among = run(HASH, sampler, [*others[:17], prompt, *others[18:]], [*[7] * 17, 12, *[9] * 46], seed=5, stops=[[5]])
    np.testing.assert_array_equal(among.tokens[17], alone)
    order = [2, 17, 0, 1]
    few = run(HASH, sampler, [others[2], prompt, others[0], others[1]], 12, row_ids=order, seed=5, stops=[[5]])
    back = run(HASH, sampler, [others[1], others[0], prompt, others[2]], 12, row_ids=order[::-1], seed=5, stops=[[5]])
    np.testing.assert_array_equal(few.tokens, back.tokens[::-1])
    np.testing.assert_array_equal(few.tokens[1], alone)


@pytest.mark.parametrize("sampler", RANDOM, ids=lambda sampler: sampler.name)
def test_seed_row_and_position_all_count(sampler):
    hot = dataclasses.replace(sampler, temperature=3.0)
    base, again = (run(HASH, hot, [[4]] * 4, 12, seed=1).tokens[:, 0] for _ in range(2))
    np.testing.assert_array_equal(base, again)
    assert len({tuple(row) for row in base}) == 4
    for seed in (2, 1 + 2**32, -1):
        assert not np.array_equal(base, run(HASH, hot, [[4]] * 4, 12, seed=seed).tokens[:, 0])
    # The draws of a row do not repeat from one position to the next: a constant model would tell.
    constant = FakeModel(lambda tokens, count, xp: (xp.zeros((len(tokens), V)), xp.zeros((len(tokens), 1))), 24)
    steady = run(constant, samplers.Random(), [[4]] * 4, 12).tokens[:, 0]
    assert all(len(set(row)) > 4 for row in steady)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
@pytest.mark.parametrize("chunk", [1, 5])
def test_in_chunks_or_in_one_go(sampler, chunk):
    prompts = [[4, 2, 9], [7], [3, 3, 3, 3, 3]]
    request = samplers.request(prompts, vocabulary_size=V, max_new_tokens=[12, 12, 9], width=8, stops=[[5]])
    whole = program(HASH)(sampler, request, 12)
    state = jax.jit(functools.partial(samplers.start, HASH.prefill), static_argnums=2)(sampler, request, 12)
    advance = jax.jit(functools.partial(samplers.advance, HASH.step), donate_argnums=2)
    for until in range(chunk, 13 + chunk, chunk):
        state = advance(sampler, request, state, until)
        if not isinstance(sampler, samplers.Beam):
            so_far = jax.jit(samplers.result)(sampler, request, state)
            seen = np.arange(12)[None] < np.asarray(so_far.length)
            assert np.asarray(so_far.length).max() <= max(until, 1)
            np.testing.assert_array_equal(so_far.tokens[:, 0][seen], whole.tokens[:, 0][seen])
    jax.tree.map(np.testing.assert_array_equal, jax.jit(samplers.result)(sampler, request, state), whole)


def test_rows_that_the_host_puts_to_rest_stay_there():
    request = samplers.request([encode("a"), encode("k")], vocabulary_size=V, max_new_tokens=12, width=8)
    state = samplers.start(COUNTER.prefill, samplers.Greedy(), request, 12)
    state = samplers.advance(COUNTER.step, samplers.Greedy(), request, state, 3)
    state = samplers.halt(state, jnp.array([True, False]))
    state = samplers.advance(COUNTER.step, samplers.Greedy(), request, state, 5)
    assert texts(jax.tree.map(np.asarray, samplers.result(samplers.Greedy(), request, state))) == ["bcd", "lmnop"]


def count_traces(calls):
    """How often decode is traced over a list of (sampler, settings)."""
    traces = 0

    def traced(sampler, request):
        nonlocal traces
        traces += 1
        return samplers.decode(COUNTER.prefill, COUNTER.step, sampler, request, 4)

    compiled = jax.jit(traced)
    for sampler, settings in calls:
        settings = {"max_new_tokens": 4, **settings}
        compiled(sampler, samplers.request([[1, 2], [3]], vocabulary_size=V, width=4, **settings))
    return traces


SETTINGS = [
    {},
    {"seed": 7},
    {"seed": 2**63},
    {"max_new_tokens": 2},
    {"max_new_tokens": [3, 1]},
    {"row_ids": [5, 9]},
    {"stops": [[4]]},
    {"stops": [[4], [5, 6, 7]]},
    {"min_new_tokens": 2},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 2},
    {"presence_penalty": 1},
    {"frequency_penalty": 0.5},
    {"no_repeat_ngram": 2},
    {"logit_bias": [1.0] * V},
]


@pytest.mark.parametrize(
    "variants",
    [
        [samplers.Greedy()],
        [samplers.Random(), samplers.Random(2), samplers.Random(np.float64(0.5)), samplers.Random(0)],
        [samplers.TopK(), samplers.TopK(3, 1), samplers.TopK(np.int64(7), 0.5)],
        [samplers.TopP(), samplers.TopP(1), samplers.TopP(0.3, 0.7)],
        [samplers.MinP(), samplers.MinP(1), samplers.MinP(0.3, 0.7)],
        [samplers.Typical(), samplers.Typical(1), samplers.Typical(0.3, 0.7)],
        [samplers.Beam(3, 0.6), samplers.Beam(4, 1), samplers.Beam(4, 0)],
        [samplers.Contrastive(3, 0.6), samplers.Contrastive(4, 1), samplers.Contrastive(4, 0)],
    ],
    ids=lambda variants: variants[0].name,
)
def test_one_program_serves_all_settings(variants):
    calls = [(sampler, {}) for sampler in variants] + [(variants[0], settings) for settings in SETTINGS]
    assert count_traces(calls) == 1


def test_widths_are_bucketed():
    assert [samplers.Beam(n).width for n in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 17, 33)] == [
        1,
        2,
        4,
        4,
        6,
        8,
        8,
        10,
        10,
        12,
        20,
        40,
    ]
    assert count_traces([(samplers.Beam(n), {}) for n in (3, 4, 5, 6)]) == 2


def test_create_by_name():
    assert samplers.create("top-k", k=3, temperature=None) == samplers.TopK(k=3)
    assert samplers.create("beam", num_beams=4, length_penalty=0.0) == samplers.Beam(4, 0.0)
    assert {name: samplers.create(name).name for name in samplers.METHODS} == {name: name for name in samplers.METHODS}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: samplers.create("topk"), ["--sampler topk", "top_k"]),
        (lambda: samplers.create("viterbi"), ["--sampler viterbi", "greedy, beam"]),
        (lambda: samplers.create("greedy", k=4), ["--k", "greedy", "no settings"]),
        (lambda: samplers.create("top_p", num_beams=4), ["--num-beams", "top_p", "--p, --temperature"]),
        (lambda: samplers.TopK(0).validate(V), ["--k 0", f"1 to {V}"]),
        (lambda: samplers.TopK(V + 1).validate(V), [f"--k {V + 1}", f"1 to {V}"]),
        (lambda: samplers.TopP(0.0).validate(V), ["--p 0.0", "(0, 1]"]),
        (lambda: samplers.TopP(1.1).validate(V), ["--p 1.1"]),
        (lambda: samplers.MinP(-0.1).validate(V), ["--p -0.1"]),
        (lambda: samplers.Typical(float("nan")).validate(V), ["--p nan"]),
        (lambda: samplers.Random(-1.0).validate(V), ["--temperature -1.0"]),
        (lambda: samplers.TopP(0.5, float("inf")).validate(V), ["--temperature inf"]),
        (lambda: samplers.Beam(0).validate(V), ["--num-beams 0"]),
        (lambda: samplers.Beam(2, -1.0).validate(V), ["--length-penalty -1.0"]),
        (lambda: samplers.Contrastive(0).validate(V), ["--k 0"]),
        (lambda: samplers.Contrastive(V + 1).validate(V), [f"--k {V + 1}"]),
        (lambda: samplers.Contrastive(4, 1.5).validate(V), ["--alpha 1.5", "[0, 1]"]),
        (lambda: request(seed=2**64), ["--seed", "64 bits"]),
        (lambda: request(min_new_tokens=-1), ["--min-new-tokens -1"]),
        (lambda: request(repetition_penalty=0.0), ["--repetition-penalty 0.0"]),
        (lambda: request(presence_penalty=float("nan")), ["--presence-penalty nan"]),
        (lambda: request(frequency_penalty=float("inf")), ["--frequency-penalty inf"]),
        (lambda: request(no_repeat_ngram=-2), ["--no-repeat-ngram -2"]),
        (lambda: request(stops=[[]]), ["--stop []"]),
        (lambda: request(stops=[[3, V]]), [f"--stop [3, {V}]"]),
        (lambda: request(logit_bias=[0.0]), ["--logit-bias", str(V)]),
        (lambda: request(logit_bias=[-np.inf] * V), ["--logit-bias", "at least one"]),
    ],
)
def test_what_cannot_be_is_told_in_one_line(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def request(**settings):
    return samplers.request([[1]], vocabulary_size=V, max_new_tokens=1, **settings)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_what_can_be_is_let_through(sampler):
    sampler.validate(V)
    type(sampler)().validate(V)
