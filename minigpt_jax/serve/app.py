"""The application: all routes, behind the guard."""

import contextlib
from collections.abc import AsyncIterator, Collection

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from minigpt_jax.errors import UserError
from minigpt_jax.serve import openai_api, page
from minigpt_jax.serve.engine import EngineError, QueueFullError
from minigpt_jax.serve.priority import give_way
from minigpt_jax.serve.runs import ModelNotFoundError, Runs
from minigpt_jax.serve.security import LOOPBACK, Guard, RefusedError


def create_app(runs: Runs, *, hosts: Collection[str] | None = LOOPBACK, api_key: str | None = None) -> Starlette:
    """The server's application. It closes `runs` when it shuts down.

    Args:
        hosts: the names by which requests may address the server; None for any.
        api_key: the key that requests to the APIs have to send; None for none.
    """

    async def health(request: Request) -> Response:
        compiling = any(engine.compiling() for engine in runs.engines.values())
        return JSONResponse({"status": "ok", "compiling": compiling})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        give_way()
        yield
        await anyio.to_thread.run_sync(runs.close)

    routes: list[BaseRoute] = [Route("/health", health), *openai_api.routes(runs), *page.routes(runs)]
    errors = (UserError, EngineError, QueueFullError, RefusedError, ModelNotFoundError, HTTPException, Exception)
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, hosts=hosts, api_key=api_key)],
        exception_handlers=dict.fromkeys(errors, openai_api.error_response),
        lifespan=lifespan,
    )
