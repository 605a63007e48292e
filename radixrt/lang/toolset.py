"""Tools that a model may call: from Python functions, types or schemas, to typed calls.

A function gives its name, its docstring and its signature; the values of a call are read as the
types that the signature names. A dataclass or a pydantic model is a tool whose call is an instance.
A schema is taken in the forms of OpenAI, Anthropic and MCP; its arguments stay JSON.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import orjson

from radixrt.errors import InvalidArgument, ValueRefused
from radixrt.lang.fields import field_table
from radixrt.lang.forms import FormBuilder
from radixrt.lang.reading import ResultType, result_type, split_reasoning
from radixrt.lang.scalars import PATTERNS
from radixrt.protocol import Output, Part

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_FORMATS = {pattern: name for name, pattern in PATTERNS.items()}

_TRIGGERS = ("[", "[TOOL_CALLS]", "<tool_call>", "<|python_tag|>")
"""By what calls are announced, from the call backwards."""

ToolFormat = Literal["auto", "hermes", "llama", "mistral"]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. ``parameters`` is the JSON schema of its arguments, ``read`` their types."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    read: Callable[[dict[str, Any]], Any]
    function: Callable[..., Any] | None
    is_exact: bool = True


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model asks for. ``arguments`` are typed: a dict of values for a function,
    the instance for a type, JSON for a schema; ``text`` is the JSON that the model wrote."""

    name: str
    arguments: Any
    text: str
    _function: Callable[..., Any] | None = field(repr=False, compare=False, default=None)

    def call(self) -> Any:
        """Call the function with the arguments and return its result.

        Of a type this returns the instance, of an ``async def`` function the coroutine. Raises what
        the function raises, and ``InvalidArgument`` for a tool that was given as a schema.
        """
        if self._function is None:
            raise InvalidArgument(
                "tools", self.name, "it was given as a schema; call your own function"
            )
        if isinstance(self._function, type):
            return self.arguments
        return self._function(**self.arguments)


class ToolCalls(list[ToolCall]):
    """What a generation with tools gave: its calls in order (none: it answered in ``text``).

    ``text`` is what the model wrote before its first call, reasoning included.
    """

    def __init__(self, calls: Iterable[ToolCall], text: str) -> None:
        super().__init__(calls)
        self.text = text

    def __repr__(self) -> str:
        return f"ToolCalls({super().__repr__()}, text={self.text!r})"


@dataclass(frozen=True, slots=True)
class ToolSet:
    """The tools of a generation: its constraint and how its outputs are read. ``answer`` is the
    type of what the model may say instead of calling."""

    tools: Mapping[str, Tool]
    answer: ResultType | None = None
    after: str = ""

    @property
    def needs_check(self) -> bool:
        exact = all(tool.is_exact for tool in self.tools.values())
        return not exact or (self.answer is not None and not self.answer.is_exact)

    def constraint_text(self, choice: str, style: ToolFormat, parallel: bool) -> str:
        """Return the text of the protocol's ``tools`` constraint."""
        tools = [
            {"name": t.name, "description": t.description, "parameters": t.parameters}
            for t in self.tools.values()
        ]
        given: dict[str, Any] = {
            "tools": tools,
            "choice": choice,
            "format": style,
            "parallel": parallel,
        }
        if self.answer is not None:
            given["answer"] = orjson.loads(self.answer.schema)
        return orjson.dumps(given).decode()

    def value(self, output: Output) -> Any:
        """Return the calls, or the instance of a type that was given as the answer's; raises
        ``ValueRefused`` for what a type refuses."""
        if self.answer is not None and not output.tool_calls:
            return self.answer.read(split_reasoning(output.text, self.after)[1])
        calls = [_typed_call(self.tools[call.name], call.arguments) for call in output.tool_calls]
        if not calls:
            return ToolCalls([], output.text)
        before = output.text[: min(call.start for call in output.tool_calls)].rstrip()
        for trigger in _TRIGGERS:
            before = before.removesuffix(trigger).rstrip()
        return ToolCalls(calls, before)


def tool_set(tools: Iterable[Any], after: str = "", answer: ResultType | None = None) -> ToolSet:
    """Return the tools of a list. Raises ``InvalidArgument`` for what is no tool."""
    if isinstance(tools, str | Mapping) or not isinstance(tools, Iterable):
        raise InvalidArgument("tools", tools, "give a list of functions, types or schemas")
    known: dict[str, Tool] = {}
    for given in tools:
        tool = _tool(given)
        if tool.name in known:
            raise InvalidArgument("tools", tool.name, "two tools have this name; rename one")
        known[tool.name] = tool
    if not known:
        raise InvalidArgument("tools", [], "give at least one tool, or leave tools out")
    return ToolSet(known, answer, after)


def definitions_part(tools: Iterable[Any]) -> Part:
    """Return the part that hands the tools' definitions to the model's chat template."""
    definitions = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": _readable(tool.parameters),
            },
        }
        for tool in tool_set(tools).tools.values()
    ]
    return Part("tools", orjson.dumps(definitions).decode())


