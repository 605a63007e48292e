"""The page on which the live tree is seen, and its feed.

One document with everything in it: no other file is asked for, and its policy lets a browser run
and load nothing else. It holds nothing of requests; what it shows it asks ``/page/…`` for, which
is an admin's where keys are set.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from radixrt.gateway.errors import invalid
from radixrt.gateway.service import Service
from radixrt.protocol import Inspect

FOLDER = Path(__file__).parent / "page"

SCRIPTS = ("picture.js", "layout.js", "canvas.js", "panels.js", "main.js")
"""What the page's script is made of, in this order."""

MAX_NODES = 2000
"""Nodes of an answer at most, whatever is asked for."""

_NODE_ID = re.compile(r"-?[1-9][0-9]{0,14}", re.ASCII)


def router(service: Service) -> APIRouter:
    """Return the routes of the page: ``/``, ``/page/tree`` and ``/page/node/ID``.

    Where the settings say ``redact`` no text of a prompt leaves the runtime for them.
    """
    routes = APIRouter(include_in_schema=False)
    document, policy = build(service.settings.title)
    texts = not service.settings.redact
    ask = service.link.ask
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
    async def tree(request: Request) -> Response:
        since = _number(request, "since", 0, 1 << 62)
        max_nodes = _number(request, "max_nodes", 1000, MAX_NODES)
        return _json(await ask(lambda call: Inspect(call, since, max(max_nodes, 1), texts)))

    @routes.get("/page/node/{node_id}")
    async def node(node_id: str) -> Response:
        if not _NODE_ID.fullmatch(node_id):
            raise invalid("node_id", f"{node_id[:40]!r}: use the id of a node of /page/tree")
        return _json(await ask(lambda call: Inspect(call, texts=texts, node=int(node_id))))

    return routes


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise invalid(name, f"{text[:40]!r}: use a whole number from 0 to {most}")
    return int(text)


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
