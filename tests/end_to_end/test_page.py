"""The page: what it is made of, what its feed tells, and how it behaves in a browser."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import CHROMIUM, Browser, browsing

import radixrt as rt
from radixrt.gateway.page import build
from radixrt.gateway.settings import ApiKey, GatewaySettings

ROOT = Path(__file__).parent.parent.parent
ADMIN = ApiKey(name="admin", key="admin-key-of-the-test", admin=True)
PLAIN = ApiKey(name="plain", key="plain-key-of-the-test")


@contextlib.contextmanager
def gateway(settings: GatewaySettings) -> Iterator[str]:
    """Another gateway in front of the same runtime; its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "radixrt.gateway"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(asdict(settings)).encode() + b"\n")
        process.stdin.flush()
        url = json.loads(process.stdout.readline())["url"]
        deadline = time.monotonic() + 30
        while httpx.get(f"{url}/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield url
    finally:
        process.stdin.close()
        process.stdout.close()
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def guarded(served: tuple[str, str]) -> Iterator[str]:
    """A gateway with keys that shows no texts."""
    with gateway(GatewaySettings(endpoint=served[0], keys=(ADMIN, PLAIN), redact=True)) as url:
        yield url


@rt.function
def ask(s: rt.ProgramState, text: str) -> None:
    s += text + rt.gen("answer", max_tokens=4, temperature=0)


def fresh() -> str:
    return f"Number {uuid.uuid4().hex} is the one of this test, and nobody else has it."


def bearer(key: ApiKey) -> dict[str, str]:
    return {"authorization": f"Bearer {key.key}"}


# ---------------------------------------------------------------- the document and its feed


def test_the_document_asks_for_nothing_else_and_its_policy_allows_nothing_else() -> None:
    document, policy = build("a <title>")
    assert "a &lt;title&gt;" in document
    assert not re.search(r"""(src|href)=["'](?!data:)""", document)
    assert "http" not in re.sub(r"http-equiv", "", document)
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", document, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not re.search(r"\son\w+=|\sstyle=", document)


def test_the_feed_tells_what_programs_cached(served: tuple[str, str], backend: rt.Backend) -> None:
    _, url = served
    before = httpx.get(f"{url}/page/tree").json()
    text = fresh()
    ask.run(text, backend=backend)
    answer = httpx.get(f"{url}/page/tree", params={"since": before["generation"]}).json()
    assert not answer["is_full"]
    paths = [httpx.get(f"{url}/page/node/{node['id']}").json() for node in answer["nodes"]]
    whole = ["".join(run["text"] for run in told["path"]) for told in paths]
    assert any(one.startswith(text) for one in whole)


@pytest.mark.parametrize("query", ["since=x", "since=-1", "max_nodes=100000000", "since=1e9"])
def test_a_question_that_cannot_be_is_refused(served: tuple[str, str], query: str) -> None:
    answer = httpx.get(f"{served[1]}/page/tree?{query}")
    assert answer.status_code == 400
    assert query.split("=")[0] in answer.json()["error"]["message"]


@pytest.mark.parametrize("node_id", ["x", "0", "9" * 30, "-", "1.5"])
def test_a_node_that_cannot_be_is_refused(served: tuple[str, str], node_id: str) -> None:
    assert httpx.get(f"{served[1]}/page/node/{node_id}").status_code == 400


def test_the_feed_is_an_admins_and_the_document_is_everybodys(guarded: str) -> None:
    assert httpx.get(guarded).status_code == 200
    for path in ("/page/tree", "/page/node/1"):
        assert httpx.get(guarded + path).status_code == 401
        assert httpx.get(guarded + path, headers=bearer(PLAIN)).status_code == 403
        assert httpx.get(guarded + path, headers=bearer(ADMIN)).status_code == 200


def test_no_text_leaves_a_server_that_redacts(guarded: str, backend: rt.Backend) -> None:
    text = fresh()
    ask.run(text, backend=backend)
    answer = httpx.get(f"{guarded}/page/tree", headers=bearer(ADMIN))
    nodes = answer.json()["nodes"]
    assert nodes
    told = answer.text
    for node in nodes:
        told += httpx.get(f"{guarded}/page/node/{node['id']}", headers=bearer(ADMIN)).text
    assert "one of this test" not in told
    assert text[7:20] not in told


# ---------------------------------------------------------------- in a browser

in_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium: apt-get install chromium (the page is not tested)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as browser:
        browser.size(1280, 800)
        yield browser


LIVE = "document.querySelector('#state').classList.contains('live')"


def node_with(browser: Browser, text: str) -> dict[str, Any]:
    """The drawn node whose text begins so, once it has stopped moving: its id and its middle."""
    find = f"""(() => {{
      const node = [...window.radixrt.picture.nodes.values()].find((n) => n.text?.startsWith({text!r}));
      if (!node?.rect || node.rect.w < 5 || node.rect.w !== node.target.w || node.rect.y !== node.target.y) return null;
      const box = document.querySelector('#canvas').getBoundingClientRect();
      return {{ id: node.id, x: box.x + node.rect.x + node.rect.w / 2, y: box.y + node.rect.y + node.rect.h / 2 }};
    }})()"""  # noqa: E501
    return dict(browser.until(find))


@in_browser
def test_a_program_appears_on_the_page_and_a_click_shows_its_text(
    served: tuple[str, str], backend: rt.Backend, browser: Browser
) -> None:
    browser.errors.clear()
    browser.open(served[1])
    browser.until(LIVE)
    text = fresh()
    ask.run(text, backend=backend)
    node = node_with(browser, text[:20])
    browser.click(node["x"], node["y"])
    browser.until(f"document.querySelector('#prefix').textContent.includes({text[:20]!r})")
    assert browser.evaluate("document.querySelector('#facts').textContent").startswith("tokens")
    assert browser.evaluate("document.querySelectorAll('#rows .split i').length") > 0
    drawn = browser.evaluate(
        "document.querySelector('#canvas').getContext('2d')"
        ".getImageData(0, 0, 400, 400).data.some((value) => value > 0)"
    )
    assert drawn
    browser.click(node["x"], node["y"], count=2)
    browser.until(f"window.radixrt.tree.zoom === {node['id']}")
    browser.evaluate("window.radixrt.zoomTo(null)")
    assert browser.errors == []


@in_browser
def test_what_is_dropped_leaves_the_page(
    served: tuple[str, str], backend: rt.Backend, browser: Browser
) -> None:
    browser.open(served[1])
    ask.run(fresh(), backend=backend)
    browser.until("window.radixrt.picture.nodes.size > 1")
    backend.flush_cache()
    browser.until("[...window.radixrt.picture.nodes.values()].every((n) => n.tokens === 0)")
    browser.until("!document.querySelector('#empty').hidden")


@in_browser
def test_the_page_asks_for_the_key_and_shows_no_text_where_texts_are_redacted(
    guarded: str, backend: rt.Backend, browser: Browser
) -> None:
    text = fresh()
    ask.run(text, backend=backend)
    browser.open(guarded)
    browser.until("document.querySelector('#login').open")
    for key, is_right in ((PLAIN.key, False), (ADMIN.key, True)):
        browser.evaluate(
            f"document.querySelector('#key').value = {key!r};"
            "document.querySelector('#login button').click()"
        )
        browser.until(LIVE if is_right else "document.querySelector('#login').open")
    browser.until("window.radixrt.tree.shown.length > 1")
    browser.evaluate("window.radixrt.select([...window.radixrt.picture.nodes.values()].at(-1).id)")
    browser.until("document.querySelector('#prefix').textContent.includes('not shown')")
    assert "one of this test" not in browser.evaluate("document.body.textContent")
    assert browser.evaluate(
        "[...window.radixrt.picture.nodes.values()].every((n) => n.text == null)"
    )


@in_browser
def test_a_lost_server_is_told_and_a_thousand_nodes_are_drawn(
    served: tuple[str, str], browser: Browser
) -> None:
    with gateway(GatewaySettings(endpoint=served[0])) as url:
        browser.open(url)
        browser.until(LIVE)
        answer = httpx.get(f"{url}/page/tree").json()
        root = {**TOLD, "id": 1, "namespace": ""}
        root["children"] = 6 + 70  # seventy are not told
        nodes = [root] + [
            {**TOLD, "id": i, "parent": i // 4 or 1, "tokens": 8 + i % 50, "text": f"run {i}"}
            for i in range(2, 1001)
        ]
        many = json.dumps({**answer, "is_full": True, "nodes": nodes, "gone": []})
        drawn = browser.evaluate(
            f"""(() => {{
            const {{ picture, tree }} = window.radixrt;
            picture.take({many}, performance.now());
            tree.isStale = true;
            tree.draw(performance.now());
            return tree.shown.length + tree.mores.reduce((sum, more) => sum + more.count, 0);
            }})()"""
        )
        assert drawn == 1000 + 70
    browser.until("!document.querySelector('#lost').hidden")
    assert "lost" in browser.evaluate("document.querySelector('#state').textContent")


TOLD = {
    "parent": 0, "tokens": 0, "tier": "device", "host": 0, "disk": 0, "uses": 1, "used": 1.0,
    "locked": False, "leases": 0, "ended": False, "kept_until": None, "children": 0,
}  # fmt: skip
