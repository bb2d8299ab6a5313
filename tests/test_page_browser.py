"""The page in a browser: typing, sampling, looking at a token, branching, sharing and reloading."""

import contextlib
import json
import shlex
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the page needs the extra serve")

import fake_sweep
from browser import chromium
from page_server import byte_model, serving

import minigpt_jax
from minigpt_jax import samplers
from minigpt_jax.generate import GenerationSettings, LanguageModel

WILD = "<img src=x onerror=alert(1)> & <b>"
NEW = 10
COLUMNS = ("greedy", "top_k", "top_p", "typical")


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("runs") / "bytes"
    fake_sweep.write_run(folder, final=4.0)
    return byte_model(folder)


@pytest.fixture(scope="module")
def address(lm: LanguageModel) -> Iterator[str]:
    with serving(lm) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(params=[{}])
def page(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    """A page that loads nothing from elsewhere and reports no error, such as a breach of its policy."""
    context = browser.new_context(**request.param)
    context.set_default_timeout(120_000)
    page = context.new_page()
    troubles, asked = [], []
    page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append(dialog.message))
    page.on("request", lambda one: asked.append(one.url))
    page.goto(address)
    page.wait_for_selector("article")
    page.locator("#more > summary").click()
    page.fill("[name=max_new_tokens]", str(NEW))
    yield page
    assert all(url.startswith(address) for url in asked)
    assert [one for one in troubles if "status of 400" not in one] == []
    context.close()


def finished(page: Any, rounds: int) -> None:
    """Waits until the page has sampled so many times since it was loaded."""
    page.wait_for_selector(f"#columns[data-rounds='{rounds}']", state="attached", timeout=120_000)


@contextlib.contextmanager
def sampling(page: Any) -> Iterator[None]:
    """Waits at the end for the texts that are asked for within."""
    rounds = int(page.locator("#columns").get_attribute("data-rounds") or 0)
    yield
    finished(page, rounds + 1)


def sample(page: Any, prompt: str = "once ") -> None:
    page.fill("#prompt", prompt)
    with sampling(page):
        page.press("#prompt", "Control+Enter")


def texts(page: Any) -> list[str]:
    return [visible(text) for text in page.locator(".text").all_text_contents()]


def visible(text: str) -> str:
    """Without the sign that stands for tokens without a text, and as a browser keeps what it cannot show."""
    return text.replace("∅", "")


def expected(lm: LanguageModel, prompt: Any, method: str, seed: int = 0, new: int = NEW) -> str:
    settings = GenerationSettings(max_new_tokens=new, seed=seed, stop=lm.end_ids)
    [generation] = lm.generate([prompt], method, settings=settings)
    return visible(lm.tokenizer.decode([*lm.ids([prompt])[0], *generation.tokens]))


def token(page: Any, column: int, at: int) -> Any:
    return page.locator("article").nth(column).locator(f".token[data-at='{at}']")


def test_type_sample_and_again(page: Any, lm: LanguageModel):
    sample(page)
    assert texts(page) == [expected(lm, "once ", method) for method in COLUMNS]
    with sampling(page):
        page.click("#again")
    assert page.input_value("#seed") == "1"
    assert texts(page) == [expected(lm, "once ", method, seed=1) for method in COLUMNS]
    page.select_option("article:nth-child(2) select", "min_p")
    page.locator("article").nth(1).get_by_label("p", exact=True).fill("0.3")
    with sampling(page):
        page.click("#go")
    assert texts(page)[1] == expected(lm, "once ", "min_p:p=0.3", seed=1)


def test_what_is_typed_is_never_markup(page: Any, lm: LanguageModel, address: str):
    sample(page, WILD)
    assert texts(page)[0] == expected(lm, WILD, "greedy")
    assert page.locator("img, b:not(#panel b)").count() == 0
    page.evaluate("link => { location.hash = link }", "bm90IGEgc3RhdGU")  # not a state
    page.reload()
    page.wait_for_selector("article")
    state = {
        "prompt": 3,
        "seed": "x",
        "columns": [{"method": "<b>"}, {"method": "greedy", "trail": [{"ids": ["<b>"]}]}],
    }
    page.evaluate("state => { location.hash = btoa(JSON.stringify(state)) }", state)
    page.reload()
    page.wait_for_selector("article")
    assert page.locator("article").count() == 1
    assert page.input_value("#prompt") == ""


