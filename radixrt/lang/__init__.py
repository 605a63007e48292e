"""The language: programs that call a model, and the runtimes they run on.

import radixrt as rt

@rt.function
def ask(s, question):
    s += "Q: " + question + "\\nA:" + rt.gen("answer", stop="\\n")

with rt.connect("ipc:///tmp/radixrt.sock") as backend:
    print(ask.run(question="2 + 2?", backend=backend)["answer"])
"""

from __future__ import annotations

from radixrt.lang.api import (
    function,
    gen,
    gen_int,
    gen_string,
    image,
    select,
    separate_reasoning,
    video,
)
from radixrt.lang.backend import (
    Backend,
    Runtime,
    RuntimeEndpoint,
    connect,
    flush_cache,
    get_default_backend,
    get_server_info,
    restore,
    save,
    set_default_backend,
    shutdown,
)
from radixrt.lang.choices import (
    ChoicesMethod,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from radixrt.lang.explain import Explanation
from radixrt.lang.group import ProgramStateGroup
from radixrt.lang.journal import FinishedRow
from radixrt.lang.leases import warm
from radixrt.lang.openai import OpenAI
from radixrt.lang.program import Function
from radixrt.lang.roles import (
    assistant,
    assistant_begin,
    assistant_end,
    system,
    system_begin,
    system_end,
    tool,
    tools,
    user,
    user_begin,
    user_end,
)
from radixrt.lang.state import ProgramState
from radixrt.lang.toolset import ToolCall, ToolCalls

__all__ = [
    "Backend",
    "ChoicesMethod",
    "Explanation",
    "FinishedRow",
    "Function",
    "OpenAI",
    "ProgramState",
    "ProgramStateGroup",
    "Runtime",
    "RuntimeEndpoint",
    "ToolCall",
    "ToolCalls",
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
