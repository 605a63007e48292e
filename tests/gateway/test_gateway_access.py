"""Who may call, how often and from where: the promises of docs/security.md."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from gateway_process import Gateway, Nano, await_stats, error_of, gateway

from radixrt.errors import ConfigError
from radixrt.gateway.access import Client, KeyRing
from radixrt.gateway.errors import ApiError
from radixrt.gateway.httptools import MAX_HEADER_BYTES
from radixrt.gateway.settings import ApiKey, GatewaySettings

COMPLETIONS = "/v1/completions"

ALICE, BOB, ADMIN, SLOW = (f"{name}-{'k' * 20}" for name in ("alice", "bob", "admin", "slow"))
KEYS = (
    ApiKey(name="alice", key=ALICE, tenant="a"),
    ApiKey(name="bob", key=BOB, tenant="b"),
    ApiKey(name="admin", key=ADMIN, admin=True),
    ApiKey(name="slow", key=SLOW, tenant="s", requests_per_minute=2),
)


@pytest.fixture(scope="module")
def guarded(nano: Nano) -> Iterator[Gateway]:
    with gateway(nano.endpoint, keys=KEYS) as served:
        served.await_phase("ready")
        yield served


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), bearer(ALICE[:-1]), bearer(ALICE + "x"), {"authorization": ALICE},
     {"authorization": f"Basic {ALICE}"}, {"x-api-key": "wrong"}],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", ["/v1/models", COMPLETIONS, "/metrics", "/openapi.json", "/admin/flush", "/nowhere"]
)
def test_without_a_right_key_nothing_is_told(
    guarded: Gateway, headers: dict[str, str], path: str
) -> None:
    answer = guarded.http.get(path, headers=headers)
    assert answer.status_code == 401
    assert error_of(answer)["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_whether_it_lives_is_told_to_everybody(guarded: Gateway, path: str) -> None:
    assert guarded.http.get(path).status_code == 200


@pytest.mark.parametrize("headers", [bearer(ALICE), {"x-api-key": ALICE}])
def test_a_key_opens_the_api_and_not_the_admins_routes(
    guarded: Gateway, headers: dict[str, str]
) -> None:
    assert guarded.http.get("/v1/models", headers=headers).status_code == 200
    for path in ("/admin/flush", "/flush_cache"):
        answer = guarded.http.post(path, headers=headers)
        assert answer.status_code == 403
        assert error_of(answer)["code"] == "admin_key_required"
        assert guarded.http.post(path, headers=bearer(ADMIN)).status_code == 200
    # Nobody gets at them by spelling the path differently.
    for path in ("/admin//flush", "//admin/flush", "/Admin/flush", "/admin/%66lush/"):
        assert guarded.http.post(path, headers=headers).status_code in (403, 404)


def test_tenants_do_not_find_each_others_prefixes(guarded: Gateway) -> None:
    """Neither in the counts nor, as nothing is shared, in the time it takes."""
    prompt = "A secret that only one tenant has ever sent to this runtime, word for word. " * 2

    def cached(key: str, **fields: Any) -> int:
        body = {"prompt": prompt, "max_tokens": 1, **fields}
        answer = guarded.http.post(COMPLETIONS, json=body, headers=bearer(key))
        found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    assert cached(ALICE) == 0
    assert cached(ALICE) > 16
    assert cached(BOB) == 0
    assert cached(BOB, cache_salt="a") == 0  # a salt is within the tenant


def test_responses_are_kept_for_whom_they_were_made(guarded: Gateway) -> None:
    body = {"input": "Hi", "max_output_tokens": 1}
    made = guarded.http.post("/v1/responses", json=body, headers=bearer(ALICE)).json()["id"]
    path = f"/v1/responses/{made}"
    assert guarded.http.get(path, headers=bearer(ALICE)).status_code == 200
    assert guarded.http.get(path, headers=bearer(BOB)).status_code == 404


def test_too_many_requests_are_told_when_to_come_back(guarded: Gateway) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    answers = [guarded.http.post(COMPLETIONS, json=body, headers=bearer(SLOW)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert error_of(answers[-1])["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    # Others are not concerned.
    assert guarded.http.post(COMPLETIONS, json=body, headers=bearer(BOB)).status_code == 200


def test_a_minute_slides_and_refused_requests_do_not_count() -> None:
    now = [1000.0]
    client = Client(ApiKey(name="a", key="k" * 16, requests_per_minute=2), lambda: now[0])
    for at in (0, 30):
        now[0] = 1000.0 + at
        client.enter()
        client.leave()
    with pytest.raises(ApiError) as refused:
        client.enter()
    assert refused.value.headers["retry-after"] == "30"
    now[0] = 1060.0
    client.enter()
    with pytest.raises(ApiError):
        client.enter()


def test_a_key_has_so_many_requests_at_a_time() -> None:
    client = Client(ApiKey(name="a", key="k" * 16, max_concurrent=2))
    client.enter()
    client.enter()
    with pytest.raises(ApiError) as refused:
        client.enter()
    assert refused.value.status == 429
    client.leave()
    client.enter()


def test_every_key_is_compared_whichever_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that ended at the first match would tell by its time which key it was."""
    import hmac

    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    ring = KeyRing(KEYS)
    counts = set()
    for key in (ALICE, SLOW, "wrong", "w" * 10_000):
        compared.clear()
        try:
            ring.client_of(f"Bearer {key}", None)
        except ApiError:
            assert key.startswith("w")
        counts.add(len(compared))
        assert {len(side) for pair in compared for side in pair} == {32}
    assert counts == {len(KEYS)}


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"host": "0.0.0.0"}, "host='0.0.0.0'"),
        ({"host": "192.168.1.5"}, "--insecure"),
        ({"host": "example.org"}, "host="),
        ({"host": "::"}, "host="),
        ({"keys": (ApiKey(name="a", key="short"),)}, "at least 16"),
        ({"keys": (ApiKey(name="a", key="k" * 20), ApiKey(name="b", key="k" * 20))}, "twice"),
        ({"keys": (ApiKey(name="a", key="k" * 20, tenant="a/b"),)}, "tenant="),
        ({"keys": (ApiKey(name="a", key="k" * 20, admin=True),)}, "admin"),
        ({"endpoint": "http://x"}, "endpoint="),
        ({"max_queue": 0}, "max_queue=0"),
    ],
)
def test_settings_that_must_not_be(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong) as refused:
        GatewaySettings(**{"endpoint": "ipc://x", **settings}).checked()
    assert "kkkk" not in str(refused.value)  # no key in a log