def test_hover_shows_what_was_kept_and_cut(page: Any, lm: LanguageModel):
    page.locator("article").nth(1).get_by_label("k", exact=True).fill("4")
    sample(page)
    token(page, 1, 3).hover()
    page.wait_for_selector("#panel .alternative")
    settings = GenerationSettings(max_new_tokens=NEW, stop=lm.end_ids)
    [generation] = lm.generate(["once "], "top_k:k=4", settings=settings)
    position = lm.inspect("once ", generation.tokens, "top_k:k=4", settings)[3]
    rows = page.locator("#panel .alternative")
    assert page.locator("#panel .cut").count() == 6
    assert rows.locator(".verdict").all_text_contents()[4:10] == ["cut"] * 6
    chances = [100 * (candidate.chance or 0) for candidate in position.candidates[:4]]
    shown = [float(text.strip("<%")) for text in rows.locator(".verdict").all_text_contents()[:4]]
    assert shown == pytest.approx(chances, abs=0.06)
    assert page.locator("#panel .here").count() == 1
    assert "kept 4 tokens of 259" in page.locator("#panel").inner_text()
    page.mouse.move(1, 1)
    page.wait_for_selector("#panel", state="hidden")


def test_branch_undo_share_and_reload(page: Any, lm: LanguageModel, browser: Any):
    sample(page)
    before = texts(page)
    generation = lm.generate(["once "], "top_p", settings=GenerationSettings(max_new_tokens=NEW, stop=lm.end_ids))[0]
    found = lm.inspect("once ", generation.tokens, "top_p")[4]
    other = next(one for one in found.candidates if one.id != found.given.id)
    token(page, 2, 4).click()
    page.wait_for_selector("#panel .here:focus")
    with sampling(page):
        page.locator("#panel .alternative:not(.here)").first.click()
    assert page.locator(".trail button").count() == 1
    ids = [*lm.tokenizer.encode_batch(["once "])[0], *generation.tokens[:4], other.id]
    branched = expected(lm, ids, "top_p")
    assert texts(page) == [*before[:2], branched, before[3]]
    assert page.locator("article").nth(2).locator(".token.turn").count() == 1

    page.reload()  # the link holds the prompt, the settings and the branch
    finished(page, 1)
    assert texts(page) == [*before[:2], branched, before[3]]
    fresh = browser.new_context().new_page()
    fresh.goto(page.url)
    finished(fresh, 1)
    assert texts(fresh) == texts(page)
    fresh.context.close()

    token(page, 2, 1).hover()  # a token before the turn
    page.wait_for_selector("#panel .here")
    assert page.locator("#panel .here .verdict").inner_text() != "cut"
    with sampling(page):
        page.locator(".trail button").click()
    assert page.locator(".trail button").count() == 0
    assert texts(page) == before


def test_the_keyboard_suffices(page: Any, lm: LanguageModel):
    page.focus("#prompt")
    page.keyboard.type("once ")
    with sampling(page):
        page.keyboard.press("Control+Enter")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.locator("article:nth-child(1) .token:focus").count():
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#panel .alternative")
    assert page.evaluate("document.activeElement.dataset.at") == "2"
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel .here:focus")
    page.keyboard.press("Escape")
    page.wait_for_selector("#panel", state="hidden")
    assert page.evaluate("document.activeElement.dataset.at") == "2"
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel .here:focus")
    page.keyboard.press("ArrowDown")
    with sampling(page):
        page.keyboard.press("Enter")
    assert texts(page)[0] != expected(lm, "once ", "greedy")


def test_errors_stand_at_their_field(page: Any):
    page.locator("article").nth(2).get_by_label("p", exact=True).fill("2")
    sample(page)
    assert "outside (0, 1]" in page.locator("article").nth(2).locator(".field .error:visible").inner_text()
    assert page.locator(".error:visible").count() == 1
    page.fill("[name=repetition_penalty]", "0")
    with sampling(page):
        page.click("#go")
    assert "--repetition-penalty 0" in page.locator("#shared .error:visible").inner_text()


