"""The notebook that is the tutorial: it has no outputs, begins with the installation, and runs from top to bottom."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "experiments" / "tutorial.ipynb"


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def program() -> str:
    """All cells as one program, without the lines that are IPython's own."""
    lines = "\n\n".join(code_cells()).splitlines()
    return "\n".join(line for line in lines if not line.startswith("%")) + "\n"


def test_it_begins_with_the_installation_and_holds_no_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert "%pip install" in code_cells()[0]
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_it_shows_every_sampler() -> None:
    from minigpt_jax import samplers

    called = {node.attr for node in ast.walk(ast.parse(program())) if isinstance(node, ast.Attribute)}
    assert {method.__name__ for method in samplers.METHODS.values()} <= called


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    (tmp_path / "tutorial.py").write_text(program())
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as users have
    result = subprocess.run(
        [sys.executable, "tutorial.py"],
        cwd=tmp_path,
        env=env | {"MPLBACKEND": "Agg", "JAX_NUMPY_RANK_PROMOTION": "allow"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "LanguageModel('tutorial'" in result.stdout
    assert result.stdout.count("once upon a time") >= 10
    assert (tmp_path / "runs/tutorial/metrics.jsonl").exists()
