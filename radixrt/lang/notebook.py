"""How a state looks in a notebook."""

from __future__ import annotations

from html import escape

from radixrt.errors import RadixError
from radixrt.lang.execution import Execution
from radixrt.lang.nodes import Choice
from radixrt.lang.transcript import CallStep, RoleStep, Step
from radixrt.protocol import Span

_STYLES = {
    "text": "",
    "role": "color:#888",
    "generated": "background:#d7f0dd;color:#111",
    "chosen": "background:#fdeec2;color:#111",
}


def html(execution: Execution) -> str:
    """Return the text with roles, generated and chosen spans marked; a span's tooltip says how many
    of its tokens came from the cache.

    Waits for no generation and never raises: what is missing is shown as such.
    """
    calls = [step.call for step in execution.transcript.steps if isinstance(step, CallStep)]
    note = next((str(call.error) for call in calls if call.error is not None), "")
    own = tuple(_own_span(step) for step in execution.transcript.steps)
    if execution.body.is_running or note or not all(call.is_done for call in calls):
        return _page(own, note)
    try:
        return _page(execution.spans(), note)
    except RadixError as error:
        return _page(own, str(error))


def _own_span(step: Step) -> Span:
    """A step as the client knows it: roles unrendered, nothing known of tokens."""
    match step:
        case RoleStep():
            return Span("role", f"[{'' if step.begins else '/'}{step.role}]", 0, 0)
        case CallStep():
            if step.call.error is not None:
                text = "✗"
            elif step.call.is_done:
                text = step.text
            else:
                text = "".join(chunk.text for chunk in step.call.chunks) + " …"
            return Span("chosen" if isinstance(step.node, Choice) else "generated", text, 0, 0)
        case _:
            return Span("text", step.text, 0, 0)


def _page(spans: tuple[Span, ...], note: str) -> str:
    body = "".join(_span(span) for span in spans)
    error = f'<div style="color:#b00">{escape(note)}</div>' if note else ""
    return f'<pre style="white-space:pre-wrap">{body}</pre>{error}'


def _span(span: Span) -> str:
    title = (
        f' title="{span.kind}: {span.num_tokens} tokens, {span.cached_tokens} cached"'
        if span.num_tokens
        else ""
    )
    cached = "border-bottom:2px solid #4a90d9" if span.cached_tokens else ""
    style = ";".join(rule for rule in (_STYLES[span.kind], cached) if rule)
    marked = f' style="{style}"' if style else ""
    return f"<span{marked}{title}>{escape(span.text)}</span>"
