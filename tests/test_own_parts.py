"""Trackers and blocks of the user's own that do not keep to their protocol: each is refused in one line."""

from pathlib import Path

import pytest
from tiny_experiment import EXPERIMENT, changed

from minigpt_jax.config import Code, code
from minigpt_jax.errors import UserError
from minigpt_jax.model import parameter_shapes
from minigpt_jax.storage.run_dir import RunDir
from minigpt_jax.storage.trackers import open_trackers
from minigpt_jax.train.state import Progress
from minigpt_jax.trial.run import run
from tests.test_generate import language_model

TRACKER = """\
class Lines:
    def __init__(self, run_dir, experiment, step):
        self.file = (run_dir / "lines.txt").open("a")
    def log(self, step, split, figures):
        print(step, split, sorted(figures)[0], file=self.file, flush=True)
    def sync(self):
        pass
    def close(self):
        self.file.close()
"""

BLOCK = """\
import flax.linen as nn
class Same(nn.Module):
    config: object
    dtype: object
    def __call__(self, x, position, mask, *rest):
        return {}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine.py"


def loaded(path: Path, name: str, field: str) -> Code:
    value = code.load_value(field, f"{path.name}:{name}", [path.parent])
    assert isinstance(value, Code)
    return value


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("def sync", "def sink", "it has no method sync; a tracker needs log, sync and close"),
        ("self, run_dir, experiment, step", "self, run_dir", "it is called with (run_dir, experiment, step), but its"),
        (
            "self, step, split, figures",
            "self, step, figures",
            "its log is called with (self, step, split, figures), but",
        ),
        ("def sync(self)", "def sync(self, step)", "its sync is called with (self), but its signature is (self, step)"),
        ("class Lines:", "Lines = lambda a, b: None\nclass Other:", "it is called with (run_dir, experiment, step)"),
    ],
)
def test_an_invalid_tracker_is_refused_before_training(mine: Path, tmp_path: Path, old: str, new: str, words: str):
    mine.write_text(TRACKER.replace(old, new))
    experiment = changed("train", trackers=(f"{mine}:Lines",))
    with pytest.raises(UserError) as refused:
        run(experiment, tmp_path / "run")
    assert str(refused.value).startswith(f"--train.trackers {mine}:Lines: ")
    assert words in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_function_that_makes_no_tracker_is_refused(mine: Path, tmp_path: Path):
    mine.write_text("def Lines(run_dir, experiment, step): pass\n")
    (tmp_path / "run").mkdir()
    trackers = (loaded(mine, "Lines", "train.trackers"),)
    with pytest.raises(UserError, match=r"mine\.py:Lines: it returned NoneType, which has no method log; a tracker"):
        open_trackers(trackers, RunDir(tmp_path / "run"), EXPERIMENT, Progress())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def Same(config, dtype): pass", "is no Flax module"),
        (BLOCK.format("x"), "its __call__ returned [1, 32, 16]; it must return (output [1, 32, 16], (keys"),
        (BLOCK.format("x, None"), "its __call__ returned ([1, 32, 16], NoneType)"),
        (BLOCK.format("x, (x, x)"), "its __call__ returned ([1, 32, 16], ([1, 32, 16], [1, 32, 16]))"),
        (BLOCK.format("x[0], (x[None], x[None])"), "its __call__ returned ([32, 16], "),
        (
            BLOCK.replace("*rest", "dropout").format("x"),
            "its __call__ is called with (self, x, position, mask, layer, ",
        ),
    ],
)
def test_an_invalid_block_is_refused_in_one_line(mine: Path, source: str, words: str):
    mine.write_text(source)
    with pytest.raises(UserError) as refused:
        parameter_shapes(changed("model", block=loaded(mine, "Same", "model.block")))
    assert str(refused.value).startswith("--model.block mine.py:Same")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_block_that_returns_no_cache_layer_in_a_decode_step_is_refused(mine: Path):
    mine.write_text(BLOCK.format("x, (x[:, :, None], x[:, :, None])"))
    lm = language_model(num_layers=1, block=loaded(mine, "Same", "model.block"))
    with pytest.raises(UserError, match=r"it must return \(output \[1, 1, 16\], a cache layer \(\[1, 1, "):
        lm.generate("", max_new_tokens=3)
