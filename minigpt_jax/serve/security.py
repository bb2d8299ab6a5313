"""What a request has to have before any route sees it, and the headers of every response.

A page of another site, open in a browser on the same machine, can send requests to a local server. What it sends names
its own site as Origin, or, after rebinding the name of its site to this machine, as Host. Both are refused.
"""

import hmac
import json
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 1 << 20
"""Bytes of a request's body."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEYED = ("/v1/", "/api/")
"""What needs the key, if there is one: paths that begin like this."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class RefusedError(Exception):
    """A request that is refused whatever it asks for."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Guard:
    """Lets only requests through that come from where they should, and adds the security headers to all responses.

    Args:
        hosts: the names by which the server may be addressed; None for any.
        api_key: what requests to the APIs have to send as a bearer token; None for nothing.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, api_key: str | None) -> None:
        self._app, self._hosts, self._key = app, hosts, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except RefusedError as error:
            body = {"message": str(error), "type": "invalid_request_error", "param": None, "code": error.code}
            await JSONResponse({"error": body}, error.status)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            raise RefusedError(
                403, f"this server is not {host or 'addressed by name'}; address it as {min(self._hosts)}", "host"
            )
        origin = headers.get("origin")
        if origin is not None and _site(origin) != host:
            raise RefusedError(403, f"requests from pages of {origin} are refused", "origin")
        if self._key is not None and path.startswith(KEYED):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(key.strip().encode(), self._key.encode())
            if scheme.lower() != "bearer" or not right:
                raise RefusedError(
                    401, "the API key is missing or wrong; send it as Authorization: Bearer KEY", "invalid_api_key"
                )


async def read_json(request: Request, most: int = MAX_BODY) -> Any:
    """The body of a request.

    Raises:
        RefusedError: it is too long, not JSON, or not declared to be. A page of another site can send a body without
            asking first only if it declares another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, "the body must be sent as Content-Type: application/json", "content_type")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise RefusedError(413, f"the body is longer than {most:,} bytes", "body_too_long")
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is not JSON: {error}", "invalid_json") from error


def _site(origin: str) -> str | None:
    """The name and port in an Origin header, or None if it is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
