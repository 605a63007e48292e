"""The messages between the frontend and the engine: tokens only, no text.

In one process they are passed as objects; between two processes a list of them is one msgpack frame
on a private ipc socket. Arrays travel as little-endian int32 bytes (``token_ids``).

Every ``Run`` ends in exactly one ``Done`` or ``EngineFailed``; every ``Score`` in one ``Scored`` or
``EngineFailed``. ``id`` is the frontend's and unique for the engine's lifetime.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from radixrt.cache.explain import Explained
from radixrt.errors import ProtocolError

TokenIds = NDArray[np.int32]


PRIVATE = "cache=private"
"""How the namespace of a branch begins that shares with nobody: its texts are not shown either."""


def pack_ids(token_ids: TokenIds) -> bytes:
    """Return the wire form of token ids."""
    return token_ids.astype("<i4", copy=False).tobytes()


def unpack_ids(data: bytes) -> TokenIds:
    """Return a read-only int32 array over the wire form of token ids."""
    return np.frombuffer(data, dtype="<i4")


class _Wire(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages of this module."""


class TokenSampling(msgspec.Struct, frozen=True, array_like=True):
    """``protocol.Sampling`` without what only the frontend needs (stop strings, n).

    ``stop_token_ids`` includes the model's end tokens unless they are to be ignored. ``seed`` is
    always set: the frontend draws one where the client gave none.
    """

    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    seed: int
    stop_token_ids: tuple[int, ...]
    logprobs: bool = False
    top_logprobs_num: int = 0
    prompt_logprobs_from: int = -1


class FieldParams(msgspec.Struct, frozen=True, array_like=True):
    """``protocol.FieldSampling``."""

    pointer: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None


class GrammarSpec(msgspec.Struct, frozen=True, array_like=True):
    """A constraint on the generated tokens; the engine compiles it (cached by content).

    As ``protocol.Constraint``, with ``finish`` decided. ``heal`` is the text at the end of the
    prompt that was taken back and has to be generated again first; ``free`` is the kind of a
    generation that is bound by that alone. ``marks`` asks for a ``TokenMark`` of every token.
    """

    kind: Literal["regex", "choices", "json_schema", "grammar", "gbnf", "ebnf", "tools", "free"]
    text: str
    finish: Literal["valid", "cut"] = "cut"
    strict: bool = False
    indent: int | None = None
    any_order: bool = False
    retries: int = 3
    after: str = ""
    fields: tuple[FieldParams, ...] = ()
    exclude: tuple[str, ...] = ()
    jump_forward: bool = True
    heal: str = ""
    marks: bool = False
    spaced: bool = False


# ---------------------------------------------------------------- frontend → engine


class Run(_Wire, frozen=True, tag="run"):
    """Generate after ``token_ids`` (the branch's whole prompt, at least one token).

    ``branch`` names the lease: when the call ends, its path stays leased (a bias against eviction,
    never a lock) until ``Release(branch)`` or the branch's next call. ``namespace`` separates
    caches that must not share (tenant, salt); ``is_cached`` False uses none. ``deadline_s`` counts
    from arrival. ``pause_s`` is how long the branch is expected to be idle when the call has ended;
    ``family`` names the branches that were forked together with it, 0 for none.
    """

    id: int
    branch: int
    token_ids: bytes
    sampling: TokenSampling
    grammar: GrammarSpec | None = None
    namespace: str = ""
    deadline_s: float | None = None
    pause_s: float | None = None
    family: int = 0
    is_cached: bool = True


class Score(_Wire, frozen=True, tag="score"):
    """Log probabilities of every token of every option after ``token_ids``: one pass over the trie
    of the options; with ``unconditional`` also after ``unconditional_prefix`` alone (usually BOS).
    """

    id: int
    branch: int
    token_ids: bytes
    options: tuple[tuple[int, ...], ...]
    unconditional: bool = False
    unconditional_prefix: tuple[int, ...] = ()
    namespace: str = ""
    deadline_s: float | None = None
    pause_s: float | None = None
    family: int = 0
    is_cached: bool = True


class Abort(_Wire, frozen=True, tag="abort"):
    """Stop a call. It still ends in one message (``Done`` with reason ``abort``, or its result)."""

    id: int


class Release(_Wire, frozen=True, tag="release"):
    """The branches are closed: their cached tails become the first to be evicted, or with
    ``ended`` False what nobody's branch has cached."""

    branches: tuple[int, ...]
    ended: bool = True


class Hold(_Wire, frozen=True, tag="hold"):
    """Keep what the branch has cached, and will have after its calls, for ``ttl_s`` seconds of
    disuse before that of others (a bias, never a lock); 0 takes the wish back."""

    branch: int
    ttl_s: float
    priority: int = 1


class FlushCache(_Wire, frozen=True, tag="flush"):
    """Drop every cached page that no running call uses; answered by ``EngineReply``."""

    id: int


class QueryStats(_Wire, frozen=True, tag="query_stats"):
    """Answered by ``EngineReply`` with the engine's counters."""

    id: int


class InspectTree(_Wire, frozen=True, tag="inspect"):
    """``protocol.Inspect``, answered by ``EngineReply``. ``heads`` asks for the first tokens of
    each node; ``node`` for the path to that one and nothing else."""

    id: int
    since: int = 0
    max_nodes: int = 1000
    heads: bool = False
    node: int = 0


class SaveCache(_Wire, frozen=True, tag="save"):
    """Write everything cached to a directory; answered by ``EngineReply`` or ``EngineFailed``."""

    id: int
    path: str


