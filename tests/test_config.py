"""The experiment: what goes into config.json comes back, and what cannot work is refused by the flag's name."""

import dataclasses
import json
from pathlib import Path

import pytest

from minigpt_jax import config
from minigpt_jax.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, TokenizerConfig, TrainConfig
from minigpt_jax.errors import UserError


def test_json_round_trip_keeps_every_field():
    experiment = Experiment(
        name="odd",
        data=DataConfig(corpus="text", files=("a", "b*.txt"), held_out=0.1),
        tokenizer=TokenizerConfig(kind="bpe", file=Path("pieces.model")),
        model=ModelConfig(num_kv_heads=1, logit_softcap=30.0, norm="rmsnorm"),
        optimizer=OptimizerConfig(name="muon", clip_norm=1.0),
        train=TrainConfig(steps=7, tensorboard=False),
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
    "--model.positions rope": {"model": ModelConfig(positions="rope")},
    "--model.convolution -1": {"model": ModelConfig(convolution=-1)},
    "--model.pointer -1": {"model": ModelConfig(pointer=-1)},
    "--model.dropout 1.0": {"model": ModelConfig(dropout=1.0)},
    "--model.logit-softcap 0.0": {"model": ModelConfig(logit_softcap=0.0)},
    "--model.isolate-documents": {"model": ModelConfig(isolate_documents=True)},
    "--tokenizer.vocabulary-size 3": {"tokenizer": TokenizerConfig(vocabulary_size=3)},
    "--optimizer.learning-rate nan": {"optimizer": OptimizerConfig(learning_rate=float("nan"))},
    "--optimizer.b2 1.0": {"optimizer": OptimizerConfig(b2=1.0)},
    "--optimizer.final-fraction 2": {"optimizer": OptimizerConfig(final_fraction=2)},
    "--optimizer.weight-decay 0.1": {"optimizer": OptimizerConfig(name="adam", weight_decay=0.1)},
    "--train.steps 0": {"train": TrainConfig(steps=0)},
    "--train.accumulate 3": {"train": TrainConfig(accumulate=3)},
    "--data.sequence-length -1": {"data": DataConfig(sequence_length=-1)},
    "--data.finish 1.5": {"data": DataConfig(layout="packed", evaluation_layout="lines", finish=1.5)},
    "--data.finish 0.2": {"data": DataConfig(layout="packed", finish=0.2)},
    "--data.finish 0.3": {"data": DataConfig(evaluation_layout="packed", finish=0.3)},
    "--data.held-out 0.5": {"data": DataConfig(held_out=0.5)},
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


def test_the_reference_is_valid():
    config.validate(Experiment("reference"))
