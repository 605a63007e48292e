"""radixrt: language-model programs over a runtime that shares prefixes.

    import radixrt as rt

    @rt.function
    def ask(s, question):
        s += "Q: " + question + "\\nA:" + rt.gen("answer", stop="\\n")

Everything public is here and is loaded when it is first used, so that importing the package costs
next to nothing. The server side is in ``radixrt.runtime`` (extra ``runtime``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from radixrt.errors import (
    CallFailed,
    Cancelled,
    ConfigError,
    ConstraintFailed,
    DeadlineExceeded,
    EngineFault,
    InvalidArgument,
    JournalError,
    KeysRefused,
    ModelError,
    Overloaded,
    ProgramError,
    PromptTooLong,
    RadixError,
    RuntimeUnavailable,
    TransportError,
    Unauthorized,
    Unsupported,
    ValueRefused,
)

if TYPE_CHECKING:
    from radixrt.lang import (
        Backend,
        ChoicesMethod,
        Explanation,
        FinishedRow,
        Function,
        OpenAI,
        ProgramState,
        ProgramStateGroup,
        Runtime,
        RuntimeEndpoint,
        ToolCall,
        ToolCalls,
        assistant,
        assistant_begin,
        assistant_end,
        connect,
        flush_cache,
        function,
        gen,
        gen_int,
        gen_string,
        get_default_backend,
        get_server_info,
        greedy_token_selection,
        image,
        restore,
        save,
        select,
        separate_reasoning,
        set_default_backend,
        shutdown,
        system,
        system_begin,
        system_end,
        token_length_normalized,
        tool,
        tools,
        unconditional_likelihood_normalized,
        user,
        user_begin,
        user_end,
        video,
        warm,
    )

__all__ = [
    "Backend",
    "CallFailed",
    "Cancelled",
    "ChoicesMethod",
    "ConfigError",
    "ConstraintFailed",
    "DeadlineExceeded",
    "EngineFault",
    "Explanation",
    "FinishedRow",
    "Function",
    "InvalidArgument",
    "JournalError",
    "KeysRefused",
    "ModelError",
    "OpenAI",
    "Overloaded",
    "ProgramError",
    "ProgramState",
    "ProgramStateGroup",
    "PromptTooLong",
    "RadixError",
    "Runtime",
    "RuntimeEndpoint",
    "RuntimeUnavailable",
    "ToolCall",
    "ToolCalls",
    "TransportError",
    "Unauthorized",
    "Unsupported",
    "ValueRefused",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "connect",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_default_backend",
    "get_server_info",
    "greedy_token_selection",
    "image",
    "restore",
    "save",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "shutdown",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "tool",
    "tools",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
    "video",
    "warm",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        from radixrt.elsewhere import NAMES

        hint = f"; use {NAMES[name]}" if name in NAMES else ""
        raise AttributeError(f"module 'radixrt' has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module("radixrt.lang"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
