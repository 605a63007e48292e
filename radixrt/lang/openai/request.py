"""From a ``Generate`` to the body of an HTTP request."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from radixrt.errors import InvalidArgument, Unsupported
from radixrt.lang.openai.demand import Demand, demand_of
from radixrt.lang.openai.dialect import Dialect
from radixrt.lang.openai.prompt import Prompt
from radixrt.lang.openai.settings import Settings
from radixrt.protocol import Constraint, Generate, Sampling

RETRY_TEMPERATURE = 0.7
"""At least this when a value that was refused is generated again: greedy, it would come again."""


@dataclass(frozen=True, slots=True)
class Served:
    """What is known of an endpoint: the settings, its dialect, the model's name there."""

    settings: Settings
    dialect: Dialect
    model: str
    max_context: int

    def is_chat(self, prompt: Prompt) -> bool:
        mode = self.settings.mode
        return mode == "chat" or (mode == "auto" and prompt.has_roles)

    def url(self, path: str) -> str:
        return f"{self.settings.base_url}/{path}"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that a generation may call: name → schema of the arguments."""

    parameters: dict[str, Any]
    choice: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A generation as it is asked for: where, with what, and what the answer is held to."""

    url: str
    body: dict[str, Any]
    is_chat: bool
    demand: Demand | None
    tools: ToolUse | None
    cuts: Cuts
    retries: int

    @property
    def can_stream(self) -> bool:
        """Whether the text can be shown while it arrives: nothing of it is taken back."""
        return (
            self.tools is None and not self.cuts and (self.demand is None or self.demand.can_stream)
        )

    def again(self, num_outputs: int, attempt: int, refused: int) -> dict[str, Any]:
        """The body of request number ``attempt`` (from 0), after ``refused`` values."""
        body = {**self.body, "n": num_outputs}
        if num_outputs == 1:
            del body["n"]
        if attempt and "seed" in body:
            body["seed"] += attempt
        if refused:
            body["temperature"] = max(body.get("temperature", 1.0), RETRY_TEMPERATURE)
        return body


