"""Tools of chat requests: what may be called becomes a constraint, so a call is generated under its
schema."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from radixrt.gateway.errors import invalid
from radixrt.protocol import Constraint

_ID_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request. ``choice`` is ``auto``, ``required`` or the name of one; ``legacy``:
    answers have a ``function_call``."""

    tools: list[dict[str, Any]]
    choice: str
    parallel: bool = True
    legacy: bool = False

    @property
    def is_named(self) -> bool:
        """Whether a certain tool has to be called."""
        return self.choice not in ("auto", "required")

    def constraint(self, other: Constraint | None) -> Constraint:
        """Return what binds the text. ``other`` is what an answer without calls has to match.

        Raises ``ApiError`` when the two cannot be had together.
        """
        data: dict[str, Any] = {
            "tools": [tool["function"] for tool in self.tools],
            "choice": self.choice,
            "parallel": self.parallel and not self.legacy,
        }
        if other is not None:
            if other.kind != "json_schema" or self.choice != "auto":
                raise invalid(
                    "tools",
                    "they go with response_format of json_schema or json_object and tool_choice "
                    "auto, and with no other constraint",
                    "conflict",
                )
            data["answer"] = orjson.loads(other.text)
        return Constraint("tools", orjson.dumps(data).decode())


def tool_use(
    tools: Sequence[dict[str, Any]] | None,
    choice: str | dict[str, Any] | None,
    parallel: bool | None,
    functions: Sequence[dict[str, Any]] | None = None,
    function_call: str | dict[str, Any] | None = None,
) -> ToolUse | None:
    """Return what may be called; None for nothing. Raises ``ApiError``."""
    legacy = bool(functions)
    if functions:
        if tools:
            raise invalid("functions", "give either functions or tools", "conflict")
        tools = [{"type": "function", "function": function} for function in functions]
        choice = function_call
    if not tools:
        if choice not in (None, "auto", "none"):
            raise invalid("tool_choice", "there are no tools to choose from; give tools")
        return None
    checked = [_tool(index, tool) for index, tool in enumerate(tools)]
    chosen, allowed = _choice(choice)
    names = [tool["function"]["name"] for tool in checked]
    if allowed is not None:
        checked = [tool for tool in checked if tool["function"]["name"] in allowed]
    if chosen == "none":
        return None
    unknown = ({*(allowed or ())} | ({chosen} - {"auto", "required"})) - set(names)
    if unknown or not checked:
        named = min(unknown, default="")
        raise invalid("tool_choice", f"{named!r} is not among the tools: {', '.join(names)}")
    return ToolUse(checked, chosen, parallel is not False, legacy)


def _tool(index: int, tool: dict[str, Any]) -> dict[str, Any]:
    where = f"tools[{index}]"
    if tool.get("type", "function") != "function":
        raise invalid(f"{where}.type", f"{str(tool['type'])[:60]!r} is not supported; use function")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(f"{where}.function.name", "give the function's name")
    if not 1 <= len(function["name"]) <= 256:
        raise invalid(f"{where}.function.name", "use 1 to 256 characters")
    # What a template writes has to be the same however a client spells "nothing".
    function = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": function}


def _choice(choice: str | dict[str, Any] | None) -> tuple[str, set[str] | None]:
    """Return the choice, and the names of the tools it is limited to."""
    if choice is None:
        return "auto", None
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise invalid("tool_choice", f"{choice[:60]!r}: use auto, none, required or a function")
        return choice, None
    if choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        listed = inner.get("tools") if isinstance(inner, dict) else None
        if not isinstance(listed, list):
            raise invalid("tool_choice.allowed_tools.tools", "use a list of tools")
        names = {_named(tool) for tool in listed if isinstance(tool, dict)}
        mode = inner.get("mode", "auto")
        if mode not in ("auto", "required"):
            raise invalid("tool_choice.allowed_tools.mode", "use auto or required")
        return mode, names
    return _named(choice), None


def _named(choice: dict[str, Any]) -> str:
    inner = choice.get("function", choice)
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or name in ("auto", "none", "required", ""):
        raise invalid("tool_choice.function.name", "name one of the tools")
    return name


def call_id(tool_format: str) -> str:
    """Return a new id of a call, in the form that the model's template takes back."""
    if tool_format == "mistral":
        return "".join(secrets.choice(_ID_LETTERS) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"
