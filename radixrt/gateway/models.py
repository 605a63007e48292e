"""``/v1/models``."""

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

    return routes