def test_settings_come_over_as_they_are() -> None:
    settings = GatewaySettings(endpoint="ipc://x", keys=KEYS, host="0.0.0.0", cors_origins=("*",))
    assert GatewaySettings.from_json(settings.to_json()) == settings
    with pytest.raises(ConfigError, match="unknown colour"):
        GatewaySettings.from_json(b'{"endpoint": "ipc://x", "colour": 1}')


def test_a_body_has_a_bound_however_it_comes(api: Gateway) -> None:
    big = b'{"prompt": "' + b"x" * 300_000 + b'"}'
    headers = {"content-type": "application/json"}
    told = api.http.post(COMPLETIONS, content=big, headers=headers)
    assert told.status_code == 413
    assert error_of(told)["code"] == "request_too_large"
    pieces = iter([big[i : i + 10_000] for i in range(0, len(big), 10_000)])
    with contextlib.suppress(httpx.TransportError):  # the connection may end before all is sent
        assert api.http.post(COMPLETIONS, content=pieces, headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"{", "application/json"), (b"[1]", "application/json"), (b"\xff", "application/json"),
     (b'{"prompt": "\\ud800"}', "application/json"), (b"[" * 5000, "application/json"),
     (b"", "application/json"), (b"prompt=x", "application/x-www-form-urlencoded"),
     (b'{"prompt": "x"}', "text/plain")],
)  # fmt: skip
def test_a_body_that_is_no_object_of_json(api: Gateway, content: bytes, kind: str) -> None:
    answer = api.http.post(COMPLETIONS, content=content, headers={"content-type": kind})
    assert answer.status_code == 400
    error_of(answer)


