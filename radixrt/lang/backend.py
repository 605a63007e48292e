"""Runtimes as programs see them: connected to over an endpoint, or running in this process."""

from __future__ import annotations

import atexit
import functools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from radixrt import inspection
from radixrt.curve import read_curve
from radixrt.errors import InvalidArgument
from radixrt.inspection import Inspection, NodePath
from radixrt.lang.client import Client
from radixrt.lang.explain import Explanation, explanation
from radixrt.lang.trace_file import TRACE_VARIABLE, TraceFile
from radixrt.lang.tracing import Tracer, Tracing
from radixrt.protocol import Explain, Flush, Inspect, ModelInfo, Reply, Restore, Save, Stats
from radixrt.transport import Transport, ZmqTransport

_MAX_CHECKS = 8
"""Values that types with code of their own read at the same time."""

_MAX_BODIES = 64
"""Bodies of ``arun`` that run at the same time; more wait for a thread."""

_QUESTION_TIMEOUT_S = 60.0
_STORE_TIMEOUT_S = 3600.0


class Backend:
    """A session with a runtime. Pass it as ``backend=`` or to ``set_default_backend``.

    Use it as a context manager, or call ``shutdown``. Threads may share it.
    """

    def __init__(
        self, transport: Transport, *, timeout_s: float = 10.0, tracer: Tracer | None = None
    ) -> None:
        """Open a session over ``transport``; ``RuntimeUnavailable`` without an answer in time.

        ``tracer`` is told what programs do; without one, where ``RADIXRT_TRACE`` names a directory,
        it is written there for ``radixrt trace``.
        """
        self.client = Client(transport, timeout_s=timeout_s)
        self._lock = threading.Lock()
        self._bodies: ThreadPoolExecutor | None = None
        self._checks: ThreadPoolExecutor | None = None
        self._closers: list[Callable[[], None]] = [self.client.close]
        if tracer is None and (folder := os.environ.get(TRACE_VARIABLE)):
            tracer = own = TraceFile(Path(folder))
            self._closers.append(own.close)
        self.tracing = None if tracer is None else Tracing(tracer, self.model.name)
        self._finalizer = weakref.finalize(self, _close_elsewhere, self._closers)
        self._finalizer.atexit = False
        self._at_exit = functools.partial(_shutdown_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    @property
    def model(self) -> ModelInfo:
        """The model that is served."""
        return self.client.model

    @property
    def is_open(self) -> bool:
        return self.client.is_open

    @property
    def bodies(self) -> ThreadPoolExecutor:
        """The threads on which ``arun`` runs bodies that are not coroutines."""
        with self._lock:
            if self._bodies is None:
                self._bodies = ThreadPoolExecutor(_MAX_BODIES, "radixrt-body")
            return self._bodies

    @property
    def checks(self) -> ThreadPoolExecutor:
        """The threads on which types read what was generated for them."""
        with self._lock:
            if self._checks is None:
                self._checks = ThreadPoolExecutor(_MAX_CHECKS, "radixrt-check")
            return self._checks

    def get_model_name(self) -> str:
        """Return the name of the model that is served."""
        return self.model.name

    def flush_cache(self) -> bool:
        """Drop every cached token that no running call uses; returns True."""
        client = self.client
        call = client.new_call(Reply)
        client.ask(Flush(call.id), call, _QUESTION_TIMEOUT_S)
        return True

    def explain(self, last: int = 16) -> Explanation:
        """Return what became of the prompts of the runtime's latest calls, of all clients that use
        the cache everybody shares."""
        client = self.client
        call = client.new_call(Reply)
        reply = client.ask(Explain(call.id, None, last), call, _QUESTION_TIMEOUT_S)
        return explanation(reply.data["calls"])

    def inspect(self, since: int = 0, *, max_nodes: int = 1000, texts: bool = False) -> Inspection:
        """Return what there is to see of the runtime: the tree of cached prefixes, the requests
        that run, the tiers. With ``since``, the ``generation`` of an earlier answer, what of the
        tree has changed; ``texts`` decodes how its nodes begin."""
        client = self.client
        call = client.new_call(Reply)
        question = Inspect(call.id, since, max_nodes, texts)
        return inspection.read(client.ask(question, call, _QUESTION_TIMEOUT_S).data)

    def inspect_node(self, node_id: int, *, texts: bool = True) -> NodePath:
        """Return the way to a node that ``inspect`` has told of, from the first token on."""
        client = self.client
        call = client.new_call(Reply)
        question = Inspect(call.id, texts=texts, node=node_id)
        return inspection.read_path(client.ask(question, call, _QUESTION_TIMEOUT_S).data)

    def save(self, path: str | Path) -> int:
        """Write what is cached to a directory of the runtime's machine; return the pages."""
        client = self.client
        call = client.new_call(Reply)
        reply = client.ask(Save(call.id, str(path)), call, _STORE_TIMEOUT_S)
        return int(reply.data["pages"])

    def restore(self, path: str | Path) -> int:
        """Read what ``save`` wrote into the runtime's caches; return the pages."""
        client = self.client
        call = client.new_call(Reply)
        reply = client.ask(Restore(call.id, str(path)), call, _STORE_TIMEOUT_S)
        return int(reply.data["pages"])

    def get_server_info(self) -> dict[str, Any]:
        """Return the runtime's counters, with what it serves under ``"model"``."""
        client = self.client
        call = client.new_call(Reply)
        data = client.ask(Stats(call.id), call, _QUESTION_TIMEOUT_S).data
        model = {name: getattr(self.model, name) for name in ModelInfo.__dataclass_fields__}
        return {"model": model, **data}

    def shutdown(self) -> None:
        """End the session, and a runtime of this process with it; calls that are still waited for
        end with an error. Idempotent."""
        self._finalizer.detach()
        atexit.unregister(self._at_exit)
        while self._closers:
            self._closers.pop(0)()
        with self._lock:
            for pool in (self._bodies, self._checks):
                if pool is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
            self._bodies = self._checks = None

    close = shutdown

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()


def _close_elsewhere(closers: list[Callable[[], None]]) -> None:
    """Close what the garbage collector has dropped. It runs anywhere, also under the locks that
    closing needs, so closing has a thread of its own."""

    def close() -> None:
        for closer in closers:
            closer()

    threading.Thread(target=close, name="radixrt-close", daemon=True).start()


def _shutdown_if_alive(reference: weakref.ref[Backend]) -> None:
    backend = reference()
    if backend is not None:
        backend.shutdown()


class RuntimeEndpoint(Backend):
    """A runtime process at an endpoint, ``ipc://PATH`` or ``tcp://HOST:PORT``."""

    def __init__(
        self,
        endpoint: str,
        *,
        timeout_s: float = 10.0,
        server_key: str | Path | None = None,
        client_key: str | Path | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Connect. Raises ``RuntimeUnavailable`` when nobody answers within ``timeout_s`` seconds.

        For an encrypted ``tcp://`` endpoint ``server_key`` is the server's public key, as text or
        its file, and ``client_key`` the file with your own pair; ``KeysRefused`` when it wants
        others.
        """
        if not isinstance(endpoint, str) or not endpoint.startswith(("ipc://", "tcp://")):
            way_out = "use the endpoint that `radixrt serve` prints: ipc:// or tcp://"
            if str(endpoint).startswith(("http://", "https://")):
                way_out += "; an HTTP address is for radixrt.OpenAI('http://HOST:PORT/v1')"
            raise InvalidArgument("endpoint", endpoint, way_out)
        self.endpoint_url = endpoint
        curve = read_curve(server_key, client_key, endpoint=endpoint)
        transport = ZmqTransport(endpoint, timeout_s=timeout_s, curve=curve)
        # The transport notices first that nobody answers, and knows where.
        super().__init__(transport, timeout_s=timeout_s + 1.0, tracer=tracer)


class Runtime(Backend):
    """A runtime in this process, on threads of its own.

    ``model`` is a model directory; None is the model that ships. Other options are those of
    ``radixrt.config.RuntimeConfig``. ``shutdown`` ends it.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        model_path: str | Path | None = None,
        tracer: Tracer | None = None,
        **options: Any,
    ) -> None:
        """Start it; returns when the model serves. ``tracer`` is told what programs do.

        ``model_path`` is SGLang's name of ``model``. Raises ``ConfigError``, ``ModelError`` or what
        else the runtime cannot start with.
        """
        if model is not None and model_path is not None:
            raise InvalidArgument("model_path", model_path, "it is another name of model; give one")
        from radixrt.local import start_local  # late: most clients start none

        runtime = start_local(model=model if model is not None else model_path, **options)
        try:
            super().__init__(runtime.transport(), tracer=tracer)
        except BaseException:
            runtime.shutdown()
            raise
        self._closers.append(runtime.shutdown)


def connect(
    endpoint: str,
    *,
    timeout_s: float = 10.0,
    server_key: str | Path | None = None,
    client_key: str | Path | None = None,
    tracer: Tracer | None = None,
) -> RuntimeEndpoint:
    """Return a session with the runtime at ``endpoint`` (``ipc://…`` or ``tcp://…``), as
    ``RuntimeEndpoint`` opens it."""
    return RuntimeEndpoint(
        endpoint,
        timeout_s=timeout_s,
        server_key=server_key,
        client_key=client_key,
        tracer=tracer,
    )


class DefaultBackend:
    """The backend of programs that are run without one."""

    def __init__(self) -> None:
        self.backend: Backend | None = None

    def choose(self, backend: Backend | None) -> Backend:
        """Return the one given, else the default; ``InvalidArgument`` without either."""
        chosen = self.backend if backend is None else backend
        if not isinstance(chosen, Backend):
            raise InvalidArgument(
                "backend",
                chosen,
                "pass connect(endpoint) or Runtime(), or call set_default_backend once",
            )
        return chosen


default = DefaultBackend()
"""The only state of this package that programs share; an explicit ``backend=`` always wins."""


def set_default_backend(backend: Backend | None) -> None:
    """Make ``backend`` the one that programs use when they are run without ``backend=``."""
    default.backend = None if backend is None else default.choose(backend)


def get_default_backend() -> Backend | None:
    """Return what ``set_default_backend`` was given last."""
    return default.backend


def flush_cache(backend: Backend | None = None) -> bool:
    """Drop every cached token that no running call uses; False when there is no backend."""
    if backend is None and default.backend is None:
        return False
    return default.choose(backend).flush_cache()


def get_server_info(backend: Backend | None = None) -> dict[str, Any] | None:
    """Return the runtime's counters and model; None when there is no backend."""
    if backend is None and default.backend is None:
        return None
    return default.choose(backend).get_server_info()


def save(path: str | Path, backend: Backend | None = None) -> int:
    """Write what the runtime has cached to a directory of its machine; return the pages."""
    return default.choose(backend).save(path)


def restore(path: str | Path, backend: Backend | None = None) -> int:
    """Read what ``save`` wrote into the runtime's caches; return the pages."""
    return default.choose(backend).restore(path)


def shutdown(backend: Backend | None = None) -> None:
    """End a backend (the default one), and the runtime with it when it runs in this process."""
    if backend is None and default.backend is None:
        return
    chosen = default.choose(backend)
    chosen.shutdown()
    if default.backend is chosen:
        default.backend = None