def result_text(result: Any) -> str:
    """Return a tool's result as a model reads it: JSON, or ``str`` of what is none."""
    try:
        return msgspec.json.encode(plain(result)).decode()
    except TypeError:
        return str(result)


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: dicts, lists and scalars. Raises ``TypeError``."""
    return msgspec.to_builtins(value, str_keys=True, enc_hook=_dumped)


def _dumped(value: Any) -> Any:
    if hasattr(value, "model_dump"):  # pydantic's models
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _tool(given: Any) -> Tool:
    if isinstance(given, Tool):
        return given
    if isinstance(given, Mapping):
        return _from_schema(given)
    if isinstance(given, type):
        return _from_type(given)
    if callable(given):
        return _from_function(given)
    raise InvalidArgument("tools", given, "give a function, a type or a schema")


def _typed_call(tool: Tool, text: str) -> ToolCall:
    try:
        arguments = tool.read(json.loads(text))
    except ValueRefused:
        raise
    except (ValueError, TypeError) as error:
        raise ValueRefused(f"{tool.name} refuses {text}: {error}") from error
    return ToolCall(tool.name, arguments, text, tool.function)


# ---------------------------------------------------------------- where tools come from


def _from_schema(given: Mapping[str, Any]) -> Tool:
    schema = given.get("function", given)
    name = schema.get("name") if isinstance(schema, Mapping) else None
    if not isinstance(name, str):
        raise InvalidArgument("tools", given, 'a schema is {"name", "description", "parameters"}')
    empty = {"type": "object", "properties": {}, "additionalProperties": False}
    keys = ("parameters", "input_schema", "inputSchema")
    parameters = next((schema[key] for key in keys if schema.get(key) is not None), empty)
    if not isinstance(parameters, Mapping):
        raise InvalidArgument("tools", name, "its parameters are no JSON schema")
    try:
        orjson.dumps(parameters)
    except TypeError as error:
        raise InvalidArgument("tools", name, f"its parameters are not JSON: {error}") from None
    description = str(schema.get("description") or "")
    return Tool(_checked_name(name), description, parameters, lambda arguments: arguments, None)


def _from_type(given: type) -> Tool:
    if field_table(given) is None and not hasattr(given, "model_fields"):
        raise InvalidArgument("tools", given, "a type as a tool has fields: use a dataclass")
    result = result_type(given)
    schema = orjson.loads(result.schema)
    name, description = _checked_name(given.__name__), _summary(given)
    return Tool(name, description, schema, result.read_parsed, given, result.is_exact)


def _from_function(function: Callable[..., Any]) -> Tool:
    name = getattr(function, "__name__", type(function).__name__)
    if name == "<lambda>":
        raise InvalidArgument("tools", function, "a tool needs a name: use def")
    target = function if hasattr(function, "__annotations__") else type(function).__call__
    try:
        hints = typing.get_type_hints(target, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
    except (NameError, TypeError, ValueError) as error:
        raise InvalidArgument(
            "tools", name, f"its signature cannot be resolved: {error}; annotate it"
        ) from None
    notes = _parameter_notes(inspect.getdoc(function) or "")
    builder = FormBuilder()
    forms, properties, required = {}, {}, []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidArgument("tools", name, f"name its parameter {parameter.name!r}: no “/”")
        form = builder.form(hints.get(parameter.name, Any))
        forms[parameter.name] = form
        note = notes.get(parameter.name)
        properties[parameter.name] = {**form.schema, "description": note} if note else form.schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    if builder.definitions:
        schema["$defs"] = builder.definitions

    def read(arguments: dict[str, Any]) -> dict[str, Any]:
        return {key: forms[key].read(value) for key, value in arguments.items()}

    description = _summary(function)
    return Tool(_checked_name(name), description, schema, read, function, builder.is_exact)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidArgument("tools", name, "a tool's name is letters, digits, _, - and .")
    return name


# ---------------------------------------------------------------- docstrings and prompts


def _summary(given: Any) -> str:
    """The docstring up to its first section about parameters."""
    if isinstance(given, type) and "__doc__" not in vars(given):
        return ""
    text = inspect.getdoc(given) or ""
    if text.startswith(f"{getattr(given, '__name__', '')}("):
        return ""  # a dataclass writes its signature where it has no docstring
    head = re.split(r"^\s*(?:(?:Args|Arguments|Parameters|Returns|Raises):|:)", text, flags=re.M)[0]
    return " ".join(head.split())


def _parameter_notes(docstring: str) -> dict[str, str]:
    """What a docstring says of parameters, in Google's or Sphinx's way."""
    notes: dict[str, str] = {}
    for name, note in re.findall(r"^\s*:param (?:[^:\s]+ )?(\w+):\s*(.+)$", docstring, re.M):
        notes[name] = note.strip()
    found = re.search(r"^(?:Args|Arguments|Parameters):\n((?:[ \t]+.*\n?|\n)+)", docstring, re.M)
    if found is not None:
        for name, note in re.findall(r"^\s+(\w+)(?: \([^)]*\))?:\s*(.+)$", found[1], re.M):
            notes[name] = note.strip()
    return notes


def _readable(schema: Any) -> Any:
    """A schema as a model reads it: the name of a format instead of a long pattern."""
    if isinstance(schema, list | tuple):
        return [_readable(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    readable = {key: _readable(value) for key, value in schema.items()}
    if (name := _FORMATS.get(schema.get("pattern", ""))) is not None:
        del readable["pattern"]
        readable["format"] = name
    return readable
