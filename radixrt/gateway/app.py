"""The application: routes, errors and what stands before them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from radixrt.gateway import chat, completions, models, page, responses, status, tokens
from radixrt.gateway.answers import error_response
from radixrt.gateway.body import Bodies
from radixrt.gateway.errors import ApiError
from radixrt.gateway.gate import Gate
from radixrt.gateway.link import RuntimeLink
from radixrt.gateway.reasoning import ReasoningPrompts
from radixrt.gateway.service import Service
from radixrt.gateway.settings import GatewaySettings
from radixrt.settings import did_you_mean

log = logging.getLogger(__name__)

_ELSEWHERE = {
    "/generate": "POST /v1/completions",
    "/docs": "GET /openapi.json, or the page at /",
    "/v1": "POST /v1/chat/completions",
}
"""Routes of other servers → what to use of ours."""

ROUTERS = [
    chat.router,
    completions.router,
    responses.router,
    tokens.router,
    models.router,
    status.router,
    page.router,
]
"""What makes the routes, each from the ``Service`` that they share."""


def build_app(settings: GatewaySettings, link: RuntimeLink) -> ASGIApp:
    """Return the application, whose start opens the link to the runtime and whose end closes it."""
    answers: Counter[tuple[str, int]] = Counter()
    service = Service(
        settings, link, Bodies(settings.max_body_bytes), ReasoningPrompts(link), answers
    )

    @asynccontextmanager
    async def connected(_: FastAPI) -> AsyncIterator[None]:
        link.start()
        try:
            yield
        finally:
            await link.close()

    app = FastAPI(
        title=settings.title,
        description="An OpenAI-compatible server over a runtime that shares prefixes.",
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=connected,
    )
    for make in ROUTERS:
        app.include_router(make(service))
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_fault)
    around: ASGIApp = Gate(app, settings, answers)
    if settings.cors_origins:
        around = CORSMiddleware(
            around,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return around


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        hint = _nearest(path, request.method, request.app)
        text = f"there is no route {request.method} {path}{hint}; GET /openapi.json has them all"
        known = ApiError(404, text, code="not_found")
    elif error.status_code == 405:
        allowed = ", ".join(map(str.upper, request.app.openapi()["paths"].get(path, ())))
        text = f"{path} does not take {request.method}; use {allowed or 'another method'}"
        known = ApiError(405, text, code="method_not_allowed", headers={"allow": allowed})
    else:
        known = ApiError(error.status_code, str(error.detail))
    return error_response(known)


def _nearest(path: str, method: str, app: FastAPI) -> str:
    """Return "; did you mean …?" for a route that a path without one could mean, or nothing."""
    if path in _ELSEWHERE:
        return f"; use {_ELSEWHERE[path]}"
    routes = app.openapi()["paths"]
    paths = [path for path, methods in routes.items() if method.lower() in methods]
    return did_you_mean(f"/v1{path}" if f"/v1{path}" in paths else path, paths)


async def _on_invalid(request: Request, error: Exception) -> Response:
    return error_response(ApiError(400, f"the request is not valid: {error}"))


async def _on_fault(request: Request, error: Exception) -> Response:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return error_response(ApiError(500, "internal error; the server's log has it"))