def test_routes_and_methods_that_are_not_there(api: Gateway) -> None:
    assert error_of(api.http.get("/v1/nothing"))["code"] == "not_found"
    wrong = api.http.get(COMPLETIONS)
    assert wrong.status_code == 405
    assert error_of(wrong)["code"] == "method_not_allowed"


def test_endless_headers_are_cut_off(api: Gateway) -> None:
    address = urlsplit(api.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-endless: ")
        received = b""
        try:
            for _ in range(8 * MAX_HEADER_BYTES // 1000):
                connection.sendall(b"x" * 1000)
        except ConnectionError:
            return
        while data := _received(connection):
            received += data
        assert received.startswith(b"HTTP/1.1 431")
    assert api.http.get("/health").status_code == 200


def test_a_route_that_there_is_not_says_which_there_is(api: Gateway) -> None:
    for path, method, said in (
        ("/chat/completions", "POST", "did you mean /v1/chat/completions"),
        ("/v1/chat/completion", "POST", "did you mean /v1/chat/completions"),
        ("/generate", "POST", "use POST /v1/completions"),
        ("/nothing/like/it", "GET", "GET /openapi.json has them all"),
    ):
        answer = api.http.request(method, path)
        assert answer.status_code == 404
        assert said in error_of(answer)["message"]
    answer = api.http.get("/v1/chat/completions")
    assert answer.status_code == 405
    assert "use POST" in error_of(answer)["message"]


def test_pages_of_other_sites_cannot_call(api: Gateway) -> None:
    """Neither by a form or a fetch without preflight, nor by a name that points here."""
    body = {"prompt": "x", "max_tokens": 1}
    foreign = api.http.post(COMPLETIONS, json=body, headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403
    assert "access-control-allow-origin" not in foreign.headers
    own = api.http.post(COMPLETIONS, json=body, headers={"origin": api.url})
    assert own.status_code == 200
    rebound = api.http.post(COMPLETIONS, json=body, headers={"host": "evil.example"})
    assert rebound.status_code == 403
    assert error_of(rebound)["code"] == "host_not_allowed"
    preflight = api.http.options(
        COMPLETIONS,
        headers={"origin": "https://evil.example", "access-control-request-method": "POST"},
    )
    assert "access-control-allow-origin" not in preflight.headers


def test_origins_that_were_named_may_call(nano: Nano) -> None:
    origin = "https://chat.example"
    with gateway(nano.endpoint, cors_origins=(origin,), allowed_hosts=("box",)) as served:
        served.await_phase("ready")
        answer = served.http.get("/v1/models", headers={"origin": origin, "host": "box:80"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        other = served.http.get("/v1/models", headers={"origin": "https://evil.example"})
        assert other.status_code == 403


def test_more_than_may_wait_is_refused_and_nothing_of_it_begins(nano: Nano) -> None:
    with gateway(nano.endpoint, max_queue=4) as served:
        served.await_phase("ready")
        refused = served.post(COMPLETIONS, prompt=["x"] * 5, max_tokens=1)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert len(served.ok(COMPLETIONS, prompt=["x"] * 4, max_tokens=1)["choices"]) == 4
    await_stats(nano.endpoint, lambda stats: stats["client_calls"] <= 1)


def test_connections_are_bounded(nano: Nano) -> None:
    with gateway(nano.endpoint, max_connections=3) as served, contextlib.ExitStack() as stack:
        address = urlsplit(served.url)
        for _ in range(3):
            stack.enter_context(socket.create_connection((address.hostname, address.port)))
        with socket.create_connection((address.hostname, address.port), timeout=20) as refused:
            assert _received(refused).startswith(b"HTTP/1.1 503")
            assert _received(refused) == b""


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""
