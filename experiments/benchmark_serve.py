"""How `serve` holds up: many clients at once, first tokens, and throughput beside `generate`.

./launch.sh experiments/benchmark_serve.py runs/plain
./launch.sh experiments/benchmark_serve.py runs/plain --requests 200 --clients 8

Starts `minigpt serve`, asks it as many clients do, by several methods, with prompts and limits of mixed lengths, some
streamed, and some clients that leave early. Then every text is compared with that of `generate` for its request alone.
Text is promised to be equal in float32 on CPU. Writes a table and JSON into runs/benchmarks.

The clients share the cores with the server. Where throughput is measured, they are therefore as light as clients can
be: one thread opens all streams, and reads bytes, which it parses once the last stream has ended. Rounds of streams and
rounds of `generate` alternate, so that other work on the machine slows both.

Found on two cores: with a plain model of 0.57 million parameters, 32 streams make 0.74 to 0.80 of the tokens per second
of `generate` with 32 prompts (19,400 of 26,100); chunks of 0.08 or 0.1 seconds are no better. With a model of the
reference's size they make 0.80 (7,630 of 9,390). The first token of a stream comes after 7 ms. 128 requests per second,
none lost or wrong. Memory goes from 860 to 953 MB with the first 250 requests, and ends at 973 MB after 1,000.
"""

import dataclasses
import http.client
import itertools
import json
import queue
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from minigpt_jax import LanguageModel

METHODS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8},
    {"temperature": 1.1, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 40},
    {"sampler": "contrastive", "k": 4, "alpha": 0.6},
    {"sampler": "beam", "num_beams": 4},
]
_PARTS = 4
"""Parts of the load, after each of which memory is looked at."""
_ROUNDS = 15
"""Rounds of throughput, of which the median counts."""
PROMPTS = ["", "once upon a time", "the", "there was a little girl who lived in the wood, and one day she said", "he"]


@dataclass(frozen=True)
class Arguments:
    """Measure `minigpt serve` under load, and check each of its texts."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory."""
    requests: int = 1000
    """Requests of the load."""
    clients: int = 32
    """Clients that ask at once."""
    streams: int = 32
    """Streams that run together where throughput is measured."""
    tokens: int = 96
    """New tokens of each of those streams."""
    seed: int = 0
    """Seed of the requests."""
    output: Path = Path("runs/benchmarks")
    """Folder of the table and the JSON."""


