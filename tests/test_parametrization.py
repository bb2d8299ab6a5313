"""muP: that it is the standard parametrisation at the base width, and that its updates suit every width."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIGS, EVERYTHING

from minigpt_jax import model
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, TokenizerConfig, code, validate
from minigpt_jax.data.batch import Batch
from minigpt_jax.errors import UserError
from minigpt_jax.model import parametrization
from minigpt_jax.train import coordinate_check, optim
from minigpt_jax.train.step import StepSpec, init_state, train_step

V, T, B = 32, 16, 8
WIDTHS = [32, 256]
GROWING = ModelConfig(num_layers=1, num_heads=4, feed_forward=None, norm="rmsnorm", norm_position="pre", use_bias=False)
UPDATES = 3


def batch() -> Batch:
    """Rows in which every second token follows from the one before it."""
    rows = np.random.default_rng(0).integers(3, V, (B, T + 1))
    rows[:, 1::2] = rows[:, :-1:2] * 7 % (V - 3) + 3
    return Batch(rows.astype(np.uint8), np.full(B, 4 * T, np.int32), np.full(B, T + 1, np.int32))


def experiment(config: ModelConfig, optimizer: OptimizerConfig) -> Experiment:
    return Experiment(
        "tiny",
        data=DataConfig(layout="packed", sequence_length=T),
        tokenizer=TokenizerConfig(vocabulary_size=V, start_id=2),
        model=config,
        optimizer=optimizer,
    )


def trained(config: ModelConfig, optimizer: OptimizerConfig, steps: int = 2) -> Any:
    one = StepSpec(model.build(experiment(config, optimizer)), optimizer, train_line_end=False)
    hyper = optim.hyperparameters(optimizer, steps)
    state = jax.jit(functools.partial(init_state, one))(hyper, jax.random.key(0))
    step = jax.jit(functools.partial(train_step, one))
    for _ in range(steps):
        state, _ = step(state, batch(), hyper, jax.random.key(1))
    return state.params


def test_at_the_base_width_it_is_the_standard_parametrisation() -> None:
    config = dataclasses.replace(EVERYTHING, num_layers=1, base_width=EVERYTHING.width)
    mup, rule = dataclasses.replace(config, parametrization="mup"), OptimizerConfig(name="normuon", weight_decay=0.1)
    jax.tree.map(np.testing.assert_array_equal, trained(mup, rule), trained(config, rule))


def test_factors() -> None:
    """Against the table of Yang et al. (2022), at four times the base width."""
    config = dataclasses.replace(EVERYTHING, width=64, base_width=16, parametrization="mup", qk_norm=False)
    expected = {  # of Adam's rate and of Muon's
        "token_embedding.embedding": (1, 1),
        "block_0.attention_norm.scale": (1, 1),
        "block_0.attention_convolution.taps": (1, 1),
        "block_0.attention.query.kernel": (1 / 8, 1 / 2),
        "block_0.attention.query.bias": (1 / 2, 1 / 2),
        "block_0.attention.key.kernel": (1 / 4, 1),
        "block_0.attention.gate.kernel": (1 / 4, 1 / 2),
        "block_0.attention.out.kernel": (1 / 4, 1),
        "block_1.feed_forward.gate.kernel": (1 / 4, 1),
        "block_1.feed_forward.down.kernel": (1 / 4, 1),
        "block_1.feed_forward.down.bias": (1, 1),
        "pointer.query.kernel": (1 / 4, 1 / 2),
        "pointer.query_norm.scale": (1, 1),
        "pointer.sentinel.kernel": (1 / 4, 1 / 2),
        "output.kernel": (1 / 4, 1 / 2),
        "output.bias": (1, 1),
    }
    for name, rates in expected.items():
        path = name.split(".")
        got = [parametrization.rate_scale(config, path, orthogonalised=muon) for muon in (False, True)]
        assert got == pytest.approx(rates), name
    normed = dataclasses.replace(config, qk_norm=True)
    rates = {part: parametrization.rate_scale(normed, ["attention", *part.split(".")])
             for part in ("query.kernel", "query_norm.scale", "key_norm.scale")}  # fmt: skip
    assert rates == {"query.kernel": 1 / 4, "query_norm.scale": 1 / 2, "key_norm.scale": 1}
    more_heads = dataclasses.replace(config, head_width=8)
    assert parametrization.rate_scale(more_heads, ["attention", "query", "kernel"]) == 1 / 4
    gate = ["attention", "gate", "kernel"]
    assert parametrization.rate_scale(config, gate, orthogonalised=True) == 1 / 2
    assert parametrization.rate_scale(more_heads, gate, orthogonalised=True) == 1
    assert parametrization.logit_scale(config) == 1 / 4
    assert parametrization.logit_scale(dataclasses.replace(config, tied_embeddings=False)) == 1
    standard = dataclasses.replace(config, parametrization="standard")
    assert {parametrization.rate_scale(standard, name.split(".")) for name in expected} == {1}
    assert parametrization.logit_scale(standard) == 1


@pytest.mark.parametrize("qk_norm", [False, True])
def test_initial_values(qk_norm: bool) -> None:
    """The deviation of each kernel at 16 times the base width, and the scale of the queries' norm."""
    config = dataclasses.replace(
        EVERYTHING, width=256, base_width=16, feed_forward=None, parametrization="mup", tied_embeddings=False,
        qk_norm=qk_norm,
    )  # fmt: skip
    params: Any = trained(config, OptimizerConfig(), steps=0)
    block = params["block_0"]
    glorot = lambda inputs, outputs: (2 / (inputs + outputs)) ** 0.5  # noqa: E731
    expected = [
        (block["attention"]["query"], glorot(256, 256) / (1 if qk_norm else 4)),
        (block["attention"]["key"], glorot(256, 128)),
        (block["attention"]["out"], glorot(256, 256)),
        (block["attention"]["gate"], glorot(16, 4) / 16),
        (block["feed_forward"]["down"], glorot(256, 1024)),
        (params["pointer"]["sentinel"], glorot(16, 1) / 16),
        (params["pointer"]["query"], glorot(256, EVERYTHING.pointer)),
        (params["output"], glorot(16, V) / 16),
    ]
    for layer, deviation in expected:
        assert np.std(layer["kernel"]) == pytest.approx(deviation, rel=0.1)
    assert np.std(params["token_embedding"]["embedding"]) == pytest.approx(0.05 / 3**0.5, rel=0.05)
    if qk_norm:
        scales = [params["block_1"]["attention"][f"{part}_norm"]["scale"] for part in ("query", "key")]
        assert [set(np.asarray(scale).tolist()) for scale in scales] == [{0.25}, {1.0}]


