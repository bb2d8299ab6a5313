"""The OpenAI-compatible endpoint: the official client against it, its errors, and who may ask."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from test_generate import full_pass_logprobs, language_model

from minigpt_jax import Beam, Contrastive, Greedy, MinP, Random, Sampler, TopK, TopP, Typical, UserError
from minigpt_jax.generate import LanguageModel
from minigpt_jax.serve import openai_request
from minigpt_jax.serve.app import create_app
from minigpt_jax.serve.engine import Engine
from minigpt_jax.serve.runs import Runs

openai = pytest.importorskip("openai", reason="the client of OpenAI's API; pip install openai")
uvicorn = pytest.importorskip("uvicorn", reason="pip install 'minigpt_jax[serve]'")

LONGEST = 100_000
"""Tokens that take seconds, so that a client can leave before they are generated."""


class LocalServer:
    """Models on a free port, served by a thread."""

    def __init__(self, runs: Runs, **settings: Any) -> None:
        self.runs = runs
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(create_app(runs, **settings), log_level="error"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.socket]})
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, Any]:
        """The status, the JSON and the headers of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if raw is not None else {}
        connection.request(method, path, raw, sent | (headers or {}))
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None, response.headers


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model(positions="rope")


@pytest.fixture(scope="module")
def server(lm: LanguageModel) -> Iterator[LocalServer]:
    server = LocalServer(Runs([Engine(lm, "random", LONGEST, sizes=(1, 4))]))
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Any:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


def test_models(client: Any):
    [model] = client.models.list()
    assert (model.id, model.owned_by, model.max_model_len) == ("random", "minigpt_jax", 24)
    assert client.models.retrieve("random").id == "random"
    with pytest.raises(openai.NotFoundError, match="did you mean random"):
        client.models.retrieve("randon")


