"""The storage of a sweep's study: the journal, its lock and its damages, and the addresses of databases."""

import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
import tiny_sweep
from test_sweep_study import RATES, finish, plan

from minigpt_jax.errors import UserError, without_password
from minigpt_jax.sweep import storage as storage_
from minigpt_jax.sweep.study import Study


@pytest.mark.parametrize("storage", ["nonsense", "postgresql+nothing://x", "sqlite:////nowhere/at/all.db"])
def test_invalid_storages_are_refused(tmp_path: Path, storage: str):
    with pytest.raises(UserError, match="--storage"):
        Study(plan(tmp_path), storage)


HOLDER = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import tiny_sweep
from minigpt_jax.sweep.study import Study
os.chdir({root!r})
study = Study(tiny_sweep.plan(Path("sweeps"), {rates!r}, name="s"))
study._storage._backend._lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_worker_killed_while_it_holds_the_journal_blocks_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = HOLDER.format(tests=str(Path(__file__).parent), root=str(tmp_path), rates=RATES)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with Study(tiny_sweep.plan(Path("sweeps"), RATES, name="s")) as study:  # a relative path, as in a user's command
        assert len(study.claim(1)) == 1
    assert time.monotonic() - start < 10


def test_waiting_for_the_journal_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(storage_, "SECONDS_BETWEEN_WARNINGS", 0.1)
    lock = storage_._JournalLock(tmp_path / "study.journal")
    held = threading.Event()

    def hold() -> None:
        lock.acquire()
        held.set()
        time.sleep(0.5)
        lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    storage_.open_storage(tmp_path, None)
    thread.join()
    assert f"waiting for {tmp_path / 'study.journal'}, which another worker holds" in capsys.readouterr().err


@pytest.mark.parametrize("tail", ['{"op_code": 8, "worker_id": "w", "tri', "x" * 10_000])
def test_an_incomplete_last_line_of_the_journal_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture, tail: str):
    sweep_plan = plan(tmp_path)
    journal = sweep_plan.folder / "study.journal"
    with Study(sweep_plan) as study:
        claims = study.claim(2)
        assert finish(study, 0)
        with journal.open("a") as file:  # as of a worker that is killed while this one runs
            file.write(tail)
        assert finish(study, 1)
    with journal.open("a") as file:
        file.write(tail)
    with Study(sweep_plan) as study:
        assert [one["configuration"] for one in study.rows()] == [claim.configuration for claim in claims]
        assert len(study.claim(9)) == 4
    assert capsys.readouterr().err.count("its last line is incomplete") == 2
    assert tail not in journal.read_text()


def test_a_journal_with_only_an_incomplete_line(tmp_path: Path):
    sweep_plan = plan(tmp_path)
    sweep_plan.folder.mkdir(parents=True)
    (sweep_plan.folder / "study.journal").write_text('{"op_code"')
    with Study(sweep_plan) as study:
        assert len(study.claim(1)) == 1


def test_a_journal_with_a_damaged_line_is_refused(tmp_path: Path):
    sweep_plan = plan(tmp_path)
    with Study(sweep_plan) as study:
        study.claim(2)
    journal = sweep_plan.folder / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], "{]\n", *lines[2:]]))
    with pytest.raises(UserError, match=r"study\.journal is damaged"):
        Study(sweep_plan)


SECRET = "hunter2/x@y"


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql+nothing://user:{SECRET}@host/db",
        f"nonsense://user:{SECRET}@host/db",
        "postgresql+nothing://user@host/db?password=hunter2",
        f"postgresql+psycopg://user:{SECRET}@localhost:1/db",
    ],
)
def test_errors_contain_no_password(tmp_path: Path, address: str):
    with pytest.raises(UserError) as refused:
        Study(plan(tmp_path), address)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))
    assert "***" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:pw@host:5432/db", "postgresql://user:***@host:5432/db"),
        ("postgresql://user@host:5432/db", "postgresql://user@host:5432/db"),
        ("mysql://u:a b:c@d/e@host/db?passwd=x&b=1", "mysql://u:***@host/db?passwd=***&b=1"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("--storage=postgresql://user:pw@host/db", "--storage=postgresql://user:***@host/db"),
        ("data.files=a.txt,b.txt", "data.files=a.txt,b.txt"),
    ],
)
def test_addresses_without_passwords(text: str, shown: str):
    assert without_password(text) == shown
    assert without_password(shown) == shown


def test_a_password_of_stars_is_left_to_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked, memory = [], storage_.optuna.storages.InMemoryStorage()
    monkeypatch.setattr(storage_.optuna.storages, "get_storage", lambda address: asked.append(address) or memory)
    storage_.open_storage(tmp_path, "postgresql+psycopg://user:***@host/db")
    assert asked == ["postgresql+psycopg://user@host/db"]
