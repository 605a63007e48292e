"""``/v1/models``, and what routers ask of a worker."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from radixrt.gateway.answers import JsonResponse
from radixrt.gateway.openapi import described
from radixrt.gateway.service import Service, now


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["models"])
    created = now()

    def entry(name: str) -> dict[str, Any]:
        welcome = service.link.welcome
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "radixrt",
            "root": name if welcome is None else welcome.model.name,
            "parent": None,
            "max_model_len": None if welcome is None else welcome.limits.max_context,
        }

    @routes.get("/v1/models", **described(None, "The names of the model."))
    async def models() -> Response:
        return JsonResponse({"object": "list", "data": [entry(n) for n in service.model_names]})

    @routes.get("/v1/models/{name:path}", **described(None, "One name of the model."))
    async def model(name: str) -> Response:
        return JsonResponse(entry(service.model_of(name)))

    def info() -> dict[str, Any]:
        welcome = service.link.welcome
        return {
            "served_model_name": service.model_names[0],
            "is_generation": True,
            "max_total_tokens": None if welcome is None else welcome.limits.max_context,
        }

    # Without a path: who reads these must not look for the model's files.
    @routes.get("/server_info", **described(None, "What a router asks; SGLang's name."))
    @routes.get("/get_server_info", **described(None, "The same under its older name."))
    @routes.get("/model_info", **described(None, "What a router asks; SGLang's name."))
    @routes.get("/get_model_info", **described(None, "The same under its older name."))
    async def server_info() -> Response:
        return JsonResponse(info())

    return routes