def test_a_completion_is_what_generate_returns(client: Any, lm: LanguageModel):
    asked = {"max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 5, "n": 2, "stop": ["b"]}
    answer = client.completions.create(model="random", prompt=["a b", "c"], **asked)
    expected = lm.generate(
        ["a b", "c"], Random(0.8, top_p=0.9), max_new_tokens=12, seed=5, num_return_sequences=2, stop=["b"]
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [one.text for one in expected]
    assert [choice.finish_reason for choice in answer.choices] == [one.finish_reason for one in expected]
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == sum(len(one.tokens) for one in expected)
    assert (answer.object, answer.model) == ("text_completion", "random")


@pytest.mark.parametrize(
    ("fields", "sampler"),
    [
        ({"temperature": 0}, Greedy()),
        ({"extra_body": {"sampler": "top-k", "top_k": 5}}, TopK(5)),
        ({"extra_body": {"min_p": 0.2}}, Random(min_p=0.2)),
        ({"extra_body": {"num_beams": 3}}, Beam(3)),
        ({"extra_body": {"alpha": 0.4, "k": 3}}, Contrastive(3, 0.4)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_this_projects_own_fields(client: Any, lm: LanguageModel, fields: dict[str, Any], sampler: Sampler):
    answer = client.completions.create(model="random", prompt="the cat", max_tokens=8, seed=1, **fields)
    assert answer.choices[0].text == lm.generate(["the cat"], sampler, 8, seed=1)[0].text


def test_streamed_pieces_add_up(client: Any, lm: LanguageModel):
    asked = {"max_tokens": 20, "seed": 3, "n": 2, "logprobs": 2, "stop": ["the"]}
    whole = client.completions.create(model="random", prompt=["a b", "c"], **asked)
    events = list(
        client.completions.create(
            model="random", prompt=["a b", "c"], stream=True, stream_options={"include_usage": True}, **asked
        )
    )
    *events, last = events
    assert (last.choices, last.usage) == ([], whole.usage)
    for choice in whole.choices:
        mine = [event.choices[0] for event in events if event.choices[0].index == choice.index]
        assert "".join(one.text for one in mine) == choice.text
        assert [one.finish_reason for one in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        for name in ("tokens", "token_logprobs"):
            pieces = [value for one in mine for value in getattr(one.logprobs, name)]
            assert pieces == pytest.approx(getattr(choice.logprobs, name))
        tops = [best for one in mine for best in one.logprobs.top_logprobs]
        assert list(map(set, tops)) == list(map(set, choice.logprobs.top_logprobs))


def test_echo_scores_the_prompt(client: Any, lm: LanguageModel):
    prompt = "a b the"
    ids = lm.tokenizer.encode_batch([prompt])[0]
    expected = full_pass_logprobs(lm, "", ids)
    for given in (prompt, ids):
        [choice] = client.completions.create(model="random", prompt=given, max_tokens=0, echo=True, logprobs=3).choices
        assert choice.text == prompt
        np.testing.assert_allclose(choice.logprobs.token_logprobs, expected, atol=1e-4)
        assert choice.logprobs.tokens == ["a", "b", "the"]
        assert choice.logprobs.text_offset[0] == 0
        for token, logprob, top in zip(
            choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True
        ):
            assert len(top) == 3
            assert logprob <= max(top.values()) + 1e-5
            assert top.get(token, logprob) == pytest.approx(logprob, abs=1e-5)
    both = client.completions.create(model="random", prompt=prompt, max_tokens=2, echo=True, logprobs=1, seed=1)
    generated = lm.generate([prompt], Random(), 2, seed=1)[0]
    assert both.choices[0].text == generated.full_text
    np.testing.assert_allclose(both.choices[0].logprobs.token_logprobs[3:], generated.logprobs, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": -1}, "temperature", "temperature -1"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"max_tokens": LONGEST + 1}, "max_tokens", f"max_tokens {LONGEST + 1}"),
        ({"max_tokens": 0}, "max_tokens", "unless echo"),
        ({"n": 1000}, "n", "ask for"),
        ({"n": 20_000_000}, "n", "n 20000000: must be at least 1 and at most 100,000"),
        ({"n": 1000, "echo": True, "max_tokens": 0}, "n", "1000 texts at once"),
        ({"prompt": ["a"] * 200}, "n", "200 texts at once"),
        ({"logprobs": 99}, "logprobs", "0 to"),
        ({"prompt": {"a": 1}}, "prompt", "must be a string"),
        ({"prompt": [[1], "a"]}, "prompt", "must be a string"),
        ({"prompt": [999]}, None, "no token 999"),
        ({"prompt": "a " * 30}, "prompt", "window"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"extra_body": {"topk": 3}}, "topk", "did you mean top_k"),
        ({"extra_body": {"sampler": "mine.py:Mine"}}, "sampler", "not known"),
        ({"extra_body": {"sampler": "greedy", "top_k": 3}}, "top_k", "not a setting"),
        ({"extra_body": {"num_beams": 2.5}}, "num_beams", "whole number"),
        (
            {"extra_body": {"num_beams": 3_000_000_000}},
            "num_beams",
            "num_beams: this server's beam search is no wider than",
        ),
        ({"extra_body": {"sampler": "contrastive", "k": 10**400}}, "k", "k"),
        ({"temperature": 10**400}, "temperature", "must be a finite number"),
        ({"presence_penalty": 10**400}, "presence_penalty", "presence_penalty 1000"),
        ({"stop": [3]}, "stop", "list of strings"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"5": "x"}}, "logit_bias", "logit_bias"),
        ({"logit_bias": {"5": 10**400}}, "logit_bias", "logit_bias 5 1000"),
    ],
    ids=str,
)
def test_mistakes(client: Any, fields: dict[str, Any], param: str | None, message: str):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "random", "prompt": "a", **fields})
    error = caught.value.body
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]
    assert "--" not in error["message"]


@pytest.mark.parametrize(
    ("body", "sampler"),
    [
        ({}, Random()),
        ({"top_p": 1, "temperature": 0.5}, Random(0.5)),
        ({"top_p": 0.9, "top_k": 4, "typical_p": 0.8}, Random(top_k=4, top_p=0.9, typical_p=0.8)),
        ({"top_k": -1}, Random()),
        ({"top_k": -1, "sampler": "Random"}, Random()),
        ({"sampler": "Top_P", "p": 0.3}, TopP(0.3)),
        ({"sampler": "min-p", "min_p": 0.3}, MinP(0.3)),
        ({"sampler": "typical", "typical_p": 0.3, "temperature": 2}, Typical(0.3, 2.0)),
        ({"sampler": "contrastive", "top_k": 7, "alpha": 0.3, "temperature": 1}, Contrastive(7, 0.3)),
        ({"sampler": "beam", "num_beams": 7, "length_penalty": 0, "top_p": 1.0}, Beam(7, 0.0)),
    ],
    ids=str,
)
def test_samplers_of_bodies(body: dict[str, Any], sampler: Sampler):
    assert openai_request.parse(body).sampler == sampler


def test_defaults_are_openais():
    first, second = openai_request.parse({"prompt": "a"}), openai_request.parse({"prompt": "a", "seed": None})
    assert first.settings.max_new_tokens == 16
    assert first.settings.seed != second.settings.seed  # without a seed, another text each time
    with pytest.raises(UserError, match="object"):
        openai_request.parse([])


