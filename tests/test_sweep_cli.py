"""The sweep's command line: its flags, the command that it records, and its last lines. Without training."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from minigpt_jax import sweep
from minigpt_jax.cli import main
from minigpt_jax.sweep import results
from minigpt_jax.train.state import Progress

RATES = "optimizer.learning_rate=1e-3,3e-3"
QUICKSTART = str(Path(__file__).parents[1] / "experiments" / "quickstart.py")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments of `sweep.sweep`, which here only writes sweep.json."""
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}

    def stand_in(plan: sweep.Plan, **settings: Any) -> sweep.Outcome:
        found.update(settings, plan=plan)
        plan.write()
        return sweep.Outcome(interrupted=True, rows=[])

    monkeypatch.setattr(sweep, "sweep", stand_in)
    return found


def command(*arguments: str) -> int:
    try:
        return main(["sweep", QUICKSTART, *arguments])
    except SystemExit as stop:  # raised by the flag parser
        return int(stop.code or 0)


@pytest.mark.parametrize(
    ("arguments", "prune"),
    [
        ([], False),
        (["--prune"], True),
        (["--no-prune"], False),
        (["--search", "random"], True),
        (["--search", "random", "--no-prune"], False),
    ],
)
def test_pruning_flags(asked: dict[str, Any], arguments: list[str], prune: bool):
    assert command(RATES, *arguments) == 130
    assert asked["plan"].prune is prune


@pytest.mark.parametrize("flag", ["--storage {}", "--storage={}"])
def test_the_password_is_used_and_never_recorded(
    asked: dict[str, Any], capsys: pytest.CaptureFixture, tmp_path: Path, flag: str
):
    address = "postgresql+psycopg://user:hunter2@host/db"
    assert command(RATES, *flag.format(address).split(" "), "--", "--train.steps", "5") == 130
    assert asked["storage"] == address
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "hunter2" not in kept + "".join(capsys.readouterr())
    [about] = [json.loads(path.read_text()) for path in tmp_path.rglob("sweep.json")]
    words = shlex.split(about["command"])
    assert address.replace("hunter2", "***") in " ".join(words).replace("=postgresql", " postgresql")
    assert words[-3:] == ["--", "--train.steps", "5"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([RATES, "--train.steps", "5"], "--train.steps is a flag of the experiment: put it after --"),
        ([RATES, "--train.steps=5"], "--train.steps=5 is a flag of the experiment"),
        ([RATES, "--model.no-use-bias"], "put it after --"),
        ([RATES, "--seed", "3"], "put it after --"),
        (["--optimizer.learning-rate=1e-3,3e-3"], "write it without the dashes"),
        ([RATES, "--prune", "--no-prune"], "give one of the two"),
        ([RATES, "--storag", "postgresql://user:hunter2@host/db"], "storag"),
        (["model.norm=layrnorm"], "did you mean layernorm?"),
        (["train.patience=1,2"], "make all of their steps"),
    ],
)
def test_refusals(asked: dict[str, Any], capsys: pytest.CaptureFixture, arguments: list[str], says: str):
    assert command(*arguments) == 2
    said = capsys.readouterr()
    assert says in said.err + said.out
    assert "hunter2" not in said.err + said.out
    assert asked == {}


@pytest.mark.parametrize("patience", [None, 2])
def test_patience_is_told_to_have_no_effect(asked: dict[str, Any], capsys: pytest.CaptureFixture, patience: int | None):
    command(RATES, "--", "--train.patience", str(patience))
    assert ("--train.patience has no effect" in capsys.readouterr().out) == (patience is not None)
    assert asked["plan"].experiment.train.patience == patience


def test_a_file_without_an_experiment(asked: dict[str, Any], capsys: pytest.CaptureFixture):
    benchmark = str(Path(QUICKSTART).with_name("benchmark_sweep.py"))
    assert main(["sweep", benchmark, RATES]) == 2
    assert "defines no experiment" in capsys.readouterr().err


FIGURES = {(0, 0): (2.4, 1.5), (0, 1): (2.6, 1.5), (1, 0): (6.0, 1.2), (1, 1): (2.2, 1.3)}
"""Loss and bits per byte by configuration and seed: the second has fewer bits per byte and the luckiest seed."""


@pytest.mark.parametrize(
    ("axis", "best"),
    [
        ("tokenizer.vocabulary_size=200,300", "0001-seed-0, validation bits per byte 1.2500, a mean over 2 seeds, in"),
        (RATES, "0000-seed-0, validation loss 2.5000, a mean over 2 seeds, in"),
    ],
)
def test_the_best_is_ranked_by_the_comparable_figure_and_over_seeds(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, axis: str, best: str
):
    def stand_in(plan: sweep.Plan, **_: Any) -> sweep.Outcome:
        plan.write()
        rows = []
        for (configuration, seed), (loss, bits) in FIGURES.items():
            values = {axis.field: axis.values[configuration] for axis in plan.axes}
            found = results.row(plan.trial(configuration, values, seed), "complete", Progress(), None, None)
            rows.append(found | {"loss": loss, "bits_per_byte": bits})
        (plan.folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return sweep.Outcome(interrupted=False, rows=rows)

    monkeypatch.setattr(sweep, "sweep", stand_in)
    assert command(axis, "seed=0,1") == 0
    assert f"best: {best}" in capsys.readouterr().out
    about = json.loads(Path("runs/sweeps/quickstart/sweep.json").read_text())
    assert about["objective"] == ("valid bits per byte" if axis.startswith("tokenizer") else "valid loss")
    page = Path("runs/sweeps/quickstart/report.html").read_text()
    assert f"Configuration {int(axis.startswith('tokenizer'))} (" in page
