"""The page for playing with sampling: its files, and the requests that it makes.

The page streams the text of several methods beside each other, and asks for what each method chose from when a token is
pointed at. Nothing of it comes from elsewhere, and it has no inline script or style.
"""

import asyncio
import dataclasses
import json
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from minigpt_jax.errors import UserError
from minigpt_jax.generate.split_text import TextSplitter
from minigpt_jax.report import page as report_page
from minigpt_jax.report import run_page, runs, style
from minigpt_jax.report.page import Links
from minigpt_jax.serve import page_requests
from minigpt_jax.serve.page_requests import Asked, plain

if TYPE_CHECKING:
    from minigpt_jax.serve.engine import Engine, Ticket

STATIC = Path(__file__).parent / "static"
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
"""The content security policy of a run's report, whose plots and tables carry their own style. It runs no script."""


def routes(engines: Mapping[str, "Engine"]) -> list[BaseRoute]:
    """The routes of the page.

    Args:
        engines: those of the served models, by the models' names.
    """
    mimetypes.add_type("text/javascript", ".js")  # some systems call it plain text, which browsers refuse to run
    looking = asyncio.Semaphore(1)  # what looks into a text computes beside the engines, one request at a time

    async def index(_: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def palette(_: Request) -> Response:
        return Response(palette_css(), media_type="text/css")

    async def models(_: Request) -> Response:
        return JSONResponse(
            {
                "models": [_model(name, engine) for name, engine in engines.items()],
                "methods": page_requests.offered_methods(),
                "settings": page_requests.offered_settings(),
            }
        )

    async def sample(request: Request) -> Response:
        engine, _, asked = await _parse(request, engines)
        ticket = engine.submit([asked.prompt], asked.sampler, asked.settings, streamed=asked.sampler.streams)
        return StreamingResponse(_lines(engine, ticket, asked), media_type="application/x-ndjson")

    async def inspect(request: Request) -> Response:
        engine, body, asked = await _parse(request, engines)
        tokens = page_requests.token_ids(body, "tokens")
        async with looking:
            found = await asyncio.to_thread(engine.lm.inspect, asked.prompt, tokens, asked.sampler, asked.settings)
        return JSONResponse({"positions": plain(found), "vocabulary": len(engine.lm.tokenizer)})

    async def beam(request: Request) -> Response:
        engine, _, asked = await _parse(request, engines)
        async with looking:
            tree = await asyncio.to_thread(engine.lm.beam_tree, asked.prompt, asked.sampler, asked.settings)
        return JSONResponse(plain(tree))

    async def report(request: Request) -> Response:
        engine = _engine(request.path_params["name"], engines)
        html = await asyncio.to_thread(_report, engine)
        return HTMLResponse(html, headers={"Content-Security-Policy": REPORT_POLICY})

    return [
        Route("/", index),
        Route("/static/palette.css", palette),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/api/models", models),
        Route("/api/sample", _told(sample), methods=["POST"]),
        Route("/api/inspect", _told(inspect), methods=["POST"]),
        Route("/api/beam", _told(beam), methods=["POST"]),
        Route("/runs/{name}/report", _told(report)),
    ]


def palette_css() -> str:
    """The colours of reports as CSS variables, for the light and the dark theme."""

    def variables(theme: int) -> str:
        return " ".join(f"--{name}: {colours[theme]};" for name, colours in style.PALETTE.items())

    return f":root {{ {variables(0)} }}\n@media (prefers-color-scheme: dark) {{\n  :root {{ {variables(1)} }}\n}}\n"


async def _lines(engine: "Engine", ticket: "Ticket", asked: Asked) -> AsyncIterator[str]:
    """The growing text, a JSON object a line: what has changed from token number `from` on.

    The tokens begin with those of the branch. The last line has `finish_reason`.
    """
    count = len(asked.prompt) - len(asked.branch)
    splitter = TextSplitter(engine.lm.tokenizer.decode, asked.prompt[:count])
    head, pieces = splitter.split(asked.branch)
    yield _line(
        {
            "prompt_text": head,
            "from": 0,
            "tokens": asked.branch,
            "pieces": pieces,
            "step": engine.step,
            "prompt_ids": asked.prompt[:count],
        }
    )
    try:
        async for update in ticket:
            best = update.generations[0]
            tokens = [*asked.branch, *best.tokens]
            before, (_, pieces) = pieces, splitter.split(tokens)
            same = next((i for i, (a, b) in enumerate(zip(before, pieces, strict=False)) if a != b), len(before))
            line = {"from": same, "tokens": tokens[same:], "pieces": pieces[same:]}
            line["logprobs"] = [None] * max(len(asked.branch) - same, 0)
            line["logprobs"] += plain(best.logprobs[max(same - len(asked.branch), 0) :])
            if update.done:
                line["finish_reason"] = best.finish_reason
            yield _line(line)
    except UserError as error:  # it has been found out only now
        yield _line({"error": _error(error)})
    finally:
        ticket.cancel()


def _model(name: str, engine: "Engine") -> dict[str, Any]:
    lm = engine.lm
    return {
        "name": name,
        "step": lm.step,
        "path": str(lm.path),
        "vocabulary": len(lm.tokenizer),
        "window": lm.model.sequence_length,
        "end_ids": list(lm.end_ids),
    }


def _report(engine: "Engine") -> str:
    """The page that `minigpt report` makes of the run, without the links to files, which are not served."""
    folder = engine.lm.path
    if folder is None:
        raise UserError(f"{engine.name} was not loaded from a run directory, so that it has no curves")
    built = run_page.build([runs.read(folder)], folder)
    shown = [one for one in built.sections if not any(isinstance(block, Links) for block in one.blocks)]
    return report_page.html(dataclasses.replace(built, sections=shown))


async def _parse(request: Request, engines: Mapping[str, "Engine"]) -> tuple["Engine", dict[str, Any], Asked]:
    try:
        body = await request.json()
    except ValueError as error:
        raise UserError("the request is no JSON") from error
    if not isinstance(body, dict):
        raise UserError("the request must be a JSON object")
    engine = _engine(body.get("model"), engines)
    return engine, body, page_requests.parse(body, engine.lm)


def _engine(name: Any, engines: Mapping[str, "Engine"]) -> "Engine":
    if not isinstance(name, str) or name not in engines:
        raise UserError(f"there is no model {name} here: models are {', '.join(engines)}")
    return engines[name]


def _told(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint, with mistakes of the user told as JSON, and the setting that they are about."""

    async def told(request: Request) -> Response:
        try:
            return await endpoint(request)
        except UserError as error:
            return JSONResponse({"error": _error(error)}, status_code=400)

    return told


def _error(error: UserError) -> dict[str, Any]:
    return {"message": str(error), "field": page_requests.field_of(str(error))}


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