def test_a_stream_ends_with_its_mark(server: LocalServer):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    body = json.dumps({"prompt": "a", "max_tokens": 30, "stream": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    *events, mark, rest = connection.getresponse().read().decode().split("\n\n")
    assert (mark, rest) == ("data: [DONE]", "")
    reasons = [json.loads(one.removeprefix("data: "))["choices"][0]["finish_reason"] for one in events]
    assert reasons == [None] * (len(events) - 1) + ["length"]


def test_a_client_that_leaves_frees_its_row(server: LocalServer, client: Any, lm: LanguageModel):
    pools = server.runs.engine(None)._pools
    finished = lambda: sum(pool.finished for pool in pools.values())  # noqa: E731
    before = finished()

    def wait_until(reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    for stream in (True, False):
        raw = socket.create_connection(("127.0.0.1", server.port))
        body = json.dumps({"prompt": "a", "max_tokens": LONGEST, "stream": stream, "temperature": 0}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        raw.sendall(head.encode() + body)
        if stream:
            assert raw.recv(1000).startswith(b"HTTP/1.1 200")
        wait_until(lambda: any(pool.active for pool in pools.values()))
        raw.close()
        wait_until(lambda: all(pool.idle for pool in pools.values()))
    assert finished() == before


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "127.0.0.1:9"}, 200),
        ({"Host": "[::1]:8765"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "localhost:7", "Origin": "http://localhost:7"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
    ids=str,
)
def test_who_may_ask(server: LocalServer, headers: dict[str, str], status: int):
    body = {"prompt": "a", "max_tokens": 1, "temperature": 0}
    found, answer, sent = server.ask("POST", "/v1/completions", body, headers)
    assert found == status
    assert ("error" in answer) == (status != 200)
    assert "default-src 'self'" in sent["Content-Security-Policy"]
    assert sent["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", None, 200),
        ("GET", "/nowhere", None, 404),
        ("GET", "/v1/completions", None, 405),
        ("POST", "/v1/completions", b"{", 400),
        ("POST", "/v1/completions", b"[" * 100_000, 400),
        ("POST", "/v1/completions", b'"' + b"a" * (1 << 20) + b'"', 413),
        ("POST", "/v1/completions", {"model": "other"}, 404),
        ("POST", "/v1/completions", b'{"prompt": "a", "top_k": NaN}', 400),
        ("POST", "/v1/completions", b'{"prompt": "a", "top_k": 1e400}', 400),
        ("POST", "/v1/completions", b'{"prompt": "a", "num_beams": Infinity}', 400),
        ("POST", "/v1/completions", b'{"prompt": "a", "temperature": 1e400}', 400),
        ("POST", "/v1/completions", b'{"prompt": "a", "top_p": NaN}', 400),
        ("POST", "/v1/completions", b'{"prompt": "a", "logit_bias": {"5": NaN}}', 400),
        ("POST", "/v1/completions", b'{"prompt": "a", "frequency_penalty": NaN}', 400),
        ("POST", "/v1/completions", b'{"prompt": "a", "n": 1e400}', 400),
        ("POST", "/v1/completions", b'{"prompt": "a", "\\ud800": 1}', 400),
    ],
)
def test_errors_have_openais_form(server: LocalServer, method: str, path: str, body: Any, status: int):
    found, answer, _ = server.ask(method, path, body)
    assert found == status
    assert status == 200 or set(answer["error"]) == {"message", "type", "param", "code"}


def test_an_api_key(lm: LanguageModel):
    server = LocalServer(Runs([Engine(lm, "random", sizes=(1,))]), hosts=None, api_key="secret")
    try:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "secret"}, 401),
            ({"Authorization": "Bearer secret"}, 200),
            ({"Authorization": "Bearer secret", "Host": "any.example"}, 200),
        ):
            assert server.ask("GET", "/v1/models", None, headers)[0] == status
        assert server.ask("GET", "/health")[0] == 200
    finally:
        server.close()


def test_a_full_queue_is_429(lm: LanguageModel):
    server = LocalServer(Runs([Engine(lm, "random", sizes=(1,), max_waiting=1)]))
    try:
        status, answer, headers = server.ask("POST", "/v1/completions", {"prompt": "a", "n": 2, "max_tokens": 2})
        assert (status, answer["error"]["type"], headers["Retry-After"]) == (429, "rate_limit_error", "1")
    finally:
        server.close()