def test_beam_search_is_drawn_as_a_tree(page: Any, lm: LanguageModel):
    page.select_option("article:nth-child(1) select", "beam")
    page.locator("article").nth(0).get_by_label("num beams").fill("3")
    sample(page)
    page.get_by_role("button", name="Hypotheses").click()
    page.wait_for_selector("#tree .node")
    tree = lm.beam_tree("once ", samplers.Beam(3), GenerationSettings(max_new_tokens=NEW, stop=lm.end_ids))
    assert page.locator("#tree .node").count() == len(tree.nodes)
    assert page.locator("#tree .node.survives").count() == sum(node.survives for node in tree.nodes)
    assert page.locator("#tree .node.best").count() == 1
    assert page.locator("#tree path").count() == sum(node.parent >= 0 for node in tree.nodes)
    page.locator("#tree .node").first.focus()
    page.keyboard.press("ArrowRight")
    assert "Step 2" in page.locator("#tree [role=status]").inner_text()
    token(page, 0, 2).hover()
    page.wait_for_selector("#panel .here")
    assert page.locator("#panel .here .verdict").inner_text() == "kept"
    page.mouse.move(1, 1)
    page.locator("#tree > button").click()
    page.wait_for_selector("#tree", state="hidden")


def copied(page: Any, column: int, name: str) -> str:
    page.locator("article").nth(column).get_by_role("button", name=name).click()
    text = page.locator("#copy textarea").input_value()
    page.locator("#copy").get_by_role("button", name="Close").click()
    return text


def test_what_is_copied_does_what_the_column_did(
    page: Any, lm: LanguageModel, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    prompt = 'it\'s "$HOME" '
    page.fill("[name=repetition_penalty]", "1.2")
    page.fill("[name=stop]", "zzz\n'q'")
    page.locator("article").nth(2).get_by_label("p", exact=True).fill("0.8")
    sample(page, prompt)
    text = texts(page)[2]

    monkeypatch.setattr(minigpt_jax, "load", lambda path: lm, raising=False)
    exec(copied(page, 2, "Python"), {})
    assert visible(capsys.readouterr().out).rstrip("\n") == text

    body = json.loads(copied(page, 2, "JSON"))
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        assert visible(prompt + json.load(response)["choices"][0]["text"]) == text

    words = shlex.split(copied(page, 2, "Command"))
    assert words == [
        *("./launch.sh", "sample", str(lm.path), f"--prompt={prompt}", "--sampler", "top_p:p=0.8"),
        *("--max-new-tokens", str(NEW), "--repetition-penalty", "1.2", "--stop=zzz", "--stop='q'", "--stop-at-end"),
        *("--seed", "0"),
    ]


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}], indirect=True
)
def test_a_phones_width(page: Any):
    sample(page)
    token(page, 0, 5).tap()
    page.wait_for_selector("#panel .here")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    sheet, chosen = page.locator("#panel").bounding_box(), token(page, 0, 5).bounding_box()
    assert (sheet["x"], sheet["width"]) == (0, 390)
    assert chosen["y"] + chosen["height"] <= sheet["y"], "the token stays in sight"
    page.locator("#panel .close").tap()
    page.wait_for_selector("#panel", state="hidden")


def test_curves_and_samples_are_a_tab(page: Any):
    page.click("#tab-report")
    page.wait_for_selector("#view-report iframe")
    frame = page.frame_locator("#view-report iframe")
    frame.locator("h1").wait_for()
    assert "Run bytes" in frame.locator("h1").inner_text()
    assert frame.locator("figure svg").count() > 0
    page.reload()
    page.wait_for_selector("#view-report iframe")
    assert page.get_attribute("#tab-report", "aria-selected") == "true"


def test_columns_come_and_go(page: Any):
    assert page.locator("#add").is_hidden(), "four is the most"
    page.locator("article").nth(1).get_by_role("button", name="Remove this column").click()
    assert page.locator("article select").evaluate_all("all => all.map((one) => one.value)") == [
        "greedy",
        "top_p",
        "typical",
    ]
    page.click("#add")
    assert page.locator("article").count() == 4