class RestoreCache(_Wire, frozen=True, tag="restore"):
    """Read what ``SaveCache`` wrote; answered by ``EngineReply`` or ``EngineFailed``."""

    id: int
    path: str


class EnginePing(_Wire, frozen=True, tag="ping"):
    """Answered from the engine loop. ``sent`` is ``time.monotonic()`` of the sender."""

    seq: int
    sent: float


class Shutdown(_Wire, frozen=True, tag="shutdown"):
    """Finish the running calls for at most ``drain_s`` seconds, fail the rest, then end."""

    drain_s: float


# ---------------------------------------------------------------- engine → frontend


class Progress(_Wire, frozen=True, tag="progress"):
    """Start-up: the phase that began ("weights", "profile", …) and what there is to say of it."""

    phase: str
    detail: str = ""


class Ready(_Wire, frozen=True, tag="ready"):
    """The engine serves. ``info`` holds model, device, dtype, kv_tokens, page_size, backends."""

    max_context: int
    vocab_size: int
    info: dict[str, Any]


class SampledLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Logprob of one token and of the most likely tokens at its position (ids, logprobs)."""

    logprob: float | None
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


MarkKind = Literal["sampled", "forced", "steered", "healed"]


class TokenMark(msgspec.Struct, frozen=True, array_like=True):
    """How a constrained token came about; see ``protocol.TokenTrace``."""

    kind: MarkKind
    allowed: int
    removed: float
    logprob: float


class Sampled(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one call, after its last ``rewind`` tokens were taken back.

    With ``marks`` there is one for each token. Tokens that were not sampled have no logprob.
    ``is_provisional``: the text is still to be checked, and may be taken back.
    """

    id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[SampledLogprob, ...] = ()
    rewind: int = 0
    marks: tuple[TokenMark, ...] = ()
    is_provisional: bool = False


class Step(_Wire, frozen=True, tag="step"):
    """All new tokens of one engine step, one message for all calls."""

    sampled: tuple[Sampled, ...]


class EngineUsage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts of one call, as in ``protocol.Usage``; ``cached``: found at admission."""

    prompt: int
    cached: int
    computed: int
    evicted: int
    completion: int
    forced: int = 0


class GrammarReport(msgspec.Struct, frozen=True, array_like=True):
    """What a constraint came to: ``enforcement`` as (pointer, keyword, status), the engine's
    ``warnings``, the ``tool_format`` that was used and the number of ``attempts``."""

    enforcement: tuple[tuple[str, str, Literal["enforced", "checked", "ignored"]], ...] = ()
    warnings: tuple[str, ...] = ()
    tool_format: str = ""
    attempts: int = 1


class Done(_Wire, frozen=True, tag="done"):
    """A ``Run`` ended; all of its tokens were sent in ``Step`` messages before.

    With ``matched`` (a stop token) that token was the last one sent. ``prompt_logprobs`` has one
    entry per prompt token from ``prompt_logprobs_from`` on. ``explained`` is None for a call that
    was never admitted.
    """

    id: int
    reason: Literal["stop", "length", "abort", "deadline"]
    usage: EngineUsage
    matched: int | None = None
    prompt_logprobs: tuple[SampledLogprob, ...] = ()
    explained: Explained | None = None
    grammar: GrammarReport | None = None


class Scored(_Wire, frozen=True, tag="scored"):
    """A ``Score`` ended: ``logprobs[i][j]`` belongs to token j of option i."""

    id: int
    logprobs: tuple[tuple[float, ...], ...]
    usage: EngineUsage
    unconditional: tuple[tuple[float, ...], ...] = ()
    explained: Explained | None = None


class EngineReply(_Wire, frozen=True, tag="reply"):
    """The answer to a ``Question``."""

    id: int
    data: dict[str, Any]


class EngineFailed(_Wire, frozen=True, tag="failed"):
    """A call failed, or with ``id`` None the engine itself. ``code`` is one of errors.FAILURES."""

    id: int | None
    code: str
    message: str
    retryable: bool = False


class EnginePong(_Wire, frozen=True, tag="pong"):
    """Echoes a ping; ``lag_ms`` is its age when the loop saw it."""

    seq: int
    lag_ms: float


Question = FlushCache | QueryStats | InspectTree | SaveCache | RestoreCache
"""What ``EngineReply`` answers."""

ToEngine = (
    Run
    | Score
    | Abort
    | Release
    | Hold
    | SaveCache
    | RestoreCache
    | FlushCache
    | QueryStats
    | InspectTree
    | EnginePing
    | Shutdown
)
FromEngine = Progress | Ready | Step | Done | Scored | EngineReply | EngineFailed | EnginePong

Decoded = TypeVar("Decoded")

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[list[ToEngine]] = msgspec.msgpack.Decoder(list[ToEngine])
_from_engine: msgspec.msgpack.Decoder[list[FromEngine]] = msgspec.msgpack.Decoder(list[FromEngine])


def encode_batch(messages: list[ToEngine] | list[FromEngine]) -> bytes:
    """Return one frame for several messages."""
    return _encoder.encode(messages)


def decode_to_engine(frame: bytes) -> list[ToEngine]:
    """Return the messages of a frame from the frontend; ``ProtocolError`` for anything else."""
    return _decode(_to_engine, frame)


def decode_from_engine(frame: bytes) -> list[FromEngine]:
    """Return the messages of a frame from the engine; ``ProtocolError`` for anything else."""
    return _decode(_from_engine, frame)


def _decode(decoder: msgspec.msgpack.Decoder[Decoded], frame: bytes) -> Decoded:
    try:
        return decoder.decode(frame)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"engine frame: {error}") from None
