"""What servers of OpenAI's API understand beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["openai", "vllm", "sglang", "radixrt"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """The extensions of one kind of server.

    * ``sampling``: names of ``Sampling`` that travel under their own name beside OpenAI's.
    * ``constraints``: how constraints are said: ``response_format`` alone, as vLLM's
      ``structured_outputs``, as SGLang's fields, or as the protocol's own ``constraint``.
    * ``continues``: a chat request may end with an assistant message that is to be continued.
    * ``tokenizes``: ``/tokenize`` takes text and messages, so prompts can be sent as token ids.
    * ``echoes``: ``/completions`` returns the prompt's logprobs; None when only trying tells.
    * ``cache_field``: the field that names a cache of one's own; empty when there is none.
    * ``flush_path``: where the cache is dropped, beside ``/v1``.
    * ``has_reasoning``: ``separate_reasoning`` false leaves reasoning in the text of chats, where a
      program has it at a runtime.
    """

    name: Name
    sampling: frozenset[str] = frozenset()
    constraints: Literal["response_format", "vllm", "sglang", "radixrt"] = "response_format"
    continues: bool = False
    tokenizes: bool = False
    echoes: bool | None = None
    max_stops: int = 1024
    cache_field: str = ""
    flush_path: str = ""
    has_reasoning: bool = False


_COMMON = frozenset(
    {"top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"}
)

DIALECTS: dict[str, Dialect] = {
    "openai": Dialect("openai", max_stops=4),
    "vllm": Dialect(
        "vllm",
        sampling=_COMMON,
        constraints="vllm",
        continues=True,
        tokenizes=True,
        echoes=True,
        cache_field="cache_salt",
        flush_path="/reset_prefix_cache",
    ),
    "sglang": Dialect(
        "sglang",
        sampling=_COMMON,
        constraints="sglang",
        continues=True,
        echoes=True,
        flush_path="/flush_cache",
        has_reasoning=True,
    ),
    "radixrt": Dialect(
        "radixrt",
        sampling=_COMMON,
        constraints="radixrt",
        continues=True,
        tokenizes=True,
        echoes=True,
        cache_field="cache_salt",
        flush_path="/flush_cache",
        has_reasoning=True,
    ),
}


def dialect_of(owner: str) -> Dialect:
    """Return the dialect of a server by the ``owned_by`` of its models; OpenAI's of an unknown
    one."""
    return DIALECTS.get(owner.lower(), DIALECTS["openai"])
