"""Executes the protocol's messages against an endpoint: a runtime's place is taken by HTTP.

The engine is one event loop on a thread of its own; nothing here needs a lock. As at a runtime,
operations of a branch run in the order sent, branches run beside each other, and every call ends in
exactly one message.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Coroutine
from typing import Any

from radixrt.errors import (
    CallFailed,
    TransportError,
    Unauthorized,
    Unsupported,
)
from radixrt.lang.openai.answer import reading
from radixrt.lang.openai.branches import Branches
from radixrt.lang.openai.dialect import DIALECTS, Dialect, dialect_of
from radixrt.lang.openai.http import Http
from radixrt.lang.openai.request import Served
from radixrt.lang.openai.settings import Settings
from radixrt.protocol import (
    MAX_FRAME_BYTES,
    Append,
    Cancel,
    Close,
    Credit,
    Failed,
    Flush,
    Generate,
    Goodbye,
    Hello,
    Hold,
    Limits,
    ModelInfo,
    Open,
    Ping,
    Pong,
    Read,
    Release,
    Reply,
    Select,
    Stats,
    ToClient,
    ToRuntime,
    Welcome,
)
from radixrt.transport import LocalTransport

_UNKNOWN_CONTEXT = 2**31 - 1
_PING_INTERVAL_S = 30.0


class Engine:
    """One session with an endpoint. ``transport`` is the client's end of it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._http = Http(settings)
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: tuple[Served, Branches] | None = None
        self.transport = LocalTransport(self._deliver)
        thread = threading.Thread(target=self._run, name="radixrt-openai", daemon=True)
        thread.start()

    # ------------------------------------------------------------ the client's threads

    def _deliver(self, messages: list[ToRuntime]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._handle_all, messages)
        except RuntimeError:  # the loop is closed
            raise TransportError("the session with the endpoint is closed") from None

    # ------------------------------------------------------------ the loop's thread

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._end())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
            self.transport.fail(TransportError("the session with the endpoint is closed"))

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session[1].end()
        await self._http.close()

    def _handle_all(self, messages: list[ToRuntime]) -> None:
        for message in messages:
            try:
                self._handle(message)
            except Exception as error:  # a bug here ends the session, never a call in silence
                self._break(TransportError(f"{type(message).__name__} failed: {error!r}"))

    def _handle(self, message: ToRuntime) -> None:
        match message:
            case Hello():
                self._spawn(self._welcome())
            case Ping():
                self._put(Pong(message.seq, 0.0))
            case Goodbye():
                self._loop.stop()
            case Open():
                self._branches.open(message)
            case Append() | Generate() | Select() | Read() | Close():
                self._branches.submit(message)
            case Cancel():
                self._branches.cancel(message.call)
            case Credit():
                self._branches.grant(message.call, message.chunks)
            case Flush():
                self._spawn(self._flush(message.call))
            case Stats():
                self._put(Reply(message.call, self._counters()))
            case Hold() | Release():
                pass  # wishes about a cache that cannot be told of them
            case _:
                name = type(message).__name__.lower()
                error = Unsupported(f"{name}: OpenAI's API shows nothing of the server's cache")
                self._fail(message.call, error)

    @property
    def _branches(self) -> Branches:
        assert self._session is not None, "nothing is sent before Welcome"
        return self._session[1]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _put(self, message: ToClient) -> None:
        self.transport.put([message])

    def _fail(self, call: int, error: CallFailed) -> None:
        self._put(Failed(call, error.code, str(error), error.retryable))

    # ------------------------------------------------------------ the session

    async def _welcome(self) -> None:
        """Ask what is served; answer ``Welcome``, or end the session with the reason."""
        try:
            served = await self._look()
        except CallFailed as error:
            self._put(Failed(None, error.code, str(error), error.retryable))
            return
        except TransportError as error:
            self._break(error)
            return
        except Exception as error:
            self._break(TransportError(f"the endpoint could not be asked: {error!r}"))
            return
        self._session = served, Branches(self._http, served, self._put)
        context = served.max_context
        limits = Limits(
            MAX_FRAME_BYTES, self._settings.max_concurrency, 2**31 - 1, context, _PING_INTERVAL_S
        )
        info = ModelInfo(served.model, served.dialect.name, 0, context, has_chat_template=True)
        self._put(Welcome(uuid.uuid4().hex, limits, info))

    def _break(self, error: TransportError) -> None:
        """End the session: nobody will say goodbye to a broken one."""
        self.transport.fail(error)
        self._loop.stop()

    async def _look(self) -> Served:
        settings = self._settings
        url = f"{settings.base_url}/models"
        entries: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(min(settings.timeout_s, 60.0)):
                data = await self._http.get(url)
            with reading(data):
                entries = [dict(entry) for entry in data["data"]]
        except Unauthorized:
            raise
        except CallFailed:
            # An endpoint without a list of models serves the one that it is asked for.
            if not settings.model:
                raise
        except TimeoutError:
            raise TransportError(f"{url} did not answer in time") from None
        if not settings.model and len(entries) != 1:
            names = ", ".join(str(entry.get("id")) for entry in entries[:20]) or "none"
            raise CallFailed(f"name the model=: {settings.base_url} serves {names}")
        model = settings.model or str(entries[0]["id"])
        entry = next((entry for entry in entries if entry.get("id") == model), {})
        owner = str(entry.get("owned_by") or (entries[0].get("owned_by") if entries else ""))
        dialect: Dialect = (
            dialect_of(owner) if settings.dialect == "auto" else DIALECTS[settings.dialect]
        )
        context = entry.get("max_model_len") or _UNKNOWN_CONTEXT
        return Served(settings, dialect, model, int(context))

    def _counters(self) -> dict[str, Any]:
        assert self._session is not None
        served, branches = self._session
        usage = branches.usage
        return {
            "base_url": self._settings.base_url,
            "dialect": served.dialect.name,
            "requests": self._http.num_requests,
            "retries": self._http.num_retries,
            "branches": len(branches),
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
        }

    async def _flush(self, call: int) -> None:
        assert self._session is not None
        try:
            path = self._session[0].dialect.flush_path
            if not path:
                raise Unsupported("OpenAI's API has no way to drop the server's cache")
            await self._http.post_raw(self._settings.server_url + path, {})
        except CallFailed as error:
            self._fail(call, error)
        else:
            self._put(Reply(call))
