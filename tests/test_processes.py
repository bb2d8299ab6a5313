"""What processes of one run send each other, and how they find each other."""

import json
import pickle
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from jax._src import distributed as jax_distributed

from minigpt_jax.errors import UserError
from minigpt_jax.parallel import cluster, processes


class Store:
    """The key-value store of two processes, without the processes."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str) -> None:
        self.values[key] = value

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        del key, timeout_in_ms
        return list(self.values.values())[-1]

    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None:
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: the other one never came")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax_distributed, "global_state", SimpleNamespace(client=store))
    return store


def in_both(monkeypatch: pytest.MonkeyPatch, function: Any) -> list[Any]:
    """What `from_first` returns or raises in the first process and in the second."""

    def never() -> Any:
        raise AssertionError("the second process ran it")

    results = []
    for index, call in enumerate((function, never)):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        try:
            results.append(processes.from_first(call))
        except (UserError, OSError) as error:
            results.append(error)
    return results


@pytest.mark.parametrize("value", [None, 7, "text", True, [[4, 1.5], [8, float("inf")]]])
def test_all_processes_get_what_the_first_one_returns(store: Store, monkeypatch: pytest.MonkeyPatch, value: Any):
    assert in_both(monkeypatch, lambda: value) == [value, value]


@pytest.mark.parametrize(
    "error",
    [
        UserError("--seed x: no"),
        OSError("of one argument"),
        PermissionError(13, "Permission denied"),
        FileNotFoundError(2, "No such file or directory", Path("there")),
    ],
)
def test_all_processes_raise_what_the_first_one_raises(store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception):
    """Even if the others do not come to read it in time."""

    def fail() -> None:
        raise error

    first, second = in_both(monkeypatch, fail)
    assert first is error
    assert type(second) is type(error)
    assert str(second) == str(error).replace("PosixPath('there')", "'there'")


class Bomb:
    """Runs a command of its sender's choice where it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a stranger's command ran",)


@pytest.mark.parametrize(
    "sent",
    [pickle.dumps(Bomb(), 0).decode(), "", "[]", "{}", "3", json.dumps({"error": "SystemExit", "arguments": []})],
)
def test_what_a_stranger_puts_into_the_store_runs_no_code(store: Store, monkeypatch: pytest.MonkeyPatch, sent: str):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    store.values["minigpt/0"] = sent
    with pytest.raises(UserError, match="message from process 0 of this run cannot be read"):
        processes.from_first(lambda: None)


@pytest.mark.parametrize(
    ("coordinator", "resolved", "listens"),
    [
        ("127.0.0.1:80", ["127.0.0.1"], "127.0.0.1:80"),
        ("localhost:80", ["127.0.0.1"], "localhost:80"),
        ("node1:80", ["127.0.0.1"], None),  # by its own /etc/hosts; the others reach it by another address
        ("node1:80", ["192.0.2.7"], None),  # no address of this machine: a forwarded port
        ("nowhere:80", [], None),
        (None, [], None),
    ],
)
def test_the_coordinator_listens_at_its_own_address(
    monkeypatch: pytest.MonkeyPatch, coordinator: str | None, resolved: list[str], listens: str | None
):
    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        if not resolved:
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in resolved]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert cluster.own_address(coordinator) == listens
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "0.0.0.0:80")
    assert cluster.own_address(coordinator) is None
