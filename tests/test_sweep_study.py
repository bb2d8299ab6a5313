"""The study that workers share: claims, leases, and finishing each configuration once. Without training."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_sweep

from minigpt_jax import sweep
from minigpt_jax.errors import UserError
from minigpt_jax.sweep import leases
from minigpt_jax.sweep.group import pruned_configurations, score
from minigpt_jax.sweep.study import Study, survivors
from minigpt_jax.train.metrics import LossSums

RATES = "optimizer.learning_rate=1e-3,2e-3,3e-3,4e-3,5e-3,6e-3"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL server: that of $MINIGPT_TEST_POSTGRES, or of one started here."""
    if address := os.environ.get("MINIGPT_TEST_POSTGRES"):
        yield address
        return
    pytest.importorskip("psycopg")
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None or os.geteuid() == 0:
        pytest.skip("needs MINIGPT_TEST_POSTGRES=postgresql+psycopg://…, or initdb on PATH and a user who is not root")
    folder = tmp_path_factory.mktemp("postgres")
    start = [
        "-o",
        f"-c listen_addresses= -c unix_socket_directories={folder}",
        "-l",
        str(folder / "log"),
        "-w",
        "start",
    ]
    subprocess.run(["initdb", "-D", folder / "data", "-U", "sweeper", "-A", "trust"], check=True, capture_output=True)
    subprocess.run(["pg_ctl", "-D", folder / "data", *start], check=True, stdout=subprocess.DEVNULL)
    yield f"postgresql+psycopg://sweeper@/postgres?host={folder}"
    subprocess.run(["pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], check=True, capture_output=True)


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    if request.param == "postgresql":
        return request.getfixturevalue("server")
    return None if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


def plan(tmp_path: Path, *texts: str, **settings: Any) -> sweep.Plan:
    # Each test has a name of its own, because the database server outlives the tests.
    return tiny_sweep.plan(tmp_path, *(texts or (RATES,)), name=f"s{time.time_ns()}", **settings)


def row(configuration: int, loss: float | None = 1.0, status: str = "complete") -> dict[str, Any]:
    return {"configuration": configuration, "seed": 0, "status": status, "loss": loss, "step": 9}


def finish(study: Study, configuration: int, **fields: Any) -> bool:
    return study.record(configuration, 0, row(configuration, **fields)) and study.finish(configuration)


def test_workers_share_a_grid_and_take_over_the_trials_of_a_lost_one(tmp_path: Path, storage: str | None):
    sweep_plan = plan(tmp_path)
    lost, left = Study(sweep_plan, storage, lease=1e6), Study(sweep_plan, storage, lease=1e6)
    with left:
        lost._leases.renew()
        mine, theirs = left.claim(2), lost.claim(3)
        claimed = [claim.configuration for claim in mine + theirs]
        assert claimed == [0, 1, 2, 3, 4]
        rates = [claim.values["optimizer.learning_rate"] for claim in mine + theirs]
        assert rates == [1e-3, 2e-3, 3e-3, 4e-3, 5e-3]
        assert left.workers() == 2
        assert [c.configuration for c in left.claim(9)] == [5]  # not those of a worker whose lease is valid
        assert left.unfinished() == 6
        lost._leases.seconds = -1.0  # as if it had not renewed its lease for long
        lost._leases.renew()
        handed_on = left.claim(9)
        assert handed_on == theirs
        assert not lost.holds(2)
        # It was only slow. Its late results are ignored.
        assert not finish(lost, 2, loss=7.0)
        for claim in mine + handed_on:
            assert finish(left, claim.configuration, loss=float(claim.configuration))
        assert finish(left, 5)
        assert not finish(left, 5)
        assert left.unfinished() == 0
        assert left.claim(9) == []
        assert [r["loss"] for r in left.rows()] == [0, 1, 2, 3, 4, 1.0]


def test_clocks_of_machines_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A lease that is renewed is valid by a clock that is ahead, and expires once it has not been for its length."""
    sweep_plan = plan(tmp_path)
    here = Study(sweep_plan, lease=1)
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    there = Study(sweep_plan, lease=60)
    there._leases.renew()
    [theirs] = there.claim(1)
    time_there, since = time.time, time.monotonic
    monkeypatch.setattr(leases.time, "time", lambda: time_there() + 90)
    assert [claim.configuration for claim in here.claim(1)] == [1]
    monkeypatch.setattr(leases.time, "monotonic", lambda: since() + 30)
    assert [claim.configuration for claim in here.claim(1)] == [2]
    monkeypatch.setattr(leases.time, "monotonic", lambda: since() + 61)
    assert here.claim(1) == [theirs]


def test_a_released_configuration_can_be_claimed_immediately(tmp_path: Path):
    sweep_plan = plan(tmp_path)
    with Study(sweep_plan) as one, Study(sweep_plan) as other:
        [claim] = one.claim(1)
        one.release(claim.configuration)
        assert other.claim(1) == [claim]
    with Study(sweep_plan) as third:  # a worker that exits releases all its configurations
        assert third.claim(1) == [claim]


def test_a_row_that_a_lost_worker_wrote_is_kept(tmp_path: Path):
    sweep_plan = plan(tmp_path, RATES, "seed=0,1")
    with Study(sweep_plan) as lost:
        [claim] = lost.claim(1)
        lost.record(claim.configuration, 0, row(0))
    with Study(sweep_plan) as other:
        [claim] = other.claim(1)
        assert claim.done == {0: row(0)}


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_search_draws_by_number_and_without_duplicates(tmp_path: Path, search: Any):
    texts = ("optimizer.learning_rate=1e-4..1e-2:log", "model.num_layers=1..3", "model.norm=layernorm,rmsnorm")
    drawn = []
    for workers in (1, 2):
        sweep_plan = plan(tmp_path, *texts, search=search, trials=8)
        studies = [Study(sweep_plan) for _ in range(workers)]
        for study in studies:
            study._leases.renew()
        drawn.append([studies[i % workers].claim(1)[0] for i in range(8)])
        assert studies[0].claim(1) == []
    assert drawn[0] == drawn[1]
    rates = [claim.values["optimizer.learning_rate"] for claim in drawn[0]]
    assert len(set(rates)) == 8
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert {type(claim.values["model.num_layers"]) for claim in drawn[0]} == {int}
    # An axis with two values has only two configurations.
    with Study(plan(tmp_path, "model.norm=layernorm,rmsnorm", search=search, trials=5)) as study:
        assert len(study.claim(5)) == 2
        assert study.unfinished() == 2


def test_tpe_concentrates_where_the_loss_is_low(tmp_path: Path):
    sweep_plan = plan(tmp_path, "optimizer.learning_rate=1e-5..1:log", search="tpe", trials=40)
    with Study(sweep_plan) as study:
        rates = []
        for _ in range(40):
            [claim] = study.claim(1)
            rates.append(claim.values["optimizer.learning_rate"])
            if rates[-1] > 0.1:
                finish(study, claim.configuration, loss=None, status="diverged")
            else:
                finish(study, claim.configuration, loss=abs(rates[-1] - 1e-3))
    near = [sum(1e-4 < rate < 1e-2 for rate in part) for part in (rates[:10], rates[-10:])]
    assert near[1] >= near[0] + 3


def test_another_sweep_of_the_same_name_is_refused(tmp_path: Path):
    with Study(tiny_sweep.plan(tmp_path, RATES)):
        pass
    with pytest.raises(UserError, match="another axes; choose another --name"):
        Study(tiny_sweep.plan(tmp_path, "optimizer.b1=0.8,0.9"))
    with Study(tiny_sweep.plan(tmp_path, RATES, trials=3)) as study:
        assert len(study.claim(9)) == 3
    with Study(tiny_sweep.plan(tmp_path, RATES)) as study:  # the same sweep with more trials is allowed
        assert [claim.configuration for claim in study.claim(9)] == [0, 1, 2, 3, 4, 5]


def test_successive_halving_keeps_the_better_half_of_all_that_reached_the_rung():
    assert survivors({0: 1.0}, [1.0]) == {0}
    assert survivors({0: 1.0, 1: 2.0}, [1.0, 2.0]) == {0}
    assert survivors({0: 3.0, 1: 2.0}, [1.0, 2.0, 3.0]) == {1}
    assert survivors({0: 3.0, 1: 2.0}, [3.0, 2.0, 4.0, 5.0]) == {0, 1}


TOKENIZERS = "tokenizer.vocabulary_size=200,300"


def test_tokenizers_are_ranked_by_bits_per_byte(tmp_path: Path):
    with Study(plan(tmp_path, TOKENIZERS)) as study:
        for claim, (loss, bits) in zip(study.claim(2), [(2.0, 1.5), (3.0, 1.25)], strict=True):
            assert study.record(claim.configuration, 0, row(claim.configuration, loss) | {"bits_per_byte": bits})
            assert study.finish(claim.configuration)
        assert study._study.best_trial.number == 1
        assert study._study.best_value == 1.25


@pytest.mark.parametrize(("axis", "pruned"), [(TOKENIZERS, {0}), ("model.width=8,16", {1})])
def test_pruning_uses_the_comparable_figure(tmp_path: Path, axis: str, pruned: set[int]):
    sweep_plan = plan(tmp_path, axis, "seed=0")
    sums = [LossSums(nats=200.0, tokens=100, bytes=190), LossSums(nats=180.0, tokens=60, bytes=210)]
    scores = {i: [score(sweep_plan.figure, one)] for i, one in enumerate(sums)}
    with Study(sweep_plan) as study:
        assert {claim.configuration for claim in study.claim(2)} == {0, 1}
        assert pruned_configurations(study, 5, scores) == pruned


def test_a_sweep_from_before_a_field_was_added_can_be_resumed(tmp_path: Path):
    sweep_plan = plan(tmp_path)
    with Study(sweep_plan) as study:
        known = study._study.user_attrs["sweep"]
        del known["experiment"]["model"]["dropout"]
        study._study.set_user_attr("sweep", known)
    with Study(sweep_plan) as study:
        assert len(study.claim(1)) == 1
