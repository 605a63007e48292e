"""The grammar of tool calls, and the final check of their arguments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from radixrt.runtime.grammar.base import GrammarError
from radixrt.runtime.grammar.lark import json_rule, literal
from radixrt.runtime.grammar.llguidance import json_blanks
from radixrt.runtime.grammar.normalise import normalise
from radixrt.runtime.grammar.tool_calls import FORMATS, TOOL_MARKS, ToolFormat, find_calls
from radixrt.runtime.grammar.validate import Failure, FinalValidator
from radixrt.runtime.grammar.vocabulary import Vocabulary

MAX_TOOLS = 256

_OPTIONS = {"lenient": True, **json_blanks(spaced=True)}
"""The spelling of Python's json, which is what templates show to models."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a call: ``parameters`` is each tool's schema; ``choice`` is ``auto``,
    ``required`` or the name of one; ``answer`` the schema of an answer instead of calls."""

    parameters: dict[str, Any]
    choice: str
    style: ToolFormat
    parallel: bool
    answer: Any = None

    @property
    def is_free_first(self) -> bool:
        """Whether free text comes before the calls, or instead of them."""
        return self.choice == "auto" and self.answer is None


def parse_tools(text: str) -> Tools:
    """Return the tools of a constraint's text. Raises ``GrammarError`` that says what is wrong."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"tools: not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("tools"), list):
        raise GrammarError('tools: give an object with "tools", a list')
    parameters: dict[str, Any] = {}
    for tool in data["tools"]:
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
            tool = tool["function"]  # as the OpenAI API wraps it
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or not tool["name"]:
            raise GrammarError('tools: every tool needs a "name"')
        schema = tool.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(schema, dict) or schema.get("type", "object") != "object":
            raise GrammarError(f"tools: parameters of {tool['name']!r} are no schema of an object")
        if tool["name"] in parameters:
            raise GrammarError(f"tools: two tools are called {tool['name']!r}")
        parameters[tool["name"]] = {"type": "object", **schema}
    if not 1 <= len(parameters) <= MAX_TOOLS:
        raise GrammarError(f"tools: give 1 to {MAX_TOOLS} tools")
    choice = data.get("choice", "auto")
    if choice not in ("auto", "required") and choice not in parameters:
        raise GrammarError(f"tools: choice={choice!r}: use auto, required or a tool's name")
    style = data.get("format", "hermes")
    if style not in FORMATS:
        raise GrammarError(f"tools: format={style!r}: use auto, {', '.join(FORMATS)}")
    if choice in parameters:
        parameters = {choice: parameters[choice]}
    answer = data.get("answer")
    if answer is not None and (choice != "auto" or not isinstance(answer, dict)):
        raise GrammarError('tools: "answer" is a schema, and goes with choice="auto"')
    is_parallel = data.get("parallel", True) is True
    return Tools(parameters, choice, FORMATS[style], is_parallel, answer)


def tools_grammar(tools: Tools, vocabulary: Vocabulary) -> str:
    """Return the Lark grammar of the calls from their trigger on; of all of it when a call has to
    come first."""
    style = tools.style
    opening = style.opening
    if tools.is_free_first:
        opening = opening.removeprefix(style.trigger)
    lines = [
        f"call: {' | '.join(f'call{i}' for i in range(len(tools.parameters)))}",
        *(_call_rules(index, name, tools) for index, name in enumerate(tools.parameters)),
    ]
    first, again = _spelled(opening, vocabulary), _spelled(style.opening, vocabulary)
    closing, between = _spelled(style.closing, vocabulary), literal(style.between)
    if style.is_list:
        more = f"({between} call)*" if tools.parallel else ""
        start = f"{first} call {more} {closing}"
    else:
        more = f"({between} {again} call {closing})*" if tools.parallel else ""
        start = f"{first} call {closing} {more}"
    if tools.answer is not None:
        start = f"({start}) | answer"
        lines.append(f"answer: {json_rule(normalise(tools.answer), _OPTIONS)}")
    return "\n".join([f"start: {start}", *lines]) + "\n"


class ToolValidator:
    """Checks the arguments of every call in a text."""

    def __init__(self, tools: Tools) -> None:
        self._style = tools.style
        self._validators = {
            name: FinalValidator(schema) for name, schema in tools.parameters.items()
        }
        self._answer = None if tools.answer is None else FinalValidator(tools.answer)

    def check(self, text: str) -> Failure | None:
        """Return the first arguments that are not valid, at their place in the text."""
        calls = find_calls(text, self._style)
        if not calls and self._answer is not None:
            return self._answer.check(text)
        for call in calls:
            validator = self._validators.get(call.name)
            if validator is None:
                return Failure(("name",), call.start, call.end, f"no tool {call.name!r}")
            failure = validator.check(call.arguments)
            if failure is not None:
                return failure._replace(
                    start=failure.start + call.arguments_at,
                    end=failure.end + call.arguments_at,
                    message=f"arguments of {call.name}: {failure.message}",
                )
        return None


def _call_rules(index: int, name: str, tools: Tools) -> str:
    head = f'{{"name": {json.dumps(name)}, "{tools.style.arguments}": '
    schema = normalise(tools.parameters[name])
    return (
        f'call{index}: {literal(head)} arguments{index} "}}"\n'
        f"arguments{index}: {json_rule(schema, _OPTIONS)}"
    )


def _spelled(text: str, vocabulary: Vocabulary) -> str:
    """Return an expression for a text that may hold control tokens, which no literal matches."""
    for name in TOOL_MARKS:
        token_id = vocabulary.control_id(name)
        if token_id is not None and name in text:
            before, _, after = text.partition(name)
            parts = [_spelled(before, vocabulary), f"<[{token_id}]>", _spelled(after, vocabulary)]
            return " ".join(part for part in parts if part != '""')
    return literal(text)
