"""The requests that the page makes: texts, what was possible, trees and errors, against the model in this process."""

import json
import time

import pytest

pytest.importorskip("starlette", reason="the page needs the extra serve")

from page_server import byte_model
from starlette.testclient import TestClient

from minigpt_jax import samplers
from minigpt_jax.generate import GenerationSettings, methods
from minigpt_jax.report import style
from minigpt_jax.samplers.methods import METHODS
from minigpt_jax.serve.app import create_app
from minigpt_jax.serve.engine import Engine
from minigpt_jax.serve.page_requests import SETTINGS
from minigpt_jax.serve.pool import Pool
from minigpt_jax.serve.runs import Runs

PROMPT, NEW = "<b>é & ", 12


@pytest.fixture(scope="module")
def lm():
    return byte_model()


@pytest.fixture(scope="module")
def client(lm):
    app = create_app(Runs([Engine(lm, "bytes", sizes=(1,))]))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def asked(method="top_p", branch=(), seed=3, method_settings=None, **settings):
    return {
        "model": "bytes",
        "prompt": PROMPT,
        "branch": list(branch),
        "method": method,
        "method_settings": method_settings or {},
        "settings": {"max_new_tokens": NEW, "seed": seed, **settings},
    }


def sampled(client, body):
    """What the lines of an answer make: token ids, their texts and log-probabilities, and the lines themselves."""
    response = client.post("/api/sample", json=body)
    assert response.status_code == 200, response.text
    lines = [json.loads(line) for line in response.text.splitlines()]
    tokens, pieces, logprobs = [], [], []
    for line in lines:
        assert len(line["tokens"]) == len(line["pieces"]) == len(line.get("logprobs", line["tokens"]))
        for whole, part in ((tokens, line["tokens"]), (pieces, line["pieces"])):
            whole[line["from"] :] = part
        logprobs[line["from"] :] = line.get("logprobs", [None] * len(line["tokens"]))
    return tokens, pieces, logprobs, lines


@pytest.mark.parametrize("method", ["greedy", "top_p", "contrastive", "beam"])
def test_a_text_is_that_of_generate(client, lm, method, monkeypatch):
    land = Pool._land
    # A slow model, since a reader misses updates that come too fast.
    monkeypatch.setattr(Pool, "_land", lambda pool: (time.sleep(0.03), land(pool)))
    tokens, pieces, logprobs, lines = sampled(client, asked(method))
    settings = GenerationSettings(max_new_tokens=NEW, seed=3)
    [expected] = lm.generate([PROMPT], method, settings=settings)
    assert tokens == expected.tokens
    assert logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert lines[0]["prompt_text"] + "".join(pieces) == expected.full_text
    assert lines[-1]["finish_reason"] == expected.finish_reason
    assert (len(lines) > 2) == METHODS[method].streams, "a text grows before the eyes of the reader"


def test_a_branch_goes_on_from_its_tokens(client, lm):
    branch = lm.tokenizer.encode_batch(["ab"])[0]
    tokens, _, logprobs, lines = sampled(client, asked("top_p", branch))
    ids = lm.tokenizer.encode_batch([PROMPT])[0]
    [expected] = lm.generate([[*ids, *branch]], "top_p", max_new_tokens=NEW, seed=3)
    assert tokens == [*branch, *expected.tokens]
    assert logprobs[:2] == [None, None]
    assert lines[0]["prompt_text"] == PROMPT
    body = asked("top_p", branch) | {"tokens": tokens[2:]}
    positions = client.post("/api/inspect", json=body).json()["positions"]
    assert all(one["given"]["kept"] for one in positions)
    assert [one["given"]["logprob"] for one in positions] == pytest.approx(expected.logprobs, abs=1e-4)


def test_what_was_possible_is_what_the_model_says(client, lm):
    tokens, *_ = sampled(client, asked("top_k", method_settings={"k": 3}))
    body = asked("top_k", method_settings={"k": 3}) | {"tokens": tokens}
    answer = client.post("/api/inspect", json=body).json()
    assert answer["vocabulary"] == len(lm.tokenizer)
    for one in answer["positions"]:
        assert [candidate["kept"] for candidate in one["candidates"]] == [True] * 3 + [False] * 7
        assert sum(candidate["chance"] for candidate in one["candidates"]) == pytest.approx(1)


def test_the_tree_is_the_models(client, lm):
    answer = client.post("/api/beam", json=asked("beam", method_settings={"num_beams": 3})).json()
    tree = lm.beam_tree(PROMPT, samplers.Beam(num_beams=3), GenerationSettings(max_new_tokens=NEW))
    assert [node["token"] for node in answer["nodes"]] == [node.token for node in tree.nodes]
    assert answer["generations"][0]["text"] == tree.generations[0].text