def exponents(optimizer: Any, parametrization: Any, **changes: Any) -> dict[str, np.ndarray]:
    """How the change of each layer's activations grows with the width, after each update, at the same rate."""
    rule = OptimizerConfig(name=optimizer, learning_rate=1e-3 if optimizer == "lion" else 4e-3, epsilon=1e-8)
    found = []
    for width in WIDTHS:
        config = dataclasses.replace(GROWING, width=width, base_width=32, parametrization=parametrization, **changes)
        found.append(coordinate_check.activations(experiment(config, rule), [batch()] * UPDATES))
    return {
        layer: coordinate_check.slopes(WIDTHS, np.stack([one[layer].change[1:] for one in found])) for layer in found[0]
    }


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [("adamw", {}), ("adamw", {"tied_embeddings": True}), ("lion", {"qk_norm": True}), ("muon", {"head_gate": True})],
    ids=["adamw", "tied", "lion", "muon"],
)
def test_updates_change_activations_equally_at_every_width(optimizer: str, changes: dict[str, Any]) -> None:
    """The coordinate check."""
    for layer, slopes in exponents(optimizer, "mup", **changes).items():
        assert slopes.shape == (UPDATES,)
        assert np.abs(slopes).max() < 0.35, (layer, slopes)


def test_updates_change_activations_the_more_the_wider_a_standard_model_is() -> None:
    slopes = exponents("adamw", "standard")
    assert np.abs(slopes["token_embedding"]).max() < 0.1
    assert all(slopes[layer].max() > 0.5 for layer in ("block_0.attention", "block_0.feed_forward", "logits"))


def test_weight_decay_is_independent_of_the_width() -> None:
    config = dataclasses.replace(CONFIGS["no bias"], width=64, base_width=16, parametrization="mup")
    rule = OptimizerConfig(name="adamw", weight_decay=0.5, learning_rate=0.01)
    params = {"output": {"kernel": jnp.ones((64, 8))}}
    transformation = optim.transformation(rule, optim.hyperparameters(rule, 10), 0, model=config)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates: Any = transformation.update(zero, transformation.init(params), params)[0]
    np.testing.assert_allclose(updates["output"]["kernel"], -0.01 * 0.5, rtol=1e-6)


def test_the_state_of_a_rule_of_ones_own_is_its_own_but_in_mup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints have this structure."""
    monkeypatch.setattr(code, "loaded", lambda _: lambda rate, _: optax.sgd(rate, momentum=0.9))
    rule, params = OptimizerConfig(name="mine.py:rule"), {"output": {"kernel": jnp.ones((64, 8))}}
    hyper = optim.hyperparameters(rule, 10)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)).init(params)
    for name in ("standard", "mup"):
        config = dataclasses.replace(GROWING, parametrization=name, width=64, base_width=16)
        state = optim.transformation(rule, hyper, 0, model=config).init(params)
        assert (jax.tree.structure(state) == jax.tree.structure(clipped)) == (name == "standard")


def test_a_block_of_ones_own_is_refused() -> None:
    config = dataclasses.replace(GROWING, parametrization="mup", block="mine.py:Mine")
    with pytest.raises(UserError, match=r"--model.parametrization mup: .* mine.py:Mine"):
        validate(experiment(config, OptimizerConfig()))
