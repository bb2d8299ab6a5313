"""The recipes of the README's section "Extend it": their code is taken from there and run."""

import re
from pathlib import Path

import pytest
from tiny_experiment import EXPERIMENT, changed

from minigpt_jax import generate
from minigpt_jax.sweep import axes
from minigpt_jax.trial.run import run

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SECTION = README.partition("\n## Extend it\n")[2].partition("\n## ")[0]
RECIPES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", SECTION, re.S))
FLAGS = {
    file: (flag.replace("-", "_"), f"{file}:{name}")
    for flag, file, name in re.findall(r"--([\w.-]+)(?: tensorboard)? (\w+\.py):(\w+)", SECTION)
    if "." in flag
}


def test_the_section_has_a_recipe_for_each_field_that_takes_code():
    fields = {"data.corpus", "model.activation", "model.block", "optimizer.name", "train.trackers"}
    assert {FLAGS[file][0] for file in RECIPES if file in FLAGS} == fields


@pytest.mark.parametrize("file", RECIPES)
def test_a_recipe_is_short_and_runs(file: str):
    assert len(RECIPES[file].splitlines()) <= 12
    exec(compile(RECIPES[file], file, "exec"), {"__name__": "recipe"})


def test_an_experiment_trains_and_samples_with_all_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In one run, as each has a field of its own."""
    monkeypatch.chdir(tmp_path)
    experiment = changed("train", changed("tokenizer", EXPERIMENT, vocabulary_size=100), steps=2)
    for file, (field, name) in FLAGS.items():
        Path(file).write_text(RECIPES[file])
        experiment = axes.apply(experiment, {field: (name,) if field == "train.trackers" else name})
    assert run(experiment, "run").progress.step == 2
    text = generate.load("run", trust_code=True).generate(["the fox"], max_new_tokens=3)[0]
    assert len(text.tokens) == 3
    assert {path.name for path in Path("run/code").iterdir()} == set(FLAGS)
    assert re.fullmatch(r"(\d,(train|valid),\d+\.\d+\n)+", Path("run/table.csv").read_text())