def test_the_offer_is_what_the_code_holds(client, lm):
    offer = client.get("/api/models").json()
    assert [one["name"] for one in offer["models"]] == ["bytes"]
    assert offer["models"][0]["end_ids"] == list(lm.end_ids)
    assert [one["name"] for one in offer["methods"]] == list(METHODS)
    for one in offer["methods"]:
        kind = METHODS[one["name"]]
        assert [setting["name"] for setting in one["settings"]] == list(methods.settings_of(kind))
        assert kind(**{setting["name"]: setting["default"] for setting in one["settings"]}) == kind()
    assert [one["name"] for one in offer["settings"]] == list(SETTINGS)
    assert all(one["help"] for one in offer["settings"])


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        (asked(method_settings={"p": 2}), "p", "outside (0, 1]"),
        (asked(method_settings={"p": "x"}), "p", "give a number"),
        (asked(method_settings={"p": [0.5]}), "p", "give a number"),
        (asked(method_settings={"k": 3}), "k", "k is not a setting of"),
        (asked("top_k", method_settings={"k": "1:/nowhere/x.py:X"}), "k", "whole number from 1"),
        (asked("top_k", method_settings={"k": 10**400}), "k", "whole number from 1"),
        (asked("top_k", method_settings={"k=1:/nowhere/x.py:X": 1}), "k", "is not a setting of"),
        (asked("beam", method_settings={"num_beams": 3_000_000_000}), "num_beams", "no wider than"),
        (asked("beam", method_settings={"num_beams": "3"}), "num_beams", "whole number from 1"),
        (asked("top_k", method_settings={"k": 0}), "k", "whole number from 1"),
        (asked("random", method_settings={"top_k": 0}), "top_k", "whole number from 1"),
        (asked(repetition_penalty=0), "repetition_penalty", "at least"),
        (asked(max_new_tokens=0), "max_new_tokens", "at least 1"),
        (asked("beam", stop=["x"]), "stop", "no strings"),
        (asked("nucleus"), None, "method nucleus is not known"),
        (asked("own.py:Mine"), None, "is not known"),
        (asked(processors=[]), None, "no setting of the page"),
        (asked(branch=[-1]), None, "no token -1"),
        (asked(branch=["a"]), None, "list of token ids"),
        ({"model": "bytes", "prompt": 3}, None, "prompt: must be a text"),
    ],
)
def test_mistakes_are_told_with_their_setting(client, changes, field, message):
    response = client.post("/api/sample", json=changes)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["field"] == field
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/api/beam", "/api/inspect"])
@pytest.mark.parametrize(
    "changes",
    [{"method_settings": {"num_beams": 4000}}, {"max_new_tokens": 10**6}],
    ids=["width", "length"],
)
def test_what_looks_into_a_text_has_the_limits_of_sampling(client, path, changes):
    response = client.post(path, json=asked("beam", **changes) | {"tokens": [5]})
    assert response.status_code == 400
    assert "this server" in response.json()["error"]["message"]


def test_no_more_tokens_are_looked_into_than_are_sampled(client):
    response = client.post("/api/inspect", json=asked() | {"tokens": [5] * 2000})
    assert response.status_code == 400
    assert "this server generates" in response.json()["error"]["message"]


def test_names_that_cannot_be_encoded(client):
    body = b'{"model": "bytes", "prompt": "a", "settings": {"\\ud800": 1}}'
    response = client.post("/api/sample", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert "ud800" in response.json()["error"]["message"]


def test_other_models_are_not_found_and_bodies_are_objects(client):
    assert client.post("/api/sample", json={"model": "other"}).status_code == 404
    assert client.post("/api/sample", json=[]).status_code == 400
    assert client.post("/api/beam", json=asked("greedy")).json()["error"]["message"].startswith("greedy has no hypoth")


def test_files_are_served_with_a_policy_and_hold_no_inline_code(client):
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert '<script type="module" src=' in page.text
    for forbidden in ("<style", "style=", " on", "//", "javascript:"):
        assert forbidden not in page.text.replace("<!doctype html>", "").replace("Once upon", ""), forbidden
    assert client.get("/static/app.js").headers["content-type"].startswith("text/javascript")
    assert client.get("/static/../page.py").status_code == 404
    colours = client.get("/static/palette.css").text
    assert all(f"--{name}: {colour};" in colours for name, pair in style.PALETTE.items() for colour in pair)


def test_the_api_needs_the_key_and_the_files_do_not(lm):
    app = create_app(Runs([Engine(lm, "bytes", sizes=(1,))]), api_key="secret")
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.get("/").status_code == client.get("/static/app.js").status_code == 200
        assert client.get("/api/models").status_code == client.post("/api/report", json={}).status_code == 401
        assert client.get("/api/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/reports/guess").status_code == 404
