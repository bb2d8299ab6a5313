"""The page for playing with sampling: its files, and the requests that it makes.

The page streams the text of several methods beside each other, and asks for what each method chose from when a token is
pointed at. Nothing of it comes from elsewhere, and it has no inline script or style.
"""

import asyncio
import dataclasses
import json
import mimetypes
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from minigpt_jax.errors import UserError, printable
from minigpt_jax.generate import LanguageModel
from minigpt_jax.generate.split_text import TextSplitter
from minigpt_jax.report import page as report_page
from minigpt_jax.report import run_page, style
from minigpt_jax.report import runs as report_runs
from minigpt_jax.report.page import Links
from minigpt_jax.serve import page_requests
from minigpt_jax.serve.engine import Engine, EngineError
from minigpt_jax.serve.page_requests import Asked, plain
from minigpt_jax.serve.runs import Runs
from minigpt_jax.serve.security import read_json
from minigpt_jax.serve.streaming import GrowingResponse
from minigpt_jax.serve.ticket import Ticket

STATIC = Path(__file__).parent / "static"
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
"""The content security policy of a run's report, whose plots and tables carry their own style. It runs no script."""
_REPORTS = 8
"""Reports that are kept for the frames that show them."""


def routes(runs: Runs) -> list[BaseRoute]:
    """The routes of the page for these models."""
    mimetypes.add_type("text/javascript", ".js")  # some systems call it plain text, which browsers refuse to run
    reports: dict[str, str] = {}
    # Once, as this parses code, at which threads of Python 3.11 disturb each other.
    offered_methods, offered_settings = page_requests.offered_methods(), page_requests.offered_settings()

    async def index(_: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def palette(_: Request) -> Response:
        return Response(palette_css(), media_type="text/css")

    async def models(_: Request) -> Response:
        return JSONResponse(
            {
                "models": [_model(engine) for engine in runs.engines.values()],
                "methods": offered_methods,
                "settings": offered_settings,
            }
        )

    async def sample(engine: Engine, lm: LanguageModel, body: dict[str, Any]) -> Response:
        asked = page_requests.parse(body, engine, lm)
        streamed = asked.sampler.streams
        ticket = engine.submit([asked.prompt], asked.sampler, asked.settings, streamed=streamed, full=False)
        return GrowingResponse(_lines(lm, ticket, asked), ticket.cancel, "application/x-ndjson")

    async def inspect(engine: Engine, lm: LanguageModel, body: dict[str, Any]) -> Response:
        asked, tokens = page_requests.parse(body, engine, lm), page_requests.token_ids(body, "tokens")
        if tokens:
            engine.check(1, asked.sampler, asked.settings.replace(max_new_tokens=len(tokens)))
        found = await engine.beside(lm.inspect, asked.prompt, tokens, asked.sampler, asked.settings)
        return JSONResponse({"positions": plain(found), "vocabulary": len(lm.tokenizer), "step": lm.step})

    async def beam(engine: Engine, lm: LanguageModel, body: dict[str, Any]) -> Response:
        asked = page_requests.parse(body, engine, lm)
        tree = await engine.beside(lm.beam_tree, asked.prompt, asked.sampler, asked.settings)
        return JSONResponse(plain(tree))

    async def make_report(engine: Engine, lm: LanguageModel, body: dict[str, Any]) -> Response:
        # A frame cannot send the server's key, so the report gets an address that nobody can guess.
        name = secrets.token_urlsafe(16)
        reports[name] = await asyncio.to_thread(_report, engine)
        for old in list(reports)[:-_REPORTS]:
            del reports[old]
        return JSONResponse({"address": f"/reports/{name}"})

    async def report(request: Request) -> Response:
        html = reports.get(request.path_params["name"])
        if html is None:
            return HTMLResponse("<p>This report is no longer kept; open the page again.</p>", status_code=404)
        return HTMLResponse(html, headers={"Content-Security-Policy": REPORT_POLICY})

    def answer(endpoint: Callable[[Engine, LanguageModel, dict[str, Any]], Awaitable[Response]]) -> Any:
        """The endpoint for the model that a body names. Mistakes are told with the setting that they are about."""

        async def answered(request: Request) -> Response:
            body = await read_json(request)
            try:
                if not isinstance(body, dict):
                    raise UserError("the body must be a JSON object")
                engine = runs.engine(body.get("model"))
                return await endpoint(engine, engine.lm, body)  # a newer checkpoint may come while it answers
            except UserError as error:
                return JSONResponse({"error": _error(error)}, status_code=400)

        return answered

    return [
        Route("/", index),
        Route("/static/palette.css", palette),
        Mount("/static", _Files(directory=STATIC)),
        Route("/api/models", models),
        Route("/api/sample", answer(sample), methods=["POST"]),
        Route("/api/inspect", answer(inspect), methods=["POST"]),
        Route("/api/beam", answer(beam), methods=["POST"]),
        Route("/api/report", answer(make_report), methods=["POST"]),
        Route("/reports/{name}", report),
    ]


class _Files(StaticFiles):
    """Files that browsers ask for anew each time, so that those of different versions are never mixed."""

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        response = super().file_response(*arguments, **named)
        response.headers["Cache-Control"] = "no-cache"
        return response


def palette_css() -> str:
    """The colours of reports as CSS variables, for the light and the dark theme."""

    def variables(theme: int) -> str:
        return " ".join(f"--{name}: {colours[theme]};" for name, colours in style.PALETTE.items())

    return f":root {{ {variables(0)} }}\n@media (prefers-color-scheme: dark) {{\n  :root {{ {variables(1)} }}\n}}\n"


async def _lines(lm: LanguageModel, ticket: Ticket, asked: Asked) -> AsyncIterator[tuple[str, bool]]:
    """The growing text, a JSON object a line: what has changed from token number `from` on; and whether it is the last.

    The tokens begin with those of the branch. The last line has `finish_reason`, or `error`.
    """
    count = len(asked.prompt) - len(asked.branch)
    splitter = TextSplitter(lm.tokenizer.decode, asked.prompt[:count])
    head, pieces = splitter.split(asked.branch)
    first = {"prompt_text": head, "prompt_ids": asked.prompt[:count], "step": lm.step}
    try:
        yield _line({**first, "from": 0, "tokens": asked.branch, "pieces": pieces}), False
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
            yield _line(line), update.done
    except (UserError, EngineError) as error:  # it has been found out only now
        yield _line({"error": _error(error)}), True


def _model(engine: Engine) -> dict[str, Any]:
    lm = engine.lm
    return {
        "name": engine.name,
        "step": lm.step,
        "path": None if lm.path is None else str(lm.path),
        "vocabulary": len(lm.tokenizer),
        "window": lm.model.sequence_length,
        "end_ids": list(lm.end_ids),
    }


def _report(engine: Engine) -> str:
    """The page that `minigpt report` makes of the run, without the links to files, which are not served."""
    folder = engine.lm.path
    if folder is None:
        raise UserError(f"{engine.name} was not loaded from a run directory, so there are no curves")
    built = run_page.build([report_runs.read(folder)], folder)
    shown = [one for one in built.sections if not any(isinstance(block, Links) for block in one.blocks)]
    return report_page.html(dataclasses.replace(built, sections=shown))


def _error(error: Exception) -> dict[str, Any]:
    return {"message": printable(str(error)), "field": page_requests.field_of(str(error))}


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
