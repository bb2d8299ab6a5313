"""The flags of the command line: their help, and those that take several values."""

import re
from pathlib import Path

import pytest
import tiny_experiment
from test_cli import command

from minigpt_jax import samplers
from minigpt_jax.cli import COMMANDS, evaluate, parser, train

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda path: path.name)
def test_every_experiment_parses(file: Path, capsys: pytest.CaptureFixture):
    assert command(file, "--help") == 0
    help_text = capsys.readouterr().out
    if file.name.startswith(("ablate_", "benchmark_", "compare_", "coordinate_", "which_")):  # a program of its own
        assert "--output" in help_text
        return
    for flag in ("--model.num-layers", "--data.archive", "--train.checkpoint-every", "--run-dir", "--seed"):
        assert flag in help_text


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help(words: list[str], capsys: pytest.CaptureFixture):
    assert command(*words) == 0
    out = capsys.readouterr().out
    assert "usage" in out
    assert "default: None" not in out  # the text says what None stands for
    if words[0] != "lm_eval":  # that tool's own help
        assert "[[" not in out.split("options ─")[0]  # arguments that have to be given are not shown as optional


def test_help_of_sample_names_the_methods_own_defaults(capsys: pytest.CaptureFixture):
    assert command("sample", "--help") == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    shown = {"top_k": "k", "contrastive": "k", "top_p": "p", "typical": "p", "min_p": "p", "beam": "num_beams"}
    shown |= {"random": "temperature"}
    for method, setting in shown.items():
        flag = "--" + setting.replace("_", "-")
        default = getattr(samplers.METHODS[method](), setting)
        assert re.search(rf"{flag} .*?\([^()]*\b{default:g}\b", text), (method, setting)


def test_help_texts_do_not_break_where_their_docstrings_do(capsys: pytest.CaptureFixture, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    assert command("sample", "--help") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if " --p " in line]
    assert "top_p, typical: " in line
    assert "that of the most probable token (0.1)" in line


@pytest.mark.parametrize("flag", ["--files", "--data.files"])
@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["{flag}", "a", "b", "{other}", "7", "{flag}=c"], ("a", "b", "c")),
        (["{flag}=a", "{flag}=b", "{other}", "7"], ("a", "b")),
        (["{flag}", "a", "{flag}", "{other}", "7", "{flag}", "c"], ("c",)),
        (["{other}=7", "{flag}", "a", "b"], ("a", "b")),
    ],
)
def test_a_flag_of_several_values_may_be_repeated(flag: str, words: list[str], values: tuple[str, ...]):
    other = "--batch-size" if flag == "--files" else "--train.batch-size"
    words = [word.format(flag=flag, other=other) for word in words]
    if flag == "--files":
        chosen = parser.parse(evaluate.Arguments, ["r", *words], "")
        assert (chosen.files, chosen.batch_size) == (values, 7)
    else:
        chosen = parser.parse(train.Arguments, words, "", train.Arguments(tiny_experiment.EXPERIMENT)).experiment
        assert (chosen.data.files, chosen.train.batch_size) == (values, 7)
