"""Making samplers and requests: with checked settings, in buckets."""

import numpy as np
import pytest

from minigpt_jax import samplers
from minigpt_jax.errors import UserError

V = 29


@pytest.mark.parametrize(
    ("asked", "width"),
    [(1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (7, 8), (8, 8), (9, 10), (10, 10), (11, 12), (17, 20), (31, 32), (33, 40)],
)
def test_nearby_widths_share_a_program(asked, width):
    assert samplers.Beam(asked).width == samplers.Contrastive(asked).width == width


def test_every_method_gets_the_settings_that_it_takes():
    methods = {method.name: method for method in samplers.create_all(k=3, temperature=None, num_beams=4)}
    assert list(methods) == list(samplers.METHODS)
    assert methods["top_k"] == samplers.TopK(k=3)
    assert methods["contrastive"] == samplers.Contrastive(k=3)
    assert methods["beam"] == samplers.Beam(num_beams=4)
    assert methods["greedy"] == samplers.Greedy()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: samplers.TopK(0).validate(V), ["--k 0", f"1 to {V}"]),
        (lambda: samplers.TopK(V + 1).validate(V), [f"--k {V + 1}", f"1 to {V}"]),
        (lambda: samplers.TopP(0.0).validate(V), ["--p 0.0", "(0, 1]"]),
        (lambda: samplers.TopP(1.1).validate(V), ["--p 1.1"]),
        (lambda: samplers.MinP(-0.1).validate(V), ["--p -0.1"]),
        (lambda: samplers.Typical(float("nan")).validate(V), ["--p nan"]),
        (lambda: samplers.Random(-1.0).validate(V), ["--temperature -1.0"]),
        (lambda: samplers.TopP(0.5, float("inf")).validate(V), ["--temperature inf"]),
        (lambda: samplers.Beam(0).validate(V), ["--num-beams 0"]),
        (lambda: samplers.Beam(4097).validate(V), ["--num-beams 4097", "1 to 4,096"]),
        (lambda: samplers.Beam(3_000_000_000).validate(V), ["--num-beams 3000000000", "1 to 4,096"]),
        (lambda: samplers.Beam(2.5).validate(V), ["--num-beams 2.5", "whole number"]),  # pyright: ignore[reportArgumentType]
        (lambda: samplers.Beam("3").validate(V), ["--num-beams '3'", "whole number"]),  # pyright: ignore[reportArgumentType]
        (lambda: samplers.Beam(2, -1.0).validate(V), ["--length-penalty -1.0"]),
        (lambda: samplers.Beam(2, "1").validate(V), ["--length-penalty '1'", "give a number"]),  # pyright: ignore[reportArgumentType]
        (lambda: samplers.TopK(float("nan")).validate(V), ["--k nan", "whole number"]),  # pyright: ignore[reportArgumentType]
        (lambda: samplers.Random(top_k=float("inf")).validate(V), ["--top-k inf"]),  # pyright: ignore[reportArgumentType]
        (lambda: samplers.TopK(None).validate(V), ["--k None"]),  # pyright: ignore[reportArgumentType]
        (lambda: samplers.Random([1.0]).validate(V), ["--temperature [1.0]"]),  # pyright: ignore[reportArgumentType]
        (lambda: samplers.Random(10**400).validate(V), ["--temperature 1000", "1,000,000"]),
        (lambda: samplers.TopP("0.9").validate(V), ["--p '0.9'", "give a number"]),  # pyright: ignore[reportArgumentType]
        (lambda: samplers.Contrastive("4").validate(V), ["--k '4'"]),  # pyright: ignore[reportArgumentType]
        (lambda: samplers.Contrastive(4, "1").validate(V), ["--alpha '1'"]),  # pyright: ignore[reportArgumentType]
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


@pytest.mark.parametrize("name", samplers.METHODS)
def test_what_can_be_is_let_through(name):
    samplers.METHODS[name]().validate(V)


def test_extremes_are_let_through():
    for sampler in (
        samplers.TopK(1, 0.0),
        samplers.TopK(V),
        samplers.TopP(1.0),
        samplers.Contrastive(V, 1.0),
        samplers.Contrastive(1, 0.0),
        samplers.Beam(1, 0.0),
        samplers.Beam(V + 1, 2.0),
    ):
        sampler.validate(V)
    request(stops=[[0], [V - 1] * 9], logit_bias=[-np.inf] * (V - 1) + [0.0], seed=-(2**63))
