"""The messages between a client and the runtime, and their form on the wire.

One frame is one message: the JSON array ``[tag, fields]``. Several frames may travel as one ZeroMQ
message and are handled in order, so one step of a program (open, append, generate) is one message.
``decode`` goes through one explicit table (tag → class) and validates every field; nothing else
is ever constructed from received bytes.

Ids (``call``, ``branch``) are the client's and unique per client. Operations of one branch are
executed in the order sent and may be pipelined. **Every call ends in exactly one of** ``Finished``,
``Chosen``, ``Reply`` **or** ``Failed``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import orjson

from radixrt.errors import ProtocolError

VERSION = 1

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Frames above this are refused before they are parsed."""

# ---------------------------------------------------------------- values that messages carry


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a branch's prompt.

    ``text`` is tokenized on its own; ``tokens`` are taken as they are; ``role_begin`` and
    ``role_end`` (``text`` names the role) are rendered with the model's chat template. ``tools``
    (``text`` is a JSON array of definitions in OpenAI's form) hands the template the tools of the
    messages that follow; it stands before the first of them.

    ``markup`` is text in which the names of special tokens mean these tokens, tokenized on its own.
    ``chat`` is a whole conversation, the first part of its branch: ``text`` is the JSON object
    ``{"messages": [messages in OpenAI's form], "tools": [definitions] or null,
    "add_generation_prompt": bool, "continue_final_message": bool, "template_kwargs": {}}``. The
    model's chat template renders it, and what it gives is tokenized as a whole.
    """

    kind: Literal["text", "tokens", "role_begin", "role_end", "tools", "markup", "chat"]
    text: str = ""
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of one generation are chosen. Defaults are the model's plain distribution.

    ``max_tokens`` None is as many as the context has room for, 0 computes the prompt alone.
    ``top_k`` 0 keeps all tokens. ``seed`` None draws a fresh seed. ``stop`` strings and
    ``stop_regex`` patterns end the text before the match. ``logit_bias`` holds (token id, bias).
    ``top_logprobs_num`` > 0 needs ``return_logprob``. ``logprob_start_len`` >= 0 also returns
    logprobs of the prompt from that position on.
    """

    max_tokens: int | None = 128
    min_tokens: int = 0
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    ignore_eos: bool = False
    return_logprob: bool = False
    top_logprobs_num: int = 0
    logprob_start_len: int = -1


@dataclass(frozen=True, slots=True)
class FieldSampling:
    """Sampling of one field of a JSON value; None leaves the call's own.

    ``pointer`` is a JSON pointer into the value, with ``*`` for any item of an array or any key;
    ``max_tokens`` bounds the field's own tokens: it is closed when they are used up.
    """

    pointer: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a generation must match.

    ``text`` is, by ``kind``: a regular expression; a JSON array of strings (``choices``); a JSON
    schema; a Lark grammar (``grammar``); a grammar in llama.cpp's (``gbnf``) or in SGLang's
    (``ebnf``) dialect; or for ``tools`` the JSON object ``{"tools": [{"name", "description",
    "parameters"}], "choice": "auto" | "required" | name, "format": "auto" | "hermes" | "llama" |
    "mistral", "parallel": bool, "answer": schema of an answer instead of calls}``.

    * ``finish``: ``valid`` closes the text within ``max_tokens`` or refuses the call before it
      generates; ``cut`` ends it where the tokens end. None is ``cut`` for a regex, else ``valid``.
    * ``strict``: refuse a schema that the grammar does not enforce in full.
    * ``indent``: None is compact JSON, a number a line an item with so many blanks a level.
    * ``spaced``: JSON on one line with a blank after each comma and colon, as Python writes it.
    * ``any_order``: properties may come in any order.
    * ``retries``: how often a value that fails the final validation is generated again.
    * ``after``: the constraint begins after this text (``</think>``); what is before is free.
    * ``fields``: sampling of single fields of a JSON value.
    * ``exclude``: texts of whole values that are not to be generated (again).
    * ``jump_forward``: append tokens that are the only possible ones without sampling.
    """

    kind: Literal["regex", "choices", "json_schema", "grammar", "gbnf", "ebnf", "tools"]
    text: str
    finish: Literal["valid", "cut"] | None = None
    strict: bool = False
    indent: int | None = None
    any_order: bool = False
    retries: int = 3
    after: str = ""
    fields: tuple[FieldSampling, ...] = ()
    exclude: tuple[str, ...] = ()
    jump_forward: bool = True
    spaced: bool = False


@dataclass(frozen=True, slots=True)
class KeywordStatus:
    """What became of a keyword of a JSON schema at ``pointer`` (of the schema object it is in).

    ``enforced``: by the grammar, token by token; ``checked``: on the finished value; ``ignored``:
    neither the engine nor the validator knows it.
    """

    pointer: str
    keyword: str
    status: Literal["enforced", "checked", "ignored"]


@dataclass(frozen=True, slots=True)
class FieldScore:
    """Log probability of one scalar of a JSON value, characters ``[start, end)`` of the text.

    ``logprob`` adds up its ``num_tokens`` tokens under the constraint: a forced token counts 0.
    """

    pointer: str
    start: int
    end: int
    logprob: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """One token of a constrained generation.

    ``kind``: ``sampled``; ``forced``: the only possible one, appended without sampling;
    ``steered``: chosen to close the text within its budget; ``healed``: it spells the end of the
    prompt again. ``allowed`` counts the tokens the mask left, ``removed_mass`` is the probability
    it took away; ``logprob`` is natural log under the mask.
    """

    token_id: int
    text: str
    kind: Literal["sampled", "forced", "steered", "healed"]
    allowed: int
    removed_mass: float
    logprob: float


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call, characters ``[start, end)`` of the text. ``arguments`` is JSON text."""

    name: str
    arguments: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its log probability (natural log, of the unmodified distribution)."""

    logprob: float | None
    token_id: int
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one call. ``prompt = cached + computed`` for a call that ran to its end.

    ``evicted`` counts prompt tokens of this branch that had been computed before and were computed
    again because their pages were evicted meanwhile. ``forced_tokens`` of the completion were the
    only possible ones and appended without sampling.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    evicted_tokens: int = 0
    completion_tokens: int = 0
    forced_tokens: int = 0


@dataclass(frozen=True, slots=True)
class FinishReason:
    """Why a generation ended: ``stop`` (``matched``: the string, pattern or token id; None for the
    end of a constraint), ``length``, or ``abort``."""

    type: Literal["stop", "length", "abort"]
    matched: str | int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One generated text. ``logprobs``/``top_logprobs`` are empty unless they were asked for.

    Under a constraint: ``enforcement`` and ``warnings`` say what the grammar could do of a schema,
    ``field_scores`` are there with ``return_logprob``, ``fields`` or ``trace``, ``trace`` when it
    was asked for, ``tool_calls`` and ``tool_format`` under ``tools``. ``attempts`` > 1: so many
    times the value, or a part of it, was generated until it was valid.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    enforcement: tuple[KeywordStatus, ...] = ()
    warnings: tuple[str, ...] = ()
    field_scores: tuple[FieldScore, ...] = ()
    trace: tuple[TokenTrace, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_format: str = ""
    attempts: int = 1


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
class Span:
    """A run of a branch's text. ``cached_tokens`` of ``num_tokens`` were served from the cache."""

    kind: Literal["text", "role", "generated", "chosen"]
    text: str
    num_tokens: int
    cached_tokens: int


CacheUse = Literal["shared", "private", "off"]

# ---------------------------------------------------------------- client → runtime


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
class Open:
    """Create a branch: empty, or an O(1) copy of ``parent`` as of this point of its operations.

    ``tenant`` names a cache of its own: nobody else's prefixes are found there, and nobody else
    finds these. ``cache`` is ``shared`` (with everybody, or everybody of the tenant), ``private``
    (with the branches forked from this one) or ``off`` (nothing is found and nothing is kept). A
    copy has its parent's.
    """

    branch: int
    parent: int | None = None
    tenant: str = ""
    cache: CacheUse = "shared"


@dataclass(frozen=True, slots=True)
class Append:
    """Append parts to a branch."""

    branch: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Generate:
    """Generate on a branch and append the result to it (of ``n`` results the first).

    ``stream`` sends ``Chunk`` messages while credit lasts (``credit`` chunks at first, more by
    ``Credit``; text that had no credit is merged into the next chunk). ``deadline_s`` bounds the
    call from its arrival; None means the runtime's own bound. ``pause_s`` is how long the client
    expects the branch to be idle afterwards, None when it does not know: a hint for the cache.

    ``heal`` lets the first token span the end of the prompt: the prompt's last token is taken back
    and its text is generated again as the beginning of a token that may be longer. ``trace`` asks
    for ``Output.trace``. The text of a schema that is checked rather than enforced is streamed when
    it is known to be valid, in one chunk.
    """

    call: int
    branch: int
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Constraint | None = None
    stream: bool = False
    credit: int = 1_000_000
    deadline_s: float | None = None
    pause_s: float | None = None
    heal: bool = False
    trace: bool = False


Method = Literal["token_length_normalized", "greedy_token_selection", "unconditional_likelihood"]


@dataclass(frozen=True, slots=True)
class Select:
    """Choose one of ``options`` by likelihood and append it to the branch. ``pause_s`` as of
    ``Generate``.

    An option that is a constraint stands for the most likely text under it (greedy, at most
    ``max_tokens``); all options are then scored together.
    """

    call: int
    branch: int
    options: tuple[str | Constraint, ...]
    method: Method = "token_length_normalized"
    deadline_s: float | None = None
    pause_s: float | None = None
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Close:
    """Release a branch after the operations sent before; its cached tokens are evicted first, or
    with ``keep`` when their time comes."""

    branch: int
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep what a branch has cached, after the operations sent before, for ``ttl_s`` seconds of
    disuse before that of others, the higher ``priority`` (0 to 3) the longer. A wish: it never
    keeps others from running. ``ttl_s`` 0 takes the wish back."""

    branch: int
    ttl_s: float
    priority: int = 1


@dataclass(frozen=True, slots=True)
class Release:
    """What the branch alone has cached, after the operations sent before, may be evicted first. The
    branch stays open; going on with it computes again what is gone."""

    branch: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a call early. The call still ends in one message: ``Failed(cancelled)`` or its result."""

    call: int


@dataclass(frozen=True, slots=True)
class Credit:
    """Allow ``chunks`` more ``Chunk`` messages of a streamed call."""

    call: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Read:
    """Ask for a branch's rendered spans; answered by ``Reply`` with ``spans``."""

    call: int
    branch: int


@dataclass(frozen=True, slots=True)
class Explain:
    """Ask what became of the prompts of a branch's latest calls or, without a branch, of the latest
    ``last`` calls of anybody in the shared cache; answered by ``Reply`` with ``calls`` in its data
    (``runtime.accounts`` says what they hold)."""

    call: int
    branch: int | None = None
    last: int = 16


@dataclass(frozen=True, slots=True)
class Save:
    """Write everything that is cached to a directory of the runtime's machine; answered by
    ``Reply`` with the number of ``pages``."""

    call: int
    path: str


@dataclass(frozen=True, slots=True)
class Restore:
    """Read what ``Save`` wrote; answered by ``Reply`` with the number of ``pages``."""

    call: int
    path: str


@dataclass(frozen=True, slots=True)
class Flush:
    """Drop every cached token that no running call uses; answered by ``Reply``."""

    call: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Ask for the runtime's counters; answered by ``Reply`` with ``data``."""

    call: int


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Ask for the tokens of parts, as a branch of their own would have them; answered by ``Reply``
    with ``token_ids``, ``tokens`` (the text of each) and ``max_context`` in its data.

    ``add_special_tokens`` puts in front what the tokenizer begins a text with.
    """

    call: int
    parts: tuple[Part, ...]
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Detokenize:
    """Ask for the text of tokens, special ones by name; answered by ``Reply`` with ``text``."""

    call: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DescribeTokenizer:
    """Ask what the tokenizer is; answered by ``Reply`` with ``tokenizer_class``, ``vocab_size``,
    ``special_tokens`` (name such as ``eos_token`` → text), ``special_token_ids`` (name → id),
    ``added_special_tokens`` (text → id of every control token), ``end_ids``, ``max_context``,
    ``chat_template`` (None without one), ``tool_format`` (how the model writes tool calls, the
    fields of ``runtime.tool_calls.ToolFormat``) and ``config`` in its data."""

    call: int


@dataclass(frozen=True, slots=True)
class Inspect:
    """Ask for the live tree of cached prefixes, for people to look at; answered by ``Reply``, whose
    data ``radixrt.inspection`` describes.

    ``since`` is the generation of the answer that the asker has, 0 for none: what changed is told,
    else at most ``max_nodes`` nodes, the largest. ``texts`` decodes how each begins. ``node`` asks
    for the path to one node alone, with ``texts`` decoded in full.
    """

    call: int
    since: int = 0
    max_nodes: int = 1000
    texts: bool = False
    node: int = 0


@dataclass(frozen=True, slots=True)
class Ping:
    """Answered by the engine loop, not by the socket: a stuck engine does not answer."""

    seq: int


# ---------------------------------------------------------------- runtime → client


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
class Chunk:
    """New text (and tokens) of output ``index`` of a streamed call."""

    call: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """A generation ended; ``outputs`` has ``n`` entries.

    ``prompt_logprobs`` starts at ``logprob_start_len``; its first entry's logprob is None when that
    position has nothing before it. ``prompt_top_logprobs`` are the likeliest tokens at the same
    positions, with ``top_logprobs_num``.
    """

    call: int
    outputs: tuple[Output, ...]
    usage: Usage
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    prompt_top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """A selection ended. ``scores`` are what the method compares, per option, higher is better;
    ``logprobs`` the options' tokens; ``unconditional`` the same without the branch before them."""

    call: int
    index: int
    scores: tuple[float, ...]
    logprobs: tuple[tuple[TokenLogprob, ...], ...]
    usage: Usage
    unconditional: tuple[tuple[TokenLogprob, ...], ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a question: ``Read``, ``Flush``, ``Stats``, ``Explain``, ``Save``, ``Restore``,
    ``Tokenize``, ``Detokenize``, ``DescribeTokenizer`` or ``Inspect``."""

    call: int
    data: dict[str, Any] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A call failed (or, with ``call`` None, a frame or the session).

    ``branch`` names a branch whose operation without a call (open, append) was refused; later
    operations of it fail too.
    """

    call: int | None
    code: str
    message: str
    retryable: bool = False
    branch: int | None = None


@dataclass(frozen=True, slots=True)
class Pong:
    """The engine loop is alive; ``loop_lag_ms`` is the age of the ping when the loop saw it."""

    seq: int
    loop_lag_ms: float


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender ends the session: a client that leaves, or a runtime that drains."""

    reason: str = ""


ToRuntime = (
    Hello
    | Open
    | Append
    | Generate
    | Select
    | Close
    | Hold
    | Release
    | Cancel
    | Credit
    | Read
    | Explain
    | Save
    | Restore
    | Flush
    | Stats
    | Tokenize
    | Detokenize
    | DescribeTokenizer
    | Inspect
    | Ping
    | Goodbye
)
ToClient = Welcome | State | Chunk | Finished | Chosen | Reply | Failed | Pong | Goodbye
Message = ToRuntime | ToClient

TAGS: dict[str, type[Message]] = {
    "hello": Hello,
    "open": Open,
    "append": Append,
    "generate": Generate,
    "select": Select,
    "close": Close,
    "hold": Hold,
    "release": Release,
    "cancel": Cancel,
    "credit": Credit,
    "read": Read,
    "explain": Explain,
    "save": Save,
    "restore": Restore,
    "flush": Flush,
    "stats": Stats,
    "tokenize": Tokenize,
    "detokenize": Detokenize,
    "describe_tokenizer": DescribeTokenizer,
    "inspect": Inspect,
    "ping": Ping,
    "welcome": Welcome,
    "state": State,
    "chunk": Chunk,
    "finished": Finished,
    "chosen": Chosen,
    "reply": Reply,
    "failed": Failed,
    "pong": Pong,
    "goodbye": Goodbye,
}
"""The one table from a frame's tag to the class it may become."""

_CHUNK_FRAME = b'["chunk",'
_CHUNK = msgspec.json.Decoder(tuple[Literal["chunk"], Chunk])
"""Most frames of a stream are chunks: a decoder of their own takes a quarter of the time."""

_TAG_OF: dict[type[Message], str] = {cls: tag for tag, cls in TAGS.items()}


def encode(message: Message) -> bytes:
    """Return the frame of a message."""
    return orjson.dumps((_TAG_OF[type(message)], message))


def decode(frame: bytes | memoryview) -> Message:
    """Return the message of a frame, with every field validated.

    Raises ``ProtocolError`` for anything else: too long, not JSON, an unknown tag, a missing, extra
    or wrongly typed field. Extra fields of a chunk are skipped.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {len(frame)} bytes; at most {MAX_FRAME_BYTES} are accepted")
    if frame[: len(_CHUNK_FRAME)] == _CHUNK_FRAME:
        try:
            return _CHUNK.decode(frame)[1]
        except msgspec.DecodeError as error:
            raise ProtocolError(f"message 'chunk': {error}") from None
    try:
        parsed = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"frame is not JSON: {error}") from None
    if not (isinstance(parsed, list) and len(parsed) == 2 and isinstance(parsed[0], str)):
        raise ProtocolError("frame is not [tag, fields]")
    tag, fields = parsed
    cls = TAGS.get(tag)
    if cls is None:
        raise ProtocolError(f"unknown message {tag[:40]!r}; known: {', '.join(TAGS)}")
    if not isinstance(fields, dict):
        raise ProtocolError(f"fields of {tag!r} are not an object")
    unknown = fields.keys() - cls.__dataclass_fields__.keys()
    if unknown:
        raise ProtocolError(f"unknown fields of {tag!r}: {', '.join(sorted(unknown))[:200]}")
    try:
        return msgspec.convert(fields, cls)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"message {tag!r}: {error}") from None


def encode_all(messages: Iterable[Message]) -> list[bytes]:
    """Return the frames of several messages, in order."""
    return [encode(message) for message in messages]
