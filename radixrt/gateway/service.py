"""What routes share: the connection, the settings, and how a request becomes calls."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from radixrt.gateway.access import Client
from radixrt.gateway.body import Bodies
from radixrt.gateway.errors import ApiError
from radixrt.gateway.exchange import WINDOW, Exchange
from radixrt.gateway.link import RuntimeLink
from radixrt.gateway.reasoning import ReasoningPrompts
from radixrt.gateway.settings import GatewaySettings
from radixrt.protocol import (
    MAX_FRAME_BYTES,
    Append,
    Close,
    Constraint,
    Generate,
    Open,
    Part,
    Sampling,
    ToRuntime,
)

MAX_PROMPTS = 1024
"""Prompts of one request."""

_FRAME_SLACK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Service:
    """The gateway's parts, as routes use them."""

    settings: GatewaySettings
    link: RuntimeLink
    bodies: Bodies
    reasoning: ReasoningPrompts
    answers: Counter[tuple[str, int]]
    """HTTP answers since the start, by the name of the key and the status."""

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names the model is served under, the first one in answers. Raises ``ApiError`` 503 while
        the runtime has not told."""
        return self.settings.model_names or (self.link.ready_welcome().model.name,)

    def model_of(self, asked: str | None) -> str:
        """Return the name of the model that a request asks for. Raises ``ApiError`` 404."""
        names = self.model_names
        if asked is None or asked in names:
            return asked or names[0]
        raise ApiError(
            404,
            f"the model {asked[:200]!r} does not exist; there is {', '.join(names)}",
            "model",
            "model_not_found",
        )

    def begin(
        self,
        request: Request,
        prompts: Sequence[tuple[Part, ...]],
        sampling: Sampling,
        constraint: Constraint | None,
        *,
        stream: bool,
        cache_salt: str = "",
    ) -> Exchange:
        """Begin a generation for every prompt. Raises ``ApiError`` when nothing was begun."""
        link = self.link
        link.ready_welcome()
        num_waiting = link.num_calls
        if num_waiting + len(prompts) > self.settings.max_queue:
            raise ApiError(
                429,
                f"{num_waiting} generations are unanswered and {len(prompts)} more were asked "
                f"for; at most {self.settings.max_queue} may be",
                code="overloaded",
            )
        tenant = client_of(request).tenant(cache_salt)
        ids = [link.next_call_id() for _ in prompts]
        messages: list[ToRuntime] = []
        for call_id, parts in zip(ids, prompts, strict=True):
            _check_size(parts, constraint)
            messages += [
                Open(call_id, tenant=tenant),
                Append(call_id, parts),
                Generate(
                    call_id,
                    call_id,
                    sampling,
                    constraint,
                    stream=stream,
                    credit=WINDOW,
                    deadline_s=self.settings.request_timeout_s,
                ),
                # Its prefix stays until its time comes: a conversation comes back with it.
                Close(call_id, keep=True),
            ]
        exchange = Exchange(ids, link.tell)
        link.begin(exchange, ids, messages)
        return exchange


def client_of(request: Request) -> Client:
    """Return who sent a request."""
    client = request.scope["state"]["client"]
    assert isinstance(client, Client)
    return client


def request_id_of(request: Request) -> str:
    """Return the request's id, from its sender or the gateway."""
    request_id: str = request.scope["state"]["request_id"]
    return request_id


def now() -> int:
    """Return the time of day in whole seconds, as answers have it."""
    return int(time.time())


def _check_size(parts: tuple[Part, ...], constraint: Constraint | None) -> None:
    # An over-estimate of what escapes may make of a text.
    size = sum(2 * len(part.text.encode()) + 12 * len(part.token_ids) for part in parts)
    if constraint is not None:
        size += 2 * len(constraint.text.encode())
    if size + _FRAME_SLACK > MAX_FRAME_BYTES:
        text = f"the prompt takes up to {size} bytes; one message holds {MAX_FRAME_BYTES}"
        raise ApiError(413, text, code="request_too_large")
