"""Chat messages as expressions. The model's own chat template renders them, at the runtime."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from radixrt.lang.nodes import Expr, ExprList, RoleBegin, RoleEnd, Tools, expression
from radixrt.lang.toolset import definitions_part, result_text


def message(role: str, expr: Expr | str | None = None) -> ExprList:
    """Return a whole message of a role; without ``expr`` an empty one."""
    content = () if expr is None else (expression(expr),)
    return ExprList((RoleBegin(role), *content, RoleEnd(role)))


def system(expr: Expr | str | None = None) -> ExprList:
    """Return a system message with ``expr`` as its content."""
    return message("system", expr)


def user(expr: Expr | str | None = None) -> ExprList:
    """Return a user message with ``expr`` as its content."""
    return message("user", expr)


def assistant(expr: Expr | str | None = None) -> ExprList:
    """Return an assistant message with ``expr``, often a ``gen``, as its content."""
    return message("assistant", expr)


def system_begin() -> RoleBegin:
    """Return the start of a system message; end it with ``system_end()``."""
    return RoleBegin("system")


def system_end() -> RoleEnd:
    """Return the end of a system message."""
    return RoleEnd("system")


def user_begin() -> RoleBegin:
    """Return the start of a user message; end it with ``user_end()``."""
    return RoleBegin("user")


def user_end() -> RoleEnd:
    """Return the end of a user message."""
    return RoleEnd("user")


def assistant_begin() -> RoleBegin:
    """Return the start of an assistant message; end it with ``assistant_end()``."""
    return RoleBegin("assistant")


def assistant_end() -> RoleEnd:
    """Return the end of an assistant message."""
    return RoleEnd("assistant")


def tool(result: Any = None) -> ExprList:
    """Return a message with a tool's result: an expression or text as it is, else its JSON."""
    if result is not None and not isinstance(result, Expr | str):
        result = result_text(result)
    return message("tool", result)


def tools(definitions: Iterable[Any]) -> Tools:
    """Return the definitions of tools, as ``gen(tools=…)`` takes them, for the prompt.

    Append it before the first message: the model's chat template writes the tools where the model
    expects them. Models whose template knows no tools get them by text of your own.
    """
    return Tools(definitions_part(definitions))
