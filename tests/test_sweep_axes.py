"""Axes: how the command line is parsed, and what it refuses."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from minigpt_jax import sweep
from minigpt_jax.config import Experiment
from minigpt_jax.errors import UserError
from minigpt_jax.sweep import axes
from minigpt_jax.sweep.axes import Axis

EXPERIMENT = Experiment(name="e")


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("optimizer.learning_rate=1e-3,3e-3", Axis("optimizer.learning_rate", (1e-3, 3e-3))),
        ("optimizer.learning-rate=1", Axis("optimizer.learning_rate", (1.0,))),
        ("--optimizer.learning-rate=1e-4..1e-2:log", Axis("optimizer.learning_rate", low=1e-4, high=1e-2, log=True)),
        ("optimizer.b1=0.5..0.95", Axis("optimizer.b1", low=0.5, high=0.95)),
        ("model.num_layers=1,2,4", Axis("model.num_layers", (1, 2, 4))),
        ("model.num_layers=1..4", Axis("model.num_layers", low=1, high=4)),
        ("model.num_kv_heads=None,1", Axis("model.num_kv_heads", (None, 1))),
        ("optimizer.clip_norm=0.1..10:log", Axis("optimizer.clip_norm", low=0.1, high=10.0, log=True)),
        ("model.use_bias=true,False", Axis("model.use_bias", (True, False))),
        ("model.norm=layernorm,rmsnorm", Axis("model.norm", ("layernorm", "rmsnorm"))),
        ("data.archive=../a.zip,../b.zip", Axis("data.archive", (Path("../a.zip"), Path("../b.zip")))),
        ("data.files=../a.txt,b.txt", Axis("data.files", (("../a.txt",), ("b.txt",)))),
        ("seed=0,1,2", Axis("seed", (0, 1, 2))),
    ],
)
def test_axis_values_are_parsed_by_the_type_of_the_field(text: str, axis: Axis):
    [parsed] = axes.parse([text])
    assert parsed == axis
    assert [type(value) for value in parsed.values] == [type(value) for value in axis.values]
    for value in parsed.values:
        axes.apply(EXPERIMENT, {parsed.field: value})


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "needs an axis"),
        (["optimizer.learning_rat=1"], "did you mean optimizer.learning_rate?"),
        (["learning_rate=1"], "did you mean optimizer.learning_rate?"),
        (["modle.width=1"], "did you mean model.width?"),
        (["model=1"], "group of fields: model.num_layers"),
        (["zzzz=1"], "--help"),
        (["name=a,b"], "name is not a field"),
        (["model.width"], "not an axis"),
        (["model.width="], "not an axis"),
        (["model.num_layers=1.5"], "1.5 is not a whole number"),
        (["model.num_layers=1,,2"], "nothing is not a whole number"),
        (["model.num_layers=1..2.5"], "2.5 is not a whole number"),
        (["optimizer.learning_rate=fast"], "fast is not a number"),
        (["optimizer.learning_rate=nan"], "nan is not a number"),
        (["model.norm=layrnorm"], "layrnorm is not layernorm or rmsnorm; did you mean layernorm?"),
        (["model.norm=layernorm..rmsnorm"], "is not layernorm or rmsnorm"),
        (["model.use_bias=maybe"], "maybe is not True or False"),
        (["optimizer.clip_norm=much"], "much is not a number or None"),
        (["optimizer.learning_rate=1e-2..1e-4"], "from a lower number to a higher"),
        (["optimizer.learning_rate=0..1:log"], "start above 0"),
        (["optimizer.learning_rate=1e-4..1e-2:lin"], "is not a number"),
        (["model.width=1,1"], "1 is given twice"),
        (["model.width=1", "model.width=2"], "model.width is given twice"),
        (["seed=0..3"], "seed=0,1,2"),
    ],
)
def test_invalid_axes_are_refused(texts: list[str], says: str):
    with pytest.raises(UserError) as refused:
        axes.parse(texts)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("texts", "settings", "says"),
    [
        (["model.num_layers=0,1"], {}, "--model.num-layers 0"),
        (["model.num_heads=3,8", "model.width=4,8"], {}, "the combination model.num_heads=8 model.width=4 is invalid"),
        (["model.dropout=0.1..1.5"], {"search": "tpe"}, "--model.dropout 1.5"),
        (["seed=-1"], {}, "--seed -1"),
        (["optimizer.learning_rate=1e-4..1e-2"], {}, "use --search random"),
        (["model.width=8"], {"trials": 0}, "--trials 0"),
        (["model.width=8"], {"name": "a/b"}, "--name a/b"),
    ],
)
def test_invalid_plans_are_refused(texts: list[str], settings: dict[str, Any], says: str):
    with pytest.raises(UserError) as refused:
        sweep.make(EXPERIMENT, axes.parse(texts), **settings)
    assert says in str(refused.value)


def test_a_grid_of_many_axes_is_never_whole_in_memory():
    few = axes.parse(["model.width=8,16", "optimizer.learning_rate=1,2,3", "seed=0,1"])
    names = [axis.field for axis in few]
    combinations = itertools.product(*(axis.values for axis in few))
    assert list(axes.grid(few)) == [dict(zip(names, values, strict=True)) for values in combinations]
    many = [Axis(f"field_{i}", tuple(range(10))) for i in range(30)]
    assert axes.points(many) == 10**30
    assert axes.point(many, 10**30 - 1) == {axis.field: 9 for axis in many}
    assert len(list(axes.corners(many))) == axes.MAX_CHECKED


def test_seeds_are_replicates_and_are_not_searched():
    plan = sweep.make(EXPERIMENT, axes.parse(["seed=0,1,2", "optimizer.b1=0.8,0.9", "model.width=16,32"]))
    # The axis that needs another program changes slowest.
    assert [axis.field for axis in plan.axes] == ["model.width", "optimizer.b1"]
    assert (plan.seeds, plan.trials) == ((0, 1, 2), 4)
    trial = plan.trial(3, {"model.width": 32, "optimizer.b1": 0.8}, 2)
    experiment = trial.experiment
    assert (experiment.model.width, experiment.optimizer.b1, experiment.seed) == (32, 0.8, 2)
    assert experiment.name == EXPERIMENT.name  # the train command compares names


def test_an_axis_accepts_the_earlier_name_of_a_field():
    [axis] = axes.parse(["train.tensorboard=True,False"])
    assert axis == axes.Axis("train.trackers", (("tensorboard",), ()))
