"""The page on which the live tree is seen, and its feed.

One document with everything in it: no other file is asked for, and its policy lets a browser run
and load nothing else. It holds nothing of requests; what it shows it asks ``/page/…`` for, which
is an admin's where keys are set.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter, Query
from starlette.responses import HTMLResponse, Response

from radixrt.protocol import Inspect

FOLDER = Path(__file__).parent / "page"

SCRIPTS = ("picture.js", "layout.js", "canvas.js", "panels.js", "main.js")
"""What the page's script is made of, in this order."""

MAX_NODES = 2000
"""Nodes of an answer at most, whatever is asked for."""

Ask = Callable[[Callable[[int], Inspect]], Awaitable[dict[str, Any]]]
"""Sends the question that it is given for a call id; returns the data of the answer."""


def router(ask: Ask, *, title: str = "radixrt", redact: bool = False) -> APIRouter:
    """Return the routes of the page: ``/``, ``/page/tree`` and ``/page/node/ID``.

    With ``redact`` no text of a prompt leaves the runtime for them.
    """
    routes = APIRouter(include_in_schema=False)
    document, policy = build(title)
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }

    @routes.get("/")
    async def page() -> Response:
        return HTMLResponse(document, headers=headers)

    @routes.get("/page/tree")
    async def tree(
        since: int = Query(0, ge=0),
        max_nodes: int = Query(1000, ge=1, le=MAX_NODES),
    ) -> Response:
        return _json(await ask(lambda call: Inspect(call, since, max_nodes, texts=not redact)))

    @routes.get("/page/node/{node_id}")
    async def node(node_id: int) -> Response:
        return _json(await ask(lambda call: Inspect(call, texts=not redact, node=node_id)))

    return routes


def build(title: str) -> tuple[str, str]:
    """Return the document and the policy that lets a browser run what is in it and nothing else."""
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    script = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    text = (FOLDER / "index.html").read_text(encoding="utf-8")
    for name, content in (("title", html.escape(title)), ("style", style), ("script", script)):
        text = text.replace("{{" + name + "}}", content)
    policy = (
        f"default-src 'none'; style-src {_hash_of(style)}; script-src {_hash_of(script)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, policy


def _hash_of(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _json(data: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    return Response(orjson.dumps(data), media_type="application/json", headers=headers)
