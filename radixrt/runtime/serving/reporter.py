"""What a runtime process says on standard error: one line an event, as text or as JSON.

On a terminal the phase that goes on has a line of its own that moves until it is over.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from radixrt.runtime.wire import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from radixrt.runtime.serving.gateway_process import HttpService


class Reporter:
    """Writes events with the seconds since the start. As a context it leaves the terminal as it
    was, whatever happens."""

    def __init__(self, log_format: Literal["text", "json"], stream: TextIO = sys.stderr) -> None:
        self._is_json = log_format == "json"
        self._stream = stream
        self._began = time.monotonic()
        self._console: Console | None = None
        self._status: Status | None = None
        if not self._is_json and stream.isatty():
            self._console = _console(stream)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_phase()

    def event(self, name: str, text: str = "", **fields: object) -> None:
        """Write one event."""
        if self._is_json:
            line = {"time": time.time(), "event": name, "text": text, **fields}
            self._write(json.dumps(line, default=str))
        else:
            details = [text, *(f"{key} {value}" for key, value in fields.items())]
            told = ", ".join(detail for detail in details if detail)
            seconds = time.monotonic() - self._began
            self._write(f"radixrt {seconds:7.2f} s  {name}{': ' if told else ''}{told}")

    def progress(self, progress: Progress) -> None:
        """Write a phase of the engine's start, which goes on until the next event."""
        self._end_phase()
        self.event(progress.phase, progress.detail)
        if self._console is not None:
            self._status = self._console.status(progress.phase, spinner="dots")
            self._status.start()

    def ready(
        self, info: dict[str, Any], endpoint: str, url: str | None, http: HttpService | None = None
    ) -> None:
        """Say what is served and how it is reached. ``info`` is that of ``wire.Ready``."""
        self._end_phase()
        where = {"endpoint": endpoint} | ({} if url is None else {"url": url})
        self.event(
            "ready",
            str(info.get("model", "")),
            device=info.get("device", ""),
            dtype=info.get("dtype", ""),
            attention=_chosen(info, "attention"),
            ops=_chosen(info, "ops"),
            kv_tokens=info.get("kv_tokens", ""),
            **({"tiers": info["tiers"]} if self._is_json and "tiers" in info else {}),
            max_running=info.get("max_running", ""),
            **where,
        )
        if not self._is_json:
            for name, text in summary(info, endpoint):
                self._write(f"    {name:<10}{text}")
            for name, text in [] if url is None or http is None else how_to_ask(info, url, http):
                self._write(f"    {name:<10}{text}")

    def _write(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)

    def _end_phase(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def summary(info: dict[str, Any], endpoint: str) -> list[tuple[str, str]]:
    """Return (what, text) lines about a runtime that is ready."""
    model, places = (
        str(info.get("model", "")),
        {"device": "on the device", "host": "in host memory"},
    )
    tiers: dict[str, int] = info.get("tiers", {"device": info.get("kv_tokens", 0)})
    held = ", ".join(f"{n:,} {places.get(name, f'on {name}')}" for name, n in tiers.items())
    lines = [
        ("model", f"{model} in {info.get('dtype', '')} on {info.get('device', '')}"),
        ("KV", f"tokens: {held}"),
    ]
    context = int(info.get("max_context", 0))
    if context:
        whole = max(1, int(info.get("kv_tokens", 0)) // context)
        at_once = int(info.get("max_running", 0))
        lines.append(
            ("requests", f"{at_once:,} at once; {min(whole, at_once):,} of {context:,} tokens each")
        )
    lines.append(("ZeroMQ", endpoint))
    return lines


def how_to_ask(info: dict[str, Any], url: str, http: HttpService) -> list[tuple[str, str]]:
    """Return (what, text) lines about HTTP, the last of them to be copied."""
    model = http.model_name or str(info.get("model", ""))
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    key = ' -H "Authorization: Bearer $RADIXRT_API_KEY"' if http.needs_key else ""
    where = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key}"
    curl = f"{where} -d {shlex.quote(body)}"
    return [("HTTP", f"{url}/v1"), ("page", f"{url}/"), ("try", curl)]


def _chosen(info: dict[str, Any], part: str) -> str:
    """Return which provider of a part the engine chose and why: "triton (…)"."""
    name, why = str(info.get(part, "")), str(info.get(f"{part}_why", ""))
    return f"{name} ({why})" if why else name


def _console(stream: TextIO) -> Console | None:
    try:
        from rich.console import Console
    except ImportError:  # plain lines say the same
        return None
    return Console(file=stream)
