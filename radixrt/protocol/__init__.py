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

from radixrt.protocol.operations import (
    Append,
    CacheUse,
    Cancel,
    Close,
    Credit,
    Generate,
    Hold,
    Method,
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
    Span,
    Stats,
    Tokenize,
)
from radixrt.protocol.results import (
    Chosen,
    Chunk,
    Failed,
    FieldScore,
    Finished,
    FinishReason,
    KeywordStatus,
    Output,
    TokenLogprob,
    TokenTrace,
    ToolCall,
    Usage,
)
from radixrt.protocol.session import (
    VERSION,
    Goodbye,
    Hello,
    Limits,
    ModelInfo,
    Phase,
    Ping,
    Pong,
    State,
    Welcome,
)
from radixrt.protocol.values import Constraint, FieldSampling, Part, Sampling
from radixrt.protocol.wire import (
    MAX_FRAME_BYTES,
    TAGS,
    Message,
    ToClient,
    ToRuntime,
    decode,
    encode,
    encode_all,
)

__all__ = [
    "MAX_FRAME_BYTES",
    "TAGS",
    "VERSION",
    "Append",
    "CacheUse",
    "Cancel",
    "Chosen",
    "Chunk",
    "Close",
    "Constraint",
    "Credit",
    "DescribeTokenizer",
    "Detokenize",
    "Explain",
    "Failed",
    "FieldSampling",
    "FieldScore",
    "FinishReason",
    "Finished",
    "Flush",
    "Generate",
    "Goodbye",
    "Hello",
    "Hold",
    "Inspect",
    "KeywordStatus",
    "Limits",
    "Message",
    "Method",
    "ModelInfo",
    "Open",
    "Output",
    "Part",
    "Phase",
    "Ping",
    "Pong",
    "Read",
    "Release",
    "Reply",
    "Restore",
    "Sampling",
    "Save",
    "Select",
    "Span",
    "State",
    "Stats",
    "ToClient",
    "ToRuntime",
    "TokenLogprob",
    "TokenTrace",
    "Tokenize",
    "ToolCall",
    "Usage",
    "Welcome",
    "decode",
    "encode",
    "encode_all",
]
