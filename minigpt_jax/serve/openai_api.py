"""OpenAI's API: /v1/models and /v1/completions, with the bodies, events and errors that its clients know."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from minigpt_jax.errors import UserError, printable
from minigpt_jax.serve import openai_request
from minigpt_jax.serve.engine import Engine, QueueFullError
from minigpt_jax.serve.openai_answer import Answer, event
from minigpt_jax.serve.openai_request import FieldError
from minigpt_jax.serve.runs import ModelNotFoundError, Runs
from minigpt_jax.serve.security import RefusedError, read_json
from minigpt_jax.serve.streaming import GrowingResponse, until_client_leaves


def routes(runs: Runs) -> list[Route]:
    """The routes of OpenAI's API for these models."""

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(runs, engine) for engine in runs.engines.values()]})

    async def model(request: Request) -> Response:
        return JSONResponse(_model(runs, runs.engine(request.path_params["name"])))

    async def completions(request: Request) -> Response:
        body = await read_json(request)
        asked = openai_request.parse(body)
        engine = runs.engine(body.get("model"))
        answer = Answer(engine, asked)
        if asked.stream:
            return GrowingResponse(_events(answer), answer.cancel, "text/event-stream")
        async with until_client_leaves(request.receive, answer.cancel):
            return JSONResponse(await answer.body())

    return [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/completions", completions, methods=["POST"]),
    ]


async def error_response(request: Request, error: Exception) -> Response:
    """An error in OpenAI's form."""
    if isinstance(error, ModelNotFoundError):
        return _error(404, str(error), "invalid_request_error", "model", "model_not_found")
    if isinstance(error, QueueFullError):
        return _error(429, str(error), "rate_limit_error", code="queue_full", headers={"Retry-After": "1"})
    if isinstance(error, RefusedError):
        return _error(error.status, str(error), "invalid_request_error", code=error.code)
    if isinstance(error, HTTPException):  # no such path or method
        return _error(error.status_code, error.detail, "invalid_request_error", headers=error.headers)
    if isinstance(error, UserError):
        field = error.field if isinstance(error, FieldError) else openai_request.field_of(str(error))
        return _error(400, openai_request.as_fields(str(error)), "invalid_request_error", field)
    return _error(500, f"the server failed at this request: {error}", "server_error")


def _error(
    status: int,
    message: str,
    kind: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body = {"error": {"message": printable(message), "type": kind, "param": param and printable(param), "code": code}}
    return JSONResponse(body, status, headers)


def _model(runs: Runs, engine: Engine) -> dict[str, Any]:
    return {
        "id": engine.name,
        "object": "model",
        "created": runs.started,
        "owned_by": "minigpt_jax",
        "step": engine.step,
        "max_model_len": engine.lm.model.sequence_length,
    }


async def _events(answer: Answer) -> AsyncIterator[tuple[str, bool]]:
    """The events of a streamed answer, and whether they are the last."""
    try:
        async for bodies, last in answer.events():
            yield "".join(map(event, bodies)) + _END * last, last
    except Exception as error:  # too late for another status, or nearly so
        failed = await error_response(Request({"type": "http"}), error)
        yield event(json.loads(bytes(failed.body))) + _END, True


_END = "data: [DONE]\n\n"
