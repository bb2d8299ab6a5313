"""The part of a sweep's report on scale: compute, the frontier, and the law."""

import itertools
import json
from pathlib import Path

import fake_sweep
import numpy as np
import pytest
from pages import Page

from minigpt_jax.cli import main
from minigpt_jax.report import law, law_blocks, report, results, scaling
from minigpt_jax.report.scaling import Point

TRUE = {"E": 0.4, "A": 60.0, "B": 2e3, "alpha": 0.5, "beta": 0.6}
AXES = [{"field": "model.width", "values": [16, 32, 64, 128]}, {"field": "train.steps", "values": [100, 400, 1600]}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep over sizes and steps whose losses follow a law."""
    path = tmp_path / "scale"
    path.mkdir()
    points = itertools.product(*[axis["values"] for axis in AXES])
    rows = []
    for number, (width, steps) in enumerate(points):
        parameters, tokens = 100 * width**2, 2048 * steps
        loss = TRUE["E"] + TRUE["A"] / parameters ** TRUE["alpha"] + TRUE["B"] / tokens ** TRUE["beta"]
        trial = f"{number}-seed-0"
        fake_sweep.write_run(path / "trials" / trial, final=loss)
        rows.append(
            {"configuration": number, "trial": trial, "seed": 0, "model.width": width, "train.steps": steps}
            | {"status": "complete", "loss": loss, "perplexity": np.exp(loss), "bits_per_byte": loss / 2}
            | {
                "step": 60,
                "parameters": parameters,
                "training_tokens": tokens,
                "training_flops": 6.0 * parameters * tokens,
            }
        )
    (path / "sweep.json").write_text(json.dumps({"name": "scale", "axes": AXES, "search": "grid"}))
    (path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_page_has_the_law_that_the_losses_follow(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """With few samples for the intervals, which are a matter of tests/test_law.py."""
    fit = law.fit
    monkeypatch.setattr(law, "fit", lambda *models, samples=200, **more: fit(*models, samples=min(samples, 4), **more))
    [written] = report([folder], fit=True)
    page = Page(written.html)
    [table] = [table for table in page.tables if table[0][0] == "constant"]
    found = {row[0]: float(row[1]) for row in table[1:]}
    assert found == pytest.approx(TRUE, rel=5e-3)
    [forms] = [table for table in page.tables if table[0][0] == "form"]
    assert [row[0] for row in forms[1:]] == ["Hoffmann et al. (2022)", *law.OTHERS]
    assert float(forms[1][2]) == pytest.approx(TRUE["E"], rel=5e-3)
    # The losses are those of the first form, which therefore knows models that it has not seen.
    assert float(forms[1][5].removesuffix("%")) < 0.05
    assert float(forms[2][5].removesuffix("%")) > 1


def test_laws_are_fitted_to_the_models_by_rising_compute(monkeypatch: pytest.MonkeyPatch):
    """The part of them that a law has to predict comes last."""
    taken: list[np.ndarray] = []

    def recorded(sizes: np.ndarray, tokens: np.ndarray, *_: object, form: law.Form = law.HOFFMANN, **__: object):
        taken.append(sizes * tokens)
        return law.Fitted(form, dict.fromkeys(form.constants, 1.0), dict.fromkeys(form.constants, (1.0, 1.0)))

    monkeypatch.setattr(law, "fit", recorded)
    rng = np.random.default_rng(0)
    models = [law_blocks.Model(*map(float, one)) for one in rng.integers(100, 10_000, (20, 3))]
    law_blocks.blocks(models, floor=None)
    compute = sorted(model.parameters * model.tokens for model in models)
    assert {len(one) for one in taken} == {10, 12, 14, 15, 16, 18, 20}
    assert all(one.tolist() == compute[: len(one)] for one in taken)


def test_more_models_tell_more_of_the_floor():
    """The lowest loss falls as more models are taken, and of losses of the law every part gives its floor."""
    sizes, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e4, 1e6, 6), np.geomspace(1e5, 1e7, 6)))
    losses = TRUE["E"] + TRUE["A"] / sizes ** TRUE["alpha"] + TRUE["B"] / tokens ** TRUE["beta"]
    models = [law_blocks.Model(*map(float, one)) for one in zip(sizes, tokens, losses, strict=True)]
    found = law_blocks.looks(sorted(models, key=lambda model: model.parameters * model.tokens))
    assert len(found) == len(law_blocks.KEPT)
    assert [one.lowest for one in found] == sorted((one.lowest for one in found), reverse=True)
    assert found[-1].lowest == losses.min()
    assert [one.E for one in found] == pytest.approx([TRUE["E"]] * len(found), rel=0.02)


def test_the_best_configuration_of_each_size_and_length_counts(folder: Path):
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    worse = [{**row, "configuration": row["configuration"] + 50, "loss": row["loss"] + 1.0} for row in rows]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*worse, *rows]))
    found = scaling.models(results.read(folder))
    assert sorted(found) == sorted((row["parameters"], row["training_tokens"], row["loss"]) for row in rows)


def test_without_being_asked_there_is_the_frontier_alone(folder: Path):
    [written] = report([folder])
    text = written.html.read_text()
    assert "Loss against compute" in text
    assert "95% interval" not in text


def test_a_law_of_too_few_models_is_told_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]):
    lines = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text("\n".join(lines[:3]) + "\n")
    assert main(["report", str(folder), "--fit"]) == 2
    assert "there are 3, of 1 and 3" in capsys.readouterr().err


def test_a_law_needs_losses_of_the_same_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    axis = {"field": "tokenizer.vocabulary_size", "values": [300, 400, 500]}
    folder = tmp_path / "sizes"
    fake_sweep.write_sweep(folder, [fake_sweep.AXES[1], axis])
    assert main(["report", str(folder), "--fit"]) == 2
    assert "differ in tokenizer.vocabulary_size" in capsys.readouterr().err
    assert not (folder / "report.html").exists()


def test_a_law_needs_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fake_sweep.write_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "run"), "--fit"]) == 2
    assert "--fit" in capsys.readouterr().err


def test_the_frontier_has_each_point_that_no_cheaper_one_beats():
    rng = np.random.default_rng(0)
    points = [Point(float(flops), float(loss)) for flops, loss in rng.integers(1, 30, (60, 2))]
    expected = {p for p in points if not any(q.flops <= p.flops and q.loss <= p.loss and q != p for q in points)}
    found = scaling.frontier(points)
    assert set(found) == expected
    assert found == sorted(found)


def test_compute_grows_with_the_steps_of_a_trial(folder: Path):
    sweep = results.read(folder)
    from minigpt_jax.report import runs

    read = {row["trial"]: runs.read(folder / "trials" / row["trial"]) for row in sweep.rows}
    curves = scaling._curves(sweep.rows, read)
    assert len(curves) == 12
    for row, curve in zip(sweep.rows, curves, strict=True):
        assert [point.flops for point in curve] == pytest.approx([row["training_flops"] * i / 6 for i in range(1, 7)])
        assert curve[-1].loss == row["loss"]
