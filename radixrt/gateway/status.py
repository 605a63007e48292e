"""``/health``, ``/ready``, ``/metrics`` and what administrators may do."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from radixrt.gateway.answers import JsonResponse
from radixrt.gateway.errors import ApiError
from radixrt.gateway.metrics import exposition
from radixrt.gateway.openapi import described
from radixrt.gateway.service import Service
from radixrt.protocol import Flush, Stats


def own_page(answers: Counter[tuple[str, int]], *, is_ready: bool) -> bytes:
    """Return the part of the page of metrics that only this process knows."""
    ready = GaugeMetricFamily("radixrt_ready", "Whether generations are taken.", float(is_ready))
    family = CounterMetricFamily(
        "radixrt_http_responses",
        "HTTP answers; status 0: the client left.",
        labels=("key", "status"),
    )
    for (name, status), count in sorted(answers.items()):
        family.add_metric((name, str(status)), count)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(ready, family))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, *families: Metric) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["operations"])
    link = service.link

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health", **described(None, "Whether this process lives."))
    async def health() -> Response:
        return JsonResponse({"status": "ok"})

    @routes.head("/ready", include_in_schema=False)
    @routes.get("/ready", **described(None, "Whether generations are taken."))
    async def ready() -> Response:
        if link.is_ready and link.welcome is not None:
            return JsonResponse({"status": "ready", "model": service.model_names[0]})
        phase = "connecting" if link.phase == "ready" else link.phase
        body = {"status": phase, "detail": link.detail}
        return JsonResponse(body, 503, headers={"retry-after": "1"})

    @routes.get("/metrics", **described(None, "Counters for Prometheus."))
    async def metrics() -> Response:
        page = own_page(service.answers, is_ready=link.is_ready)
        with contextlib.suppress(ApiError):  # one that starts or is gone is told to be not ready
            page = exposition(await link.ask(Stats, timeout_s=5.0)) + page
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    @routes.post("/flush_cache", **described(None, "Drop what is cached; SGLang's name."))
    @routes.post("/admin/flush", **described(None, "Drop what is cached and not in use."))
    async def flush() -> Response:
        return JsonResponse(await link.ask(Flush, timeout_s=60.0))

    return routes
