"""Generations at an endpoint: asked for, held to their constraint, asked for again."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import jsonschema
import orjson

from radixrt.errors import EngineFault, ValueRefused
from radixrt.lang.openai.answer import UNKNOWN_ID, Answer, Choice, Piece
from radixrt.lang.openai.http import Http
from radixrt.lang.openai.json_layout import JsonLayout
from radixrt.lang.openai.prompt import Prompt
from radixrt.lang.openai.request import Asked, Served, ToolUse, ask
from radixrt.protocol import Generate, Output, ToolCall, Usage

Emit = Callable[[int, Piece], None]


@dataclass(frozen=True, slots=True)
class Generated:
    """What a generation gave, and the prompt with its first output."""

    outputs: tuple[Output, ...]
    usage: Usage
    prompt: Prompt


async def generate(
    http: Http, served: Served, prompt: Prompt, op: Generate, salt: str, emit: Emit
) -> Generated:
    """Return ``n`` outputs; ``emit`` is told of a streamed one while it arrives.

    An endpoint that gives fewer than ``n`` is asked again, and so is one whose value breaks its
    constraint, at most ``retries`` times: then ``ValueRefused``.
    """
    asked = ask(served, prompt, op, salt)
    wanted, attempt, refused = op.sampling.n, 0, 0
    is_live = op.stream and asked.can_stream
    read: list[tuple[Output, str]] = []
    usage = Usage()
    while len(read) < wanted:
        body = asked.again(wanted - len(read), attempt, refused)
        answer = await _answer(http, asked, body, _shift(emit, asked, len(read), is_live))
        usage = added(usage, answer.usage)
        if not answer.choices:
            raise EngineFault(f"{asked.url} answers without a choice")
        refusal: ValueRefused | None = None
        for _, choice in sorted(answer.choices.items()):
            try:
                read.append(_read(asked, choice, answer, op, refused + 1))
            except ValueRefused as error:
                refusal = error
        attempt += 1
        if refusal is not None:
            refused += 1
            if is_live or refused > asked.retries:
                raise ValueRefused(f"{refusal} (attempt {refused} of {refused})")
    del read[wanted:]
    if op.stream and not is_live:
        for index, (output, _) in enumerate(read):
            emit(index, Piece(output.text, output.logprobs, output.top_logprobs))
    first, content = read[0]
    grown = prompt.grow("generated", first.text, first.tool_calls, content)
    return Generated(tuple(output for output, _ in read), usage, grown)


async def _answer(http: Http, asked: Asked, body: dict[str, Any], emit: Emit | None) -> Answer:
    answer = Answer()
    if emit is None:
        answer.add(await http.post(asked.url, body))
        return answer
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    async with aclosing(http.stream(asked.url, body)) as events:
        async for event in events:
            answer.add(event, emit)
    if any(not choice.finish for choice in answer.choices.values()):
        raise EngineFault(f"the stream from {asked.url} ended before its text did")
    return answer


def _shift(emit: Emit, asked: Asked, taken: int, is_live: bool) -> Emit | None:
    """Return what is told of an answer's pieces, ``taken`` outputs being there already."""
    if not is_live:
        return None
    layouts: dict[int, JsonLayout | None] = {}

    def told(index: int, piece: Piece) -> None:
        if index not in layouts:
            layouts[index] = asked.demand.layout() if asked.demand is not None else None
        layout = layouts[index]
        text = piece.text if layout is None else layout.feed(piece.text)
        if text or piece.logprobs:
            emit(taken + index, replace(piece, text=text))

    return told


def _read(
    asked: Asked, choice: Choice, answer: Answer, op: Generate, attempts: int
) -> tuple[Output, str]:
    """Return a choice's output, and its text without tool calls. Raises ``ValueRefused``."""
    if choice.refusal:
        raise ValueRefused(f"the model refuses: {choice.refusal[:300]}")
    text, stop = asked.cuts.cut(choice.text)
    finish = choice.finish_reason
    is_cut = finish.type == "length" and stop is None
    if stop is not None:
        finish = replace(finish, type="stop", matched=stop)
        _trim(choice, len(text))
    calls: tuple[ToolCall, ...] = ()
    content = text
    if asked.tools is not None:
        text, calls = _with_calls(text, choice, asked.tools)
    if asked.demand is not None and not calls:
        text = content = asked.demand.read(text, is_cut=is_cut)
    ids = tuple(choice.token_ids) or (UNKNOWN_ID,) * _num_tokens(choice, answer)
    wants_top = op.sampling.top_logprobs_num
    output = Output(
        text,
        ids,
        finish,
        tuple(choice.logprobs) if op.sampling.return_logprob else (),
        tuple(top[:wants_top] for top in choice.top_logprobs) if wants_top else (),
        tool_calls=calls,
        attempts=attempts,
    )
    return output, content


def _trim(choice: Choice, length: int) -> None:
    """Leave the tokens out that come after ``length`` characters."""
    kept = at = 0
    for entry in choice.logprobs:
        if at >= length:
            break
        kept, at = kept + 1, at + len(entry.text)
    del choice.logprobs[kept:], choice.top_logprobs[kept:], choice.token_ids[kept:]


def _num_tokens(choice: Choice, answer: Answer) -> int:
    """How many tokens a choice has; 0 when the endpoint tells of all choices together."""
    if choice.logprobs:
        return len(choice.logprobs)
    return answer.usage.completion_tokens if len(answer.choices) == 1 else 0


def _with_calls(text: str, choice: Choice, tools: ToolUse) -> tuple[str, tuple[ToolCall, ...]]:
    """Write the calls behind the text, as models write them, and say where they stand."""
    calls = []
    for _, call in sorted(choice.calls.items()):
        name, arguments = call["name"], call["text"] or "{}"
        _check_arguments(name, arguments, tools)
        lead = "" if not text or text.endswith("\n") else "\n"
        text += f"{lead}<tool_call>\n"
        start = len(text)
        text += f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'
        calls.append(ToolCall(name, arguments, start, len(text)))
        text += "\n</tool_call>"
    if tools.choice != "auto" and not calls:
        raise ValueRefused(f"a call was required (tool_choice={tools.choice!r}), and none came")
    return text, tuple(calls)


def _check_arguments(name: str, arguments: str, tools: ToolUse) -> None:
    if name not in tools.parameters:
        raise ValueRefused(f"{name!r} was called, which is no tool of {sorted(tools.parameters)}")
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError as error:
        raise ValueRefused(
            f"arguments of {name}: {arguments[:200]!r} is not JSON: {error}"
        ) from None
    if not isinstance(value, dict):
        raise ValueRefused(f"arguments of {name}: {arguments[:200]} is no object")
    validator = jsonschema.Draft202012Validator(tools.parameters[name])
    found = next(iter(validator.iter_errors(value)), None)
    if found is not None:
        raise ValueRefused(f"arguments of {name}: {found.message[:300]}")


def added(a: Usage, b: Usage) -> Usage:
    """Return the sum of two calls' counts."""
    names = Usage.__dataclass_fields__
    return Usage(**{name: getattr(a, name) + getattr(b, name) for name in names})