@dataclass(frozen=True, slots=True)
class Cuts:
    """Stops that are looked for here: patterns, and strings beyond what the endpoint takes."""

    strings: tuple[str, ...] = ()
    patterns: tuple[re.Pattern[str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.strings or self.patterns)

    def cut(self, text: str) -> tuple[str, str | None]:
        """Return the text before the first stop, and that stop."""
        found = [(at, stop) for stop in self.strings if (at := text.find(stop)) >= 0]
        for pattern in self.patterns:
            if (match := pattern.search(text)) is not None:
                found.append((match.start(), pattern.pattern))
        if not found:
            return text, None
        at, stop = min(found)
        return text[:at], stop


def ask(served: Served, prompt: Prompt, op: Generate, salt: str) -> Asked:
    """Return how a generation is asked for. Raises ``Unsupported`` for what cannot be said."""
    for name, way_out in (("heal", "end the prompt where a word ends"), ("trace", "leave it out")):
        if getattr(op, name):
            raise Unsupported(
                f"{name}=True needs the model's tokens, which OpenAI's API does not give; "
                f"{way_out}, or use a radixrt runtime"
            )
    is_chat, dialect = served.is_chat(prompt), served.dialect
    cuts = _cuts(op.sampling, dialect)
    body = {"model": served.model, **_sampling(op.sampling, served, cuts, is_chat=is_chat)}
    if salt:
        body[dialect.cache_field] = salt
    constraint, tools = op.constraint, None
    demand: Demand | None = None
    if is_chat:
        _add_messages(body, prompt, dialect)
        if dialect.has_reasoning:
            body["separate_reasoning"] = False
    else:
        body["prompt"] = prompt.text()
    if constraint is not None and constraint.kind == "tools":
        tools, constraint = _add_tools(body, constraint, is_chat)
    if constraint is not None:
        demand = demand_of(constraint, dialect, is_chat=is_chat)
        body |= demand.fields
    url = served.url("chat/completions" if is_chat else "completions")
    retries = op.constraint.retries if op.constraint is not None else 0
    return Asked(url, body, is_chat, demand, tools, cuts, retries)


def _add_messages(body: dict[str, Any], prompt: Prompt, dialect: Dialect) -> None:
    chat = prompt.chat()
    body["messages"] = list(chat.messages)
    if chat.is_continued:
        if not dialect.continues:
            raise Unsupported(
                "the assistant's message has begun already, and an endpoint of dialect "
                f"{dialect.name} cannot continue it; let gen stand first in rt.assistant(…), or "
                "name the server's dialect= (vllm, sglang, radixrt)"
            )
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    if prompt.tools:
        body |= {"tools": prompt.definitions(), "tool_choice": "none"}


def _add_tools(
    body: dict[str, Any], constraint: Constraint, is_chat: bool
) -> tuple[ToolUse, Constraint | None]:
    """Add tools to a body; return them, and what holds for an answer without a call."""
    if not is_chat:
        raise Unsupported(
            "tools= of gen needs a chat endpoint; write rt.assistant(rt.gen(…, tools=…)), or use "
            "mode='chat'"
        )
    given = orjson.loads(constraint.text)
    choice = given["choice"]
    body["tools"] = [{"type": "function", "function": tool} for tool in given["tools"]]
    body["tool_choice"] = (
        choice
        if choice in ("auto", "required")
        else {"type": "function", "function": {"name": choice}}
    )
    if not given.get("parallel", True):
        body["parallel_tool_calls"] = False
    parameters = {tool["name"]: tool["parameters"] for tool in given["tools"]}
    answer = given.get("answer")
    if answer is None:
        return ToolUse(parameters, choice), None
    text = orjson.dumps(answer).decode()
    return ToolUse(parameters, choice), dataclasses.replace(
        constraint, kind="json_schema", text=text
    )


# ---------------------------------------------------------------- sampling


def _sampling(sampling: Sampling, served: Served, cuts: Cuts, *, is_chat: bool) -> dict[str, Any]:
    dialect = served.dialect
    defaults = Sampling()
    body: dict[str, Any] = {"n": sampling.n}
    if sampling.max_tokens is not None:
        body[_max_tokens_field(served, is_chat=is_chat)] = sampling.max_tokens
    for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed"):
        value = getattr(sampling, name)
        # OpenAI's defaults are ours, and its newest models refuse even to be told them; other
        # servers have defaults of the model's.
        if value != getattr(defaults, name) or (
            dialect.name != "openai" and name in ("temperature", "top_p")
        ):
            body[name] = value
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    _add_extensions(body, sampling, dialect)
    stop = [stop for stop in sampling.stop if stop not in cuts.strings]
    if stop:
        body["stop"] = stop
    if sampling.return_logprob:
        top = sampling.top_logprobs_num
        body |= {"logprobs": True, "top_logprobs": top} if is_chat else {"logprobs": max(top, 1)}
    return body


def _add_extensions(body: dict[str, Any], sampling: Sampling, dialect: Dialect) -> None:
    defaults = Sampling()
    for name in sorted(_EXTENSIONS):
        value = getattr(sampling, name)
        if name in dialect.sampling:
            # A server may take the model's own defaults for what it is not told.
            if value != getattr(defaults, name) or name in _OF_THE_MODEL:
                body[name] = list(value) if isinstance(value, tuple) else value
        elif value != getattr(defaults, name):
            raise Unsupported(
                f"{name}={value!r}: OpenAI's API does not have it; leave it out, or name the "
                "server's dialect= (vllm, sglang, radixrt)"
            )
    if body.get("top_k") == 0:
        body["top_k"] = -1


_EXTENSIONS = frozenset(
    {"top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"}
)
_OF_THE_MODEL = frozenset({"top_k", "min_p", "repetition_penalty"})


def _max_tokens_field(served: Served, *, is_chat: bool) -> str:
    host = urlsplit(served.settings.base_url).hostname or ""
    is_new = is_chat and host.endswith((".openai.com", ".azure.com"))
    return "max_completion_tokens" if is_new else "max_tokens"


def _cuts(sampling: Sampling, dialect: Dialect) -> Cuts:
    patterns: Sequence[re.Pattern[str]] = [_pattern(text) for text in sampling.stop_regex]
    return Cuts(sampling.stop[dialect.max_stops :], tuple(patterns))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise InvalidArgument("stop_regex", text, f"Python cannot read it: {error}") from None
