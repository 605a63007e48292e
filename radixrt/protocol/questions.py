"""What a client asks, and the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from radixrt.protocol.values import Part


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
    fields of ``runtime.grammar.tool_calls.ToolFormat``), ``reasoning`` (the ``opening`` and
    ``closing`` tags around it, and the ``closing_id`` where that is one token; None for a model
    that does not reason) and ``config`` in its data."""

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
class Span:
    """A run of a branch's text. ``cached_tokens`` of ``num_tokens`` were served from the cache."""

    kind: Literal["text", "role", "generated", "chosen"]
    text: str
    num_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a question: ``Read``, ``Flush``, ``Stats``, ``Explain``, ``Save``, ``Restore``,
    ``Tokenize``, ``Detokenize``, ``DescribeTokenizer`` or ``Inspect``."""

    call: int
    data: dict[str, Any] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