def main(arguments: list[str]) -> int:
    """Runs the load and writes the table. Returns the exit status, which is 1 if a text was lost or wrong."""
    import minigpt_jax
    from minigpt_jax import display
    from minigpt_jax.benchmark import rounds
    from minigpt_jax.cli import parser
    from minigpt_jax.files import make_folder

    chosen: Arguments = parser.parse(Arguments, arguments, "minigpt benchmark_serve.py")
    chosen = dataclasses.replace(chosen, output=make_folder(chosen.output, "--output"))
    lm = minigpt_jax.load(chosen.run_dir)
    rng = random.Random(chosen.seed)
    asked = [_request(rng) for _ in range(chosen.requests)]
    command = [sys.executable, "-m", "minigpt_jax", "serve", str(chosen.run_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"127\.0\.0\.1:\d+", server.stdout.readline())
            assert address, "the server did not start"
            display.console.print("warming up …")
            _wait_until_compiled(address[0], [*map(_request, [rng] * 60), _stream(chosen.tokens, 0)], chosen.clients)
            display.console.print(f"{chosen.requests:,} requests by {chosen.clients} clients …")
            memory = [_memory(server.pid)]
            answers: list[Any] = []
            seconds = 0.0
            bounds = [len(asked) * i // _PARTS for i in range(_PARTS + 1)]
            for part in (asked[start:end] for start, end in itertools.pairwise(bounds)):
                start = time.perf_counter()
                answers += _load(address[0], part, chosen.clients)
                seconds += time.perf_counter() - start
                memory.append(_memory(server.pid))
            display.console.print("streams …")
            firsts = [_ask(address[0], _stream(chosen.tokens, i))["first"] for i in range(20)]
            rates, own_rates = _rates(chosen, lm, address[0])
        finally:
            server.terminate()
    wrong, lost, left = _compare(lm, asked, answers)
    share = statistics.median(rate / own for rate, own in zip(rates, own_rates, strict=True))
    figures = {
        "requests a second": chosen.requests / seconds,
        "texts lost": lost,
        "texts wrong": wrong,
        "clients that left early": left,
        "memory before, and after each quarter, MB": memory,
        "first token of one stream, ms, median": 1000 * statistics.median(firsts),
        "first token of one stream, ms, worst of 20": 1000 * max(firsts),
        f"tokens a second, {chosen.streams} streams": statistics.median(rates),
        f"tokens a second, generate with {chosen.streams} prompts": statistics.median(own_rates),
        "of those, share": share,
    }
    rows = [[name, " · ".join(f"{x:,.0f}" for x in v) if isinstance(v, list) else v] for name, v in figures.items()]
    table = rounds.markdown_table(["", ""], rows)
    heading = f"{chosen.requests:,} requests by {chosen.clients} clients"
    path = rounds.write(chosen.output, "serve", "Serving", {heading: table}, figures)
    display.console.print(path.read_text(), markup=False)
    return 1 if wrong or lost else 0


def _request(rng: random.Random) -> dict[str, Any]:
    """A request of the load; `leaves` says that its client leaves after the first tokens."""
    prompt, seed = rng.choice(PROMPTS), rng.randrange(1000)
    body = {"prompt": prompt, "seed": seed, "max_tokens": rng.choice([1, 8, 20, 48]), **rng.choice(METHODS)}
    body["stream"] = rng.random() < 0.5
    if rng.random() < 0.2 and body.get("sampler") != "beam":
        body["stop"] = ["said"]
    return {**body, "leaves": body["stream"] and rng.random() < 0.15}


def _stream(tokens: int, seed: int) -> dict[str, Any]:
    usage = {"include_usage": True}
    return {"prompt": PROMPTS[1], "max_tokens": tokens, "seed": seed, "stream": True, "stream_options": usage}


def _load(address: str, asked: list[dict[str, Any]], clients: int) -> list[Any]:
    """The answers to all requests, which so many clients send one after the other; an exception where one failed."""
    tasks: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
    for task in enumerate(asked):
        tasks.put(task)
    answers: list[Any] = [None] * len(asked)

    def client() -> None:
        while True:
            try:
                index, body = tasks.get_nowait()
            except queue.Empty:
                return
            try:
                answers[index] = _ask(address, body)
            except Exception as error:
                answers[index] = error

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _ask(address: str, request: dict[str, Any]) -> dict[str, Any]:
    """The text of an answer, its usage, and the seconds to the first of it."""
    body = {name: value for name, value in request.items() if name != "leaves"}
    connection = http.client.HTTPConnection(address, timeout=600)
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {response.read().decode()}")
    if not body["stream"]:
        answer = json.loads(response.read())
        return {"text": answer["choices"][0]["text"], "usage": answer["usage"], "first": time.perf_counter() - start}
    text, first, usage = "", 0.0, None
    for line in response:
        data = line.decode().removeprefix("data: ").strip()
        if data == "[DONE]":
            break
        if not data:
            continue
        event = json.loads(data)
        text += "".join(choice["text"] for choice in event["choices"])
        usage = event.get("usage") or usage
        first = first or time.perf_counter() - start
        if request.get("leaves") and text:
            connection.close()
            return {"text": text, "left": True}
    return {"text": text, "usage": usage, "first": first}


def _rates(chosen: Arguments, lm: "LanguageModel", address: str) -> tuple[list[float], list[float]]:
    """The tokens a second of streams that run together, and those of `generate` in this process, in turn."""
    from minigpt_jax import Random

    prompts, row_ids = [PROMPTS[1]] * chosen.streams, [0] * chosen.streams
    rates, own = [], []
    for _ in range(1 + _ROUNDS):
        rates.append(_rate(address, [_stream(chosen.tokens, i) for i in range(chosen.streams)]))
        start = time.perf_counter()
        texts = lm.generate(prompts, Random(), max_new_tokens=chosen.tokens, row_ids=row_ids)
        own.append(sum(len(one.tokens) for one in texts) / (time.perf_counter() - start))
    return rates[1:], own[1:]  # the first round compiles


def _rate(address: str, asked: list[dict[str, Any]]) -> float:
    """The tokens a second of streams that run together, from the first connection to the last byte."""
    host, port = address.split(":")
    requests = []
    for body in map(json.dumps, asked):
        head = f"Host: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        requests.append(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n{body}".encode())
    selector = selectors.DefaultSelector()
    answers = [bytearray() for _ in asked]
    start = time.perf_counter()
    for request, answer in zip(requests, answers, strict=True):
        connection = socket.create_connection((host, int(port)), timeout=600)
        connection.sendall(request)
        selector.register(connection, selectors.EVENT_READ, answer)
    while selector.get_map():
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            if part := key.fileobj.recv(1 << 16):
                key.data.extend(part)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
    seconds = time.perf_counter() - start
    counts = [re.search(rb'"completion_tokens": (\d+)', answer) for answer in answers]
    return sum(int(count[1]) for count in counts if count) / seconds


def _wait_until_compiled(address: str, asked: list[dict[str, Any]], clients: int) -> None:
    """Asks until the server has compiled all that such requests need, whether together or alone."""
    while True:
        _load(address, asked, clients)
        if not _compiling(address):
            return
        while _compiling(address):
            time.sleep(0.1)


def _compiling(address: str) -> bool:
    with urllib.request.urlopen(f"http://{address}/health") as response:
        return json.load(response)["compiling"]


def _memory(process: int) -> float:
    """The resident memory of a process in MB."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        return float("nan")
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def _compare(lm: "LanguageModel", asked: list[dict[str, Any]], answers: list[Any]) -> tuple[int, int, int]:
    """Wrong texts, lost ones, and clients that left."""
    from minigpt_jax.serve import openai_request

    wrong = lost = left = 0
    alone: dict[str, str] = {}
    for request, answer in zip(asked, answers, strict=True):
        if not isinstance(answer, dict):
            lost += 1
            print(f"lost: {request}: {answer}", file=sys.stderr)
            continue
        body = {name: value for name, value in request.items() if name != "leaves"}
        key = json.dumps(body | {"stream": None}, sort_keys=True)
        if key not in alone:
            parsed = openai_request.parse(body)
            alone[key] = lm.generate(parsed.prompts, parsed.sampler, settings=parsed.settings)[0].text
        if answer.get("left"):
            left += 1
            right = alone[key].startswith(answer["text"])
        else:
            right = answer["text"] == alone[key]
        if not right:
            wrong += 1
            print(f"wrong: {request}:\n  {answer['text']!r}\n  {alone[key]!r}", file=sys.stderr)
    return wrong, lost, left
