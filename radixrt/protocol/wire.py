"""Messages as frames: the one table of what a frame may become."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
import orjson

from radixrt.errors import ProtocolError
from radixrt.protocol.operations import (
    Append,
    Cancel,
    Close,
    Credit,
    Generate,
    Hold,
    Open,
    Release,
    Select,
)
from radixrt.protocol.questions import (
    DescribeTokenizer,
    Detokenize,
    Explain,
    Flush,
    Inspect,
    Read,
    Reply,
    Restore,
    Save,
    Stats,
    Tokenize,
)
from radixrt.protocol.results import Chosen, Chunk, Failed, Finished
from radixrt.protocol.session import Goodbye, Hello, Ping, Pong, State, Welcome

MAX_FRAME_BYTES = 16 * 1024 * 1024
"""Frames above this are refused before they are parsed."""

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

_OTHER_VERSION = "use the same version of radixrt at both ends"

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
        raise ProtocolError(
            f"unknown message {tag[:40]!r}; {_OTHER_VERSION}; known: {', '.join(TAGS)}"
        )
    if not isinstance(fields, dict):
        raise ProtocolError(f"fields of {tag!r} are not an object")
    unknown = fields.keys() - cls.__dataclass_fields__.keys()
    if unknown:
        names = ", ".join(sorted(unknown))[:200]
        raise ProtocolError(f"unknown fields of {tag!r}: {names}; {_OTHER_VERSION}")
    try:
        return msgspec.convert(fields, cls)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"message {tag!r}: {error}") from None


def encode_all(messages: Iterable[Message]) -> list[bytes]:
    """Return the frames of several messages, in order."""
    return [encode(message) for message in messages]
