"""The sections of their answers in which models reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The tags around a reasoning section, which an answer begins with."""

    opening: str
    closing: str


THINK = ReasoningFormat("<think>", "</think>")

REASONING_MARKS = (THINK.opening, THINK.closing)
"""Texts around reasoning that are control tokens of some models."""


def reasoning_of_template(template: str | None) -> ReasoningFormat | None:
    """Return the tags that a chat template writes; None when it knows no reasoning."""
    return THINK if template is not None and THINK.closing in template else None
