"""The importances of a sweep's axes, on synthetic objectives."""

import numpy as np
import pytest

from minigpt_jax.report import results
from minigpt_jax.report.importance import importances
from minigpt_jax.report.results import Axis, Configuration


def synthetic(effects: dict[str, float], number: int = 40) -> tuple[list[Axis], list[Configuration]]:
    """Configurations over log-uniform rates and two categories, whose loss is a sum of the axes' effects."""
    random = np.random.default_rng(1)
    axes = [
        Axis("rate", low=1e-5, high=1e-1, log=True),
        Axis("kind", values=("a", "b")),
        Axis("idle", low=0.0, high=1.0),
    ]
    rows = []
    for i in range(number):
        place, kind = random.uniform(), str(random.choice(["a", "b"]))
        values = {"rate": 1e-5 * 1e4**place, "kind": kind, "idle": random.uniform()}
        loss = 3 + effects["rate"] * place + effects["kind"] * (kind == "b")
        rows.append({"configuration": i, "trial": f"{i}-0", "seed": 0, "loss": loss, "status": "complete", **values})
    return axes, results.configurations(rows, [axis.field for axis in axes])


def test_the_axis_with_the_largest_effect_has_the_largest_importance():
    for effects, most in (({"rate": 1.0, "kind": 0.1}, "rate"), ({"rate": 0.1, "kind": 1.0}, "kind")):
        shares, reason = importances(*synthetic(effects))
        assert reason == ""
        assert next(iter(shares)) == most
        assert shares[most] > 0.8
        assert shares["idle"] < 0.05
        assert sum(shares.values()) == pytest.approx(1)


def test_importances_use_the_logarithm_of_a_log_range():
    # The loss falls evenly over four decades: on a linear axis nine tenths of the range would look all but flat.
    axes, found = synthetic({"rate": 1.0, "kind": 0.35})
    shares, _ = importances(axes, found)
    assert shares["rate"] == pytest.approx((1 / 12) / (1 / 12 + 0.35**2 / 4), abs=0.12)


def test_importances_need_enough_different_results():
    axes, found = synthetic({"rate": 1.0, "kind": 0.1}, number=5)
    assert importances(axes, found) == ({}, "Importances need 6 complete configurations; there are 5 so far.")
    axes, found = synthetic({"rate": 0.0, "kind": 0.0}, number=8)
    assert importances(axes, found)[1] == "All configurations reached the same loss."
    assert "No axis" in importances(axes, found[:1])[1]
