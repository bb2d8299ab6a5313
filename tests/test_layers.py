"""The layering of the package: the contracts of pyproject.toml, and what an import brings in."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter import api

import minigpt_jax

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {
    contract["id"]: contract for contract in api.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
}
CONTRACTS = list(OPTIONS)


def python(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *args], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_contract(contract: str) -> None:
    # In a process of its own: its console closes the streams that pytest captures.
    program = "from importlinter import cli; cli.lint_imports_command()"
    result = python(program, "--contract", contract, "--no-cache", "--no-logo")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        # A bare accelerator machine samples, and trains from any iterator of batches.
        ("minigpt_jax", ["tensorflow", "tyro", "optuna", "torch"]),
        ("minigpt_jax.generate", ["tensorflow", "tyro", "optuna", "torch"]),
        ("minigpt_jax.trial.run", ["tensorflow", "tyro", "optuna", "torch"]),
        # The token store is made by processes that start in a moment.
        ("minigpt_jax.tokenizer", ["jax", "flax", "tensorflow"]),
    ],
)
def test_import_brings_in(module: str, unwanted: list[str]) -> None:
    program = f"import sys, {module}; print(*sorted(set({unwanted}) & set(sys.modules)))"
    result = python(program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize(("name", "module"), [("pmap", "parallel/devices.py"), ("default_backend", "ops/platform.py")])
def test_what_is_named_in_one_module(name: str, module: str) -> None:
    package = ROOT / "minigpt_jax"
    naming = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr == name)
        or (isinstance(node, ast.alias) and node.name.endswith(name))
    }
    assert naming == {module}


def test_readme_has_the_rooms_of_the_contracts() -> None:
    layers = [re.findall(r"\w+", layer) for layer in reversed(OPTIONS["layers"]["layers"])]
    height = {room: i for i, layer in enumerate(layers) for room in layer}
    rows = re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "README.md").read_text(), re.M)
    levels = {room: int(level) for level, rooms in rows for room in re.findall(r"`(\w+)/?`", rooms)}
    assert set(levels) == set(height)
    upwards = sorted(height, key=lambda room: (levels[room], height[room]))
    assert [height[room] for room in upwards] == sorted(height.values())


def test_all_that_the_package_offers_is_there() -> None:
    for name in dir(minigpt_jax):
        assert getattr(minigpt_jax, name) is not None


def test_functions_of_the_package_share_no_name_with_a_module() -> None:
    modules = {path.stem for path in (ROOT / "minigpt_jax").iterdir()}
    functions = {name for name in dir(minigpt_jax) if inspect.isfunction(getattr(minigpt_jax, name))}
    assert {"load", "run"} <= functions
    assert not functions & modules
