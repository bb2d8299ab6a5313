"""The command `minigpt serve` as a process, and what it says of mistakes."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import machine
import pytest
import tiny_experiment

from minigpt_jax.cli import main
from minigpt_jax.trial.run import run

openai = pytest.importorskip("openai", reason="the client of OpenAI's API; pip install openai")
pytest.importorskip("uvicorn", reason="pip install 'minigpt_jax[serve]'")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "tiny"
    run(tiny_experiment.changed("train", steps=2), path)
    return path


@contextlib.contextmanager
def serving(run_dir: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process of the command, and its address."""
    arguments = [sys.executable, "-m", "minigpt_jax", "serve", str(run_dir), "--port", "0"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=machine.environment(1)
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.match(r"http://127\.0\.0\.1:\d+", line)
        assert address, (line, process.stderr and process.stderr.read())
        assert "tiny (step 2)" in line
        yield process, address[0]


def test_the_command_serves_until_it_is_interrupted(run_dir: Path):
    with serving(run_dir) as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        events = iter(client.completions.create(model="tiny", prompt="once", max_tokens=30, stream=True, seed=1))
        texts = [next(events).choices[0].text]
        process.send_signal(signal.SIGINT)
        texts += [event.choices[0].text for event in events]  # what runs is finished
        assert "".join(texts)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_the_second_signal_ends_the_server_at_once(run_dir: Path):
    body = json.dumps({"prompt": ["a"] * 64, "n": 2, "max_tokens": 30, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with serving(run_dir) as (process, address):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
            client.sendall(head.encode() + body)
            got = client.recv(1)
            for _ in range(2):
                process.send_signal(signal.SIGTERM)
                time.sleep(0.05)  # else the system may make one of two
            assert process.wait(60) == 130
            with contextlib.suppress(ConnectionResetError):
                while more := client.recv(1 << 16):
                    got += more
        assert got.startswith(b"HTTP/1.1 200")
        assert b"[DONE]" not in got
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no run directory"),
        (["nowhere"], "nowhere"),
        (["{run}", "--port", "70000"], "--port 70000"),
        (["{run}", "--port", "{busy}"], "give another --port"),
        (["{run}", "--host", "0.0.0.0"], "MINIGPT_API_KEY"),
        (["{run}", "--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["{run}", "--host", "a..b"], "--host a..b is no address of this machine"),
        (["{run}", "--host", "a" * 70], f"--host {'a' * 70} is no address of this machine"),
        (["{run}", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["{run}", "--max-new-tokens", "10000000000"], "--max-new-tokens 10000000000: must be from 1 to"),
        (["{run}", "--step", "7"], "step 7"),
    ],
    ids=str,
)
def test_mistakes_of_the_command(
    run_dir: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MINIGPT_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        filled = [one.format(run=run_dir, busy=port) if "{" in one else one for one in arguments]
        assert main(["serve", *filled, *([] if "--port" in filled else ["--port", "0"])]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert told in line


def test_the_command_names_its_extra(run_dir: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert main(["serve", str(run_dir), "--port", "0"]) == 2
    assert "minigpt_jax[serve]" in capsys.readouterr().err
