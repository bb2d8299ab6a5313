"""The experiment: what goes into config.json comes back, and what cannot work is refused by the flag's name."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest

from minigpt_jax import config
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, TokenizerConfig, TrainConfig
from minigpt_jax.config.options import accepts_aliases, option
from minigpt_jax.errors import UserError
from minigpt_jax.sweep import axes
from minigpt_jax.train.optim import Hyperparameters


def test_json_round_trip_keeps_every_field():
    experiment = Experiment(
        name="odd",
        data=DataConfig(corpus="text", files=("a", "b*.txt"), held_out=0.1),
        tokenizer=TokenizerConfig(kind="bpe", file=Path("pieces.model")),
        model=ModelConfig(num_kv_heads=1, logit_softcap=30.0, norm="rmsnorm"),
        optimizer=OptimizerConfig(name="muon", clip_norm=1.0),
        train=TrainConfig(steps=7, trackers=()),
        seed=2**40,
    )
    assert config.from_json(json.loads(config.dumps(config.to_json(experiment)))) == experiment


def test_older_config_without_a_field_takes_its_default():
    value = config.to_json(Experiment("old"))
    del value["model"]["qk_norm"], value["sample"]
    assert config.from_json(value) == Experiment("old")


@pytest.mark.parametrize(
    ("section", "field", "value"), [("model", "colour", 1), ("model", "norm", "batchnorm"), ("train", "epochs", "many")]
)
def test_config_of_another_program_is_refused(section: str, field: str, value: object):
    written = config.to_json(Experiment("x"))
    written[section][field] = value
    with pytest.raises(UserError, match=f"{section}.*"):
        config.from_json(written)


def test_flatten_names_every_flag():
    flat = config.flatten(Experiment("x"))
    assert flat["seed"] == 0
    assert flat["model.num_layers"] == 2
    fields = sum(
        len(dataclasses.fields(section)) if dataclasses.is_dataclass(section) else 1
        for section in (getattr(Experiment("x"), f.name) for f in dataclasses.fields(Experiment))
    )
    assert len(flat) == fields


REFUSED = {
    "--model.num-layers 0": {"model": ModelConfig(num_layers=0)},
    "--model.num-heads 300": {"model": ModelConfig(num_heads=300)},
    "--model.num-kv-heads 2": {"model": ModelConfig(num_kv_heads=2)},
    "--model.embedding-width 256": {"model": ModelConfig(embedding_width=256)},
    "--model.parametrization mup: does not know": {"model": ModelConfig(embedding_width=8, parametrization="mup")},
    "--model.positions rope": {"model": ModelConfig(positions="rope")},
    "--model.convolution -1": {"model": ModelConfig(convolution=-1)},
    "--model.pointer -1": {"model": ModelConfig(pointer=-1)},
    "--model.dropout 1.0": {"model": ModelConfig(dropout=1.0)},
    "--model.logit-softcap 0.0": {"model": ModelConfig(logit_softcap=0.0)},
    "--model.isolate-documents": {"model": ModelConfig(isolate_documents=True)},
    "--tokenizer.vocabulary-size 3": {"tokenizer": TokenizerConfig(vocabulary_size=3)},
    "--optimizer.learning-rate nan": {"optimizer": OptimizerConfig(learning_rate=float("nan"))},
    "--optimizer.b2 0.999999999: must be at least 0 and below 1, and in float32": {
        "optimizer": OptimizerConfig(b2=0.999999999)
    },
    "--optimizer.b2 1.0": {"optimizer": OptimizerConfig(b2=1.0)},
    "--optimizer.final-fraction 2": {"optimizer": OptimizerConfig(final_fraction=2)},
    "--optimizer.weight-decay 0.1": {"optimizer": OptimizerConfig(name="adam", weight_decay=0.1)},
    "--train.steps 0": {"train": TrainConfig(steps=0)},
    "--train.accumulate 3": {"train": TrainConfig(accumulate=3)},
    "--data.sequence-length -1": {"data": DataConfig(sequence_length=-1)},
    "--data.anneal-fraction 1.5": {"data": DataConfig(layout="packed", evaluation_layout="lines", anneal_fraction=1.5)},
    "--data.anneal-fraction 0.2": {"data": DataConfig(layout="packed", anneal_fraction=0.2)},
    "--data.anneal-fraction 0.3": {"data": DataConfig(evaluation_layout="packed", anneal_fraction=0.3)},
    "--data.held-out 0.5": {"data": DataConfig(held_out=0.5)},
    "--data.held-out 0.0": {"data": DataConfig(held_out=0.0)},
    "--data.stories -3": {"data": DataConfig(stories=-3)},
    "--data.files ' '": {"data": DataConfig(corpus="text", files=(" ",))},
    "--data.corpus text": {"data": DataConfig(corpus="text")},
    "--data.files a.txt": {"data": DataConfig(files=("a.txt",))},
    "--data.archive a.zip": {"data": DataConfig(corpus="stories", archive=Path("a.zip"))},
    "--seed -1": {"seed": -1},
}


@pytest.mark.parametrize("start", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(start: str):
    with pytest.raises(UserError) as refused:
        config.validate(Experiment("x", **REFUSED[start]))
    assert str(refused.value).startswith(start)
    assert "\n" not in str(refused.value)


WRONG_FIELDS = {
    "a mistyped choice": ("model", "norm", "rms_norm", "layernorm or rmsnorm; did you mean rmsnorm?"),
    "a choice near another": ("model", "norm_position", "prenorm", "did you mean pre?"),
    "a choice of an optimizer": ("optimizer", "name", "adamm", "did you mean adam?"),
    "a choice near none": ("model", "activation", "mish", "relu, gelu, gelu_erf, relu2, swiglu or FILE.py:Name"),
    "a choice that is no text": ("model", "positions", None, "learned or rope"),
    "a text for a tuple": ("sample", "prompts", "hello", "must be a tuple; write ('hello',)"),
    "a number in a tuple of texts": ("sample", "prompts", (1,), "must be a text"),
    "a length of 0": ("data", "sequence_length", 0, "must be above 0"),
    "a length beyond int32": ("data", "sequence_length", 10**12, "must be at most 2,147,483,647"),
    "no heads": ("model", "num_heads", 0, "must be above 0"),
    "a negative width": ("model", "width", -64, "must be above 0"),
    "half a feature": ("model", "width", 64.5, "must be a whole number"),
    "no width": ("model", "width", None, "must be a whole number"),
    "a text for a number": ("train", "epochs", "many", "must be a whole number"),
    "True for a number": ("model", "num_layers", True, "must be a whole number"),
    "1 for True": ("model", "remat", 1, "must be True or False"),
    "an infinite rate": ("optimizer", "learning_rate", float("inf"), "must be a finite number"),
    "a rate beyond float32": ("optimizer", "learning_rate", 1e39, "float32"),
    "an epsilon that float32 rounds to 0": ("optimizer", "epsilon", 1e-50, "float32"),
}


@pytest.mark.parametrize("case", WRONG_FIELDS)
def test_a_wrong_field_is_refused_alike_in_a_file_and_in_config_json(case: str):
    section, field, value, rule = WRONG_FIELDS[case]
    part = dataclasses.replace(getattr(Experiment("x"), section), **{field: value})
    with pytest.raises(UserError) as in_file:
        config.validate(Experiment("x", **{section: part}))
    written = config.to_json(Experiment("x"))
    written[section][field] = value if not isinstance(value, tuple) else list(value)
    with pytest.raises(UserError) as in_json:
        config.from_json(json.loads(json.dumps(written)))
    for refused in (in_file, in_json):
        assert f"--{section}.{config.flag_name(field)} " in str(refused.value)
        assert rule in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [None, [], 3, {"name": "x", "model": None}, {"name": "x", "model": []}, {}])
def test_json_that_is_no_experiment_is_refused(value: object):
    with pytest.raises(UserError, match=r"config\.json"):
        config.from_json(value)


@pytest.mark.parametrize("name", ["", " ", ".", "./.", "..", "/tmp/x", "a\nb", "../x", "~/x"])
def test_a_name_that_is_no_folder_is_refused(name: str):
    with pytest.raises(UserError, match="--name"):
        config.validate(Experiment(name))


def test_traced_options_are_the_traced_hyperparameters():
    declared = {option.name for option in config.options(OptimizerConfig()) if option.facts.traced}
    # The horizon is no option, and whether there is a moving average at all changes the program.
    assert declared == set(Hyperparameters._fields) - {"total_steps", "ema_decay"}


def test_the_reference_is_valid():
    config.validate(Experiment("reference"))


OFF_BY_EARLIER_NAME = TrainConfig(**{"tensorboard": False})


def test_an_earlier_name_of_a_field_is_understood_in_files_and_config_json():
    assert TrainConfig(trackers=()) == OFF_BY_EARLIER_NAME
    assert TrainConfig(**{"tensorboard": True}).trackers == ("tensorboard",)
    assert dataclasses.replace(TrainConfig(steps=3), **{"tensorboard": False}) == TrainConfig(steps=3, trackers=())
    written = config.to_json(Experiment("old"))
    del written["train"]["trackers"]
    written["train"]["tensorboard"] = False
    assert config.from_json(written) == Experiment("old", train=TrainConfig(trackers=()))
    for wrong in ("maybe", 1, None):
        written["train"]["tensorboard"] = wrong
        with pytest.raises(UserError, match=r"--train\.tensorboard .*must be True or False"):
            config.from_json(written)


@pytest.mark.parametrize(
    ("given", "current"),
    [
        ("--train.no-tensorboard", ["--train.trackers"]),
        ("--train.no_tensorboard", ["--train.trackers"]),
        ("--train.tensorboard", ["--train.trackers", "tensorboard"]),
        ("--train.steps=3", ["--train.steps=3"]),
        ("--no-tensorboard", ["--no-tensorboard"]),
        ("tensorboard", ["tensorboard"]),
    ],
)
def test_flags_take_the_earlier_names_of_fields(given: str, current: list[str]):
    assert config.current_flags([given]) == current


def test_an_earlier_name_of_a_choice_takes_no_value():
    with pytest.raises(UserError, match=r"^--train\.no-tensorboard: takes no value; leave out =False$"):
        config.current_flags(["--train.no-tensorboard=False"])


def test_a_field_that_was_only_renamed_is_read_by_both_names():
    @accepts_aliases
    @dataclasses.dataclass(frozen=True)
    class Section:
        new: int = option(1, aliases=("old",))

    assert Section(**{"old": 2}) == Section(new=2)
    assert Section() == Section(new=1)


RENAMED = [
    ("data.finish", "data.anneal_fraction", 0.25),
    ("train.keep", "train.keep_checkpoints", 5),
    ("train.steps_per_dispatch", "train.steps_per_execution", 4),
]


@pytest.mark.parametrize(("earlier", "current", "value"), RENAMED)
def test_renamed_fields_keep_their_earlier_names(earlier: str, current: str, value: float):
    section, _, old = earlier.partition(".")
    new = current.partition(".")[2]
    annealed = functools.partial(DataConfig, layout="packed", evaluation_layout="lines")
    part = {"data": annealed, "train": TrainConfig}[section]
    assert part(**{old: value}) == part(**{new: value}) != part()
    written = config.to_json(Experiment("old", data=annealed()))
    del written[section][new]
    written[section][old] = value
    expected = {"data": annealed(), section: part(**{new: value})}
    assert config.from_json(written) == Experiment("old", **expected)
    flag, option = (f"--{name.replace('_', '-')}" for name in (earlier, current))
    assert config.current_flags([f"{flag}={value}", flag, str(value)]) == [f"{option}={value}", option, str(value)]
    assert axes.parse([f"{earlier}={value}"]) == axes.parse([f"{current}={value}"])
