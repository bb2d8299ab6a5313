"""The while_loop and the methods that pick one token a row, on models whose text is known."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chi_square import follows
from fake_models import LETTERS, FakeModel, by_first_token, counting, decode, encode, hashing, reciting

from minigpt_jax import rng, samplers

V, SLOTS, ROWS, WIDTH, ROOM = len(LETTERS), 24, 8, 10, 12
LINES = ["once upon a time", "the king is dead.", "a cat."]
COUNT, RECITE = encode(" .")
# One model for all tests, so that a method is compiled once: texts that begin with a blank count, those that begin with
# a dot recite, and the others are random.
MODEL = FakeModel(
    by_first_token({COUNT: counting(V, 6), RECITE: reciting(LINES, SLOTS, 6)}, hashing(V, SLOTS, 6)), SLOTS
)
SAMPLERS = [
    samplers.Greedy(),
    samplers.Random(1.5),
    samplers.TopK(5, 2.0),
    samplers.TopP(0.8),
    samplers.MinP(0.2, 1.5),
    samplers.Typical(0.7),
    samplers.Beam(3, 0.6),
    samplers.Contrastive(3, 0.3),
]
RANDOM = SAMPLERS[1:6]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
every_random_sampler = pytest.mark.parametrize("sampler", RANDOM, ids=lambda sampler: sampler.name)
PROMPTS = [[4, 2, 9], [7], [3, 3, 3, 3, 3]]

traces = collections.Counter()


def counted(function, **settings):
    """A jitted function of (sampler, ...) that counts how often it is traced."""

    def traced(sampler, *args):
        traces[function.__name__, sampler.name] += 1
        return function(sampler, *args)

    return jax.jit(traced, **settings)


decode_all = jax.jit(functools.partial(samplers.decode, MODEL.prefill, MODEL.step), static_argnums=2)
start = counted(functools.wraps(samplers.start)(functools.partial(samplers.start, MODEL.prefill)), static_argnums=2)
advance = counted(functools.wraps(samplers.advance)(functools.partial(samplers.advance, MODEL.step)), donate_argnums=2)
result = counted(samplers.result)
pick = jax.jit(lambda sampler, logits, key: sampler.pick(logits, key))


def make_request(prompts, max_new_tokens=ROOM, rows=ROWS, row_ids=None, **settings):
    """A request filled up with rows that are at rest."""
    rest = rows - len(prompts)
    return samplers.request(
        [*prompts, *[[1]] * rest],
        vocabulary_size=V,
        max_new_tokens=[*np.broadcast_to(max_new_tokens, len(prompts)), *[0] * rest],
        row_ids=[*(range(len(prompts)) if row_ids is None else row_ids), *[0] * rest],
        width=WIDTH,
        **settings,
    )


def run(sampler, prompts, *args, **settings):
    request = make_request(prompts, *args, **settings)
    output = result(sampler, request, advance(sampler, request, start(sampler, request, ROOM), ROOM))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(prompts)], output)


def texts(output):
    return [decode(tokens[:length]) for tokens, length in zip(output.tokens[:, 0], output.length[:, 0], strict=True)]


def log_softmax(x):
    return x - x.max() - np.log(np.sum(np.exp(x - x.max())))


@every_sampler
def test_ragged_prompts_go_on_where_they_end(sampler):
    prompts = [encode(" ab"), encode(" mmmmm"), encode(" xyz"), encode(".onc"), encode(".the king ")]
    out = run(sampler, prompts, [4, 6, 1, 12, 3])
    assert texts(out) == ["cdef", "nopqrs", " ", "e upon a tim", "is "]
    assert out.length[:, 0].tolist() == [4, 6, 1, 12, 3]
    assert not out.stopped[:, 0].any()
    assert not out.tokens[:, 0][np.arange(ROOM)[None] >= out.length[:, :1]].any()


@every_sampler
def test_rows_end_on_their_own(sampler):
    prompts = [encode(".onc"), encode(".t"), encode(".a c"), encode(".the king"), encode(" b")]
    out = run(sampler, prompts, stops=[encode("ime"), encode("."), encode("is d")])
    assert texts(out) == ["e upon a tim", "he king is d", "at.", " is d", "cdefghijklmn"]
    assert out.stopped[:, 0].tolist() == [False, True, True, True, False]


def test_stops_in_the_prompt_do_not_count():
    out = run(samplers.Greedy(), [encode(" abc"), encode(" b")], 4, stops=[encode("cd"), encode("ef")])
    assert texts(out) == ["def", "cd"]


def test_of_stops_that_overlap_the_first_to_be_complete_ends_the_row():
    prompts = [encode(" a"), encode(" bc"), encode(" e")]
    out = run(samplers.Greedy(), prompts, 9, stops=[encode("cde"), encode("defg"), encode("g")])
    assert texts(out) == ["bcde", "defg", "fg"]


def test_no_stop_among_the_first_tokens():
    # Where it is banned, the best of the others comes, which for a counting machine are all alike: padding, then a.
    out = run(samplers.Greedy(), [encode(" a"), encode(" bc"), encode(" y")], 7, stops=[encode("d")], min_new_tokens=2)
    assert texts(out) == ["bcd", "·abcd", "z .·abc"]


@every_sampler
def test_rows_without_room_are_at_rest_from_the_start(sampler):
    out = run(sampler, [encode(" a"), encode(" b"), encode(" c")], [0, 3, 0])
    assert texts(out) == ["", "cde", ""]
    assert not out.tokens[[0, 2], 0].any()


@every_sampler
def test_logprobs_are_the_models_own(sampler):
    bias = np.zeros(V)
    bias[[1, 2, 3]] = [-np.inf, 2.0, -1.0]
    settings = {"stops": [[5], [9, 2]], "repetition_penalty": 1.4, "logit_bias": bias}
    out = run(sampler, PROMPTS, [10, 12, 8], **settings)
    for prompt, tokens, logprobs, length, score in zip(
        PROMPTS, out.tokens[:, 0], out.logprobs[:, 0], out.length[:, 0], out.score[:, 0], strict=True
    ):
        assert 1 not in tokens[:length]
        text = list(prompt)
        for token, logprob in zip(tokens[:length], logprobs[:length], strict=True):
            assert logprob == pytest.approx(log_softmax(MODEL.logits(text))[token], abs=1e-5)
            text.append(token)
        assert not logprobs[length:].any()
        if not isinstance(sampler, samplers.Beam):
            assert score == pytest.approx(logprobs.sum(), abs=1e-4)


def test_greedy_takes_the_best_at_every_step():
    out = run(samplers.Greedy(), PROMPTS, stops=[[5]])
    for prompt, tokens, length, stopped in zip(
        PROMPTS, out.tokens[:, 0], out.length[:, 0], out.stopped[:, 0], strict=True
    ):
        text = list(prompt)
        while len(text) < len(prompt) + ROOM and text[-1] != 5:
            text.append(int(np.argmax(MODEL.logits(text))))
        assert tokens[:length].tolist() == text[len(prompt) :]
        assert stopped == (text[-1] == 5)


@every_random_sampler
def test_temperature_zero_is_greedy(sampler):
    cold = run(dataclasses.replace(sampler, temperature=0.0), PROMPTS)
    np.testing.assert_array_equal(cold.tokens, run(samplers.Greedy(), PROMPTS).tokens)
    cool = run(dataclasses.replace(sampler, temperature=1e-20), PROMPTS)
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


@every_random_sampler
def test_random_methods_draw_what_they_say(sampler):
    """As the loop draws, in 4,000 rows that differ in nothing but their id."""
    logits = MODEL.logits([6, 11])
    key = rng.at(rng.stream(3, "sample"), jnp.arange(4000), 2)
    tokens = pick(sampler, np.tile(logits.astype(np.float32), (4000, 1)), key)
    assert follows(np.bincount(tokens, minlength=V), reference_probabilities(sampler, logits))


@every_random_sampler
def test_the_loop_draws_with_the_key_of_row_and_position(sampler):
    ids, seed = np.array([3, 2**32 - 1, 5], np.uint32), 2**40 + 1
    out = run(sampler, PROMPTS, row_ids=ids, seed=seed)
    texts = [[*prompt, *tokens] for prompt, tokens in zip(PROMPTS, out.tokens[:, 0], strict=True)]
    logits, rows, positions = np.zeros((4000, V), np.float32), np.zeros(4000, np.uint32), np.zeros(4000, np.int32)
    places = [(row, n) for row, text in zip(ids, texts, strict=True) for n in range(len(text) - ROOM, len(text))]
    for i, (row, n) in enumerate(places):
        rows[i], positions[i], logits[i] = row, n, MODEL.logits(texts[i // ROOM][:n])
    tokens = pick(sampler, logits, rng.at(rng.stream(seed, "sample"), rows, positions))
    np.testing.assert_array_equal(tokens[: len(places)], out.tokens[:, 0].reshape(-1))


@every_random_sampler
def test_seed_row_and_position_all_count(sampler):
    hot = dataclasses.replace(sampler, temperature=3.0)
    base, again = (run(hot, [[4]] * 4, seed=1).tokens[:, 0] for _ in range(2))
    np.testing.assert_array_equal(base, again)
    assert len({tuple(row) for row in base}) == 4
    for seed in (2, 1 + 2**32, -1):
        assert not np.array_equal(base, run(hot, [[4]] * 4, seed=seed).tokens[:, 0])


@every_sampler
def test_a_row_does_not_depend_on_the_others(sampler):
    [alone] = run(sampler, [[4, 2, 9]], row_ids=[17], seed=5, stops=[[5]]).tokens
    others = [[6], [8, 2], [28, 3, 3], [27, 4], [11, 12, 13, 14]]
    order = [2, 17, 0, 1, 9, 4]
    few = run(sampler, [others[0], [4, 2, 9], *others[1:]], row_ids=order, seed=5, stops=[[5]])
    back = run(sampler, [*others[:0:-1], [4, 2, 9], others[0]], row_ids=order[::-1], seed=5, stops=[[5]])
    np.testing.assert_array_equal(few.tokens, back.tokens[::-1])
    np.testing.assert_array_equal(few.tokens[1], alone)


@pytest.mark.parametrize("sampler", [samplers.TopP(0.8), samplers.Beam(3)], ids=lambda sampler: sampler.name)
def test_a_row_does_not_depend_on_the_batch_size(sampler):
    settings = {"seed": 5, "stops": [[5]]}
    [in_eight] = run(sampler, [[4, 2, 9]], row_ids=[17], **settings).tokens
    one = decode_all(sampler, make_request([[4, 2, 9]], rows=1, row_ids=[17], **settings), ROOM)
    others = [[v % V, (3 * v) % V][: 1 + v % 2] for v in range(64)]
    many = decode_all(sampler, make_request([*others[:17], [4, 2, 9], *others[18:]], rows=64, **settings), ROOM)
    np.testing.assert_array_equal(one.tokens[0], in_eight)
    np.testing.assert_array_equal(many.tokens[17], in_eight)


@every_sampler
def test_in_chunks_or_in_one_go(sampler):
    request = make_request(PROMPTS, [12, 12, 9], stops=[[5]])
    whole = result(sampler, request, advance(sampler, request, start(sampler, request, ROOM), ROOM))
    for chunk in (1, 5):
        state = start(sampler, request, ROOM)
        for until in range(chunk, ROOM + chunk, chunk):
            state = advance(sampler, request, state, until)
            if isinstance(sampler, samplers.Beam):
                continue
            so_far = result(sampler, request, state)
            seen = np.arange(ROOM)[None] < np.asarray(so_far.length)
            assert np.asarray(so_far.length).max() <= until
            np.testing.assert_array_equal(so_far.tokens[:, 0][seen], whole.tokens[:, 0][seen])
        jax.tree.map(np.testing.assert_array_equal, result(sampler, request, state), whole)


def test_rows_that_the_host_puts_to_rest_stay_there():
    greedy, request = samplers.Greedy(), make_request([encode(" a"), encode(" k")])
    state = advance(greedy, request, start(greedy, request, ROOM), 3)
    state = samplers.halt(state, jnp.arange(ROWS) == 0)
    output = result(greedy, request, advance(greedy, request, state, 5))
    assert texts(output)[:2] == ["bcd", "lmnop"]


SETTINGS = [
    {"seed": 7},
    {"seed": 2**63},
    {"max_new_tokens": 2},
    {"max_new_tokens": [3, 1, 0]},
    {"row_ids": [5, 9, 2**32 - 1]},
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
VARIANTS = [
    [samplers.Greedy()],
    [samplers.Random(), samplers.Random(2), samplers.Random(np.float64(0.5)), samplers.Random(0)],
    [samplers.TopK(), samplers.TopK(3, 1), samplers.TopK(np.int64(7), 0.5)],
    [samplers.TopP(), samplers.TopP(1), samplers.TopP(0.3, 0.7)],
    [samplers.MinP(), samplers.MinP(1), samplers.MinP(0.3, 0.7)],
    [samplers.Typical(), samplers.Typical(1), samplers.Typical(0.3, 0.7)],
    [samplers.Beam(3, 0.6), samplers.Beam(4, 1), samplers.Beam(4, 0)],
    [samplers.Contrastive(3, 0.6), samplers.Contrastive(4, 1), samplers.Contrastive(4, 0)],
]


@pytest.mark.parametrize("variants", VARIANTS, ids=lambda variants: variants[0].name)
def test_one_program_serves_all_settings(variants):
    for sampler in variants:
        run(sampler, PROMPTS)
    for settings in SETTINGS:
        run(variants[0], PROMPTS, **settings)
    assert [traces[name, sampler.name] for name in ("start", "advance", "result")] == [1, 1, 1]
