"""Sessions: how they open, live and end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VERSION = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What the runtime accepts from one client."""

    max_frame_bytes: int
    max_calls: int
    max_branches: int
    max_context: int
    ping_interval_s: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that is served."""

    name: str
    architecture: str
    vocab_size: int
    context_length: int
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class Hello:
    """Opens a session; answered by ``Welcome`` or ``Failed`` (call None).

    A runtime that still starts answers when it is ready. ``watch`` asks for ``State`` messages: one
    at once, before ``Welcome``, and one at every change.
    """

    version: int = VERSION
    client: str = ""
    watch: bool = False


@dataclass(frozen=True, slots=True)
class Welcome:
    """The session is open. A changed ``epoch`` means the runtime lost its branches."""

    epoch: str
    limits: Limits
    model: ModelInfo


Phase = Literal["starting", "ready", "draining", "restarting"]


@dataclass(frozen=True, slots=True)
class State:
    """What the runtime is doing, for a client that watches. Calls are taken when it is ``ready``;
    ``detail`` says more to people (the phase of a start)."""

    phase: Phase
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ping:
    """Answered by the engine loop, not by the socket: a stuck engine does not answer."""

    seq: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The engine loop is alive; ``loop_lag_ms`` is the age of the ping when the loop saw it."""

    seq: int
    loop_lag_ms: float


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender ends the session: a client that leaves, or a runtime that drains."""

    reason: str = ""
