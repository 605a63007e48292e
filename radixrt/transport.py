"""How messages travel between a client and the runtime.

``ZmqTransport`` talks to a runtime process, ``LocalTransport`` to one in the same process. Both
carry lists of protocol messages in order; a list handed to one ``send`` is one ZeroMQ message.

The transport opens no session: its user sends ``Hello`` and reads ``Welcome``. ``close`` says
``Goodbye``. Pings are the transport's own affair (sequence numbers below zero are its own).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from radixrt.curve import ClientCurve, Handshake
from radixrt.errors import (
    InvalidArgument,
    ProtocolError,
    RuntimeUnavailable,
    TransportError,
)
from radixrt.protocol import (
    MAX_FRAME_BYTES,
    Goodbye,
    Hello,
    Ping,
    Pong,
    ToClient,
    ToRuntime,
    Welcome,
    decode,
    encode,
)

if TYPE_CHECKING:
    import zmq

HIGH_WATER_MARK = 10_000
"""Messages (not frames) that may wait in one direction before ``send`` refuses more."""

MISSED_PINGS = 3
"""Unanswered pings after which a peer counts as gone."""


class Transport(Protocol):
    """A connection to a runtime. ``send`` from any thread; ``receive`` from one."""

    def send(self, messages: Sequence[ToRuntime]) -> None:
        """Hand over messages without blocking; ``TransportError`` when closed, broken or full."""

    def receive(self, timeout_s: float) -> list[ToClient]:
        """Return what has arrived, in order; ``[]`` after ``timeout_s`` seconds without anything.

        Raises ``TransportError`` once the connection is closed or broken and all messages that came
        before were returned.
        """

    def close(self) -> None:
        """Say ``Goodbye`` and end; idempotent. A ``receive`` in progress is woken."""


class _Inbox:
    """Messages to be received, and the error that follows the last of them."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._error: TransportError | None = None

    @property
    def error(self) -> TransportError | None:
        return self._error

    def put(self, messages: list[Any]) -> None:
        if messages:
            self._queue.put(messages)

    def fail(self, error: TransportError) -> None:
        """Let every later ``get`` raise once what was put before is gone; the first error stays."""
        if self._error is None:
            self._error = error
        self._queue.put(None)

    def get(self, timeout_s: float) -> list[Any]:
        messages: list[Any] = []
        try:
            item = self._queue.get(timeout=timeout_s) if timeout_s > 0 else self._queue.get_nowait()
            while item is not None:
                messages.extend(item)
                item = self._queue.get_nowait()
        except Empty:
            return messages
        # The end mark: leave it for the next call, or raise when nothing came before it.
        self._queue.put(None)
        if not messages and self._error is not None:
            raise type(self._error)(*self._error.args) from self._error
        return messages


# ---------------------------------------------------------------- same process


class LocalTransport:
    """A connection to a runtime in this process: objects pass through queues, unencoded.

    ``deliver`` takes the lists handed to ``send``, on the sender's thread; ``put`` is the way back.
    """

    def __init__(self, deliver: Callable[[list[ToRuntime]], None]) -> None:
        self._deliver = deliver
        self._inbox = _Inbox()
        self._lock = threading.Lock()
        self._closed = False

    @staticmethod
    def pair() -> tuple[LocalTransport, LocalPeer]:
        """Return a transport and its other end, for scripted runtimes."""
        peer = LocalPeer()
        transport = LocalTransport(peer._inbox.put)
        peer._transport = transport
        return transport, peer

    def send(self, messages: Sequence[ToRuntime]) -> None:
        with self._lock:  # one order for all senders
            if self._closed:
                raise TransportError("the transport is closed")
            if self._inbox.error is not None:
                raise TransportError(str(self._inbox.error))
            self._deliver(list(messages))

    def receive(self, timeout_s: float) -> list[ToClient]:
        return self._inbox.get(timeout_s)

    def put(self, messages: Sequence[ToClient]) -> None:
        """Make messages available to ``receive`` (called by the runtime's side)."""
        self._inbox.put(list(messages))

    def fail(self, error: TransportError) -> None:
        """End the connection from the runtime's side: ``receive`` and ``send`` raise ``error``."""
        self._inbox.fail(error)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._inbox.error is None:
                self._deliver([Goodbye()])
        self._inbox.fail(TransportError("the transport is closed"))


class LocalPeer:
    """The runtime's end of a ``LocalTransport``: a script receives and answers by hand."""

    def __init__(self) -> None:
        self._inbox = _Inbox()
        self._transport: LocalTransport | None = None

    def receive(self, timeout_s: float) -> list[ToRuntime]:
        """Return what the client sent, in order; ``[]`` after ``timeout_s`` seconds of silence.

        A client that closed its transport sent ``Goodbye`` last.
        """
        return self._inbox.get(timeout_s)

    def send(self, messages: Sequence[ToClient]) -> None:
        """Send messages to the client."""
        assert self._transport is not None
        self._transport.put(messages)

    def fail(self, error: TransportError) -> None:
        """Break the connection: the client's ``send`` and ``receive`` raise ``error``."""
        assert self._transport is not None
        self._transport.fail(error)


# ---------------------------------------------------------------- ZeroMQ


class ZmqTransport:
    """A connection to a runtime process over ZeroMQ (``ipc://…`` or ``tcp://…``).

    ``timeout_s`` bounds how long the first answer, and every message that cannot be handed to the
    socket, may take; afterwards the transport is broken: ``RuntimeUnavailable``. A peer that wants
    other keys than ``curve`` breaks it as soon as it is known: ``KeysRefused``. An open session is
    watched with pings at the interval that ``Welcome`` names.

    The socket belongs to one thread of its own, woken through a pipe, so ``send`` costs its caller
    the encoding and no wait.
    """

    def __init__(
        self, endpoint: str, *, timeout_s: float = 10.0, curve: ClientCurve | None = None
    ) -> None:
        if not endpoint.startswith(("ipc://", "tcp://")):
            raise InvalidArgument("endpoint", endpoint, "use ipc://PATH or tcp://HOST:PORT")
        if not timeout_s > 0:
            raise InvalidArgument("timeout_s", timeout_s, "use a positive number of seconds")
        self._loop = _DealerLoop(endpoint, timeout_s, curve)
        self._thread = threading.Thread(
            target=self._loop.run, name=f"radixrt-transport {endpoint}", daemon=True
        )
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._loop.stop)

    def send(self, messages: Sequence[ToRuntime]) -> None:
        frames = [encode(message) for message in messages]
        for frame, message in zip(frames, messages, strict=True):
            if len(frame) > MAX_FRAME_BYTES:
                raise InvalidArgument(
                    type(message).__name__,
                    f"{len(frame)} bytes",
                    f"a message holds at most {MAX_FRAME_BYTES} bytes; send it in pieces",
                )
        if frames:
            awaits_answer = any(isinstance(message, Hello) for message in messages)
            self._loop.submit(frames, awaits_answer=awaits_answer)

    def receive(self, timeout_s: float) -> list[ToClient]:
        return self._loop.inbox.get(timeout_s)

    def close(self) -> None:
        self._finalizer()
        self._thread.join(timeout=2 * LINGER_MS / 1000)


LINGER_MS = 1000


def connect_dealer(
    context: zmq.Context[zmq.Socket[bytes]],
    endpoint: str,
    *,
    timeout_s: float,
    curve: ClientCurve | None = None,
) -> zmq.Socket[bytes]:
    """Return a client's socket, connecting. Raises ``ZMQError`` and ``ValueError``."""
    import zmq

    socket = context.socket(zmq.DEALER)
    socket.linger = LINGER_MS
    socket.sndhwm = socket.rcvhwm = HIGH_WATER_MARK
    socket.sndtimeo = int(timeout_s * 1000)
    socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.set(zmq.IMMEDIATE, 1)
    socket.set(zmq.HEARTBEAT_IVL, 5_000)
    socket.set(zmq.HEARTBEAT_TIMEOUT, 15_000)
    if curve is not None:
        socket.curve_serverkey = curve.server_public.encode()
        socket.curve_publickey = curve.public.encode()
        socket.curve_secretkey = curve.secret.encode()
    socket.connect(endpoint)
    return socket


class _DealerLoop:
    """The thread that owns the DEALER socket: sends what was submitted, decodes what arrives."""

    def __init__(self, endpoint: str, timeout_s: float, curve: ClientCurve | None) -> None:
        import zmq  # late: `import radixrt` need not pay for it

        self.inbox = _Inbox()
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._outbox: deque[tuple[float, list[bytes]]] = deque()
        self._lock = threading.Lock()
        self._stopping = False
        self._welcome_due: float | None = None
        self._ping_interval_s: float | None = None
        self._next_ping = 0.0
        self._next_seq = -1
        self._unanswered: deque[tuple[int, float]] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._context = zmq.Context(io_threads=1)
        try:
            self._socket = connect_dealer(self._context, endpoint, timeout_s=timeout_s, curve=curve)
            self._handshake = Handshake(self._socket, endpoint, curve)
        except (zmq.ZMQError, ValueError) as error:
            self._dispose()
            raise TransportError(f"cannot connect to {endpoint}: {error}") from error

    # ------------------------------------------------------------ any thread

    def submit(self, frames: list[bytes], *, awaits_answer: bool) -> None:
        with self._lock:
            if self.inbox.error is not None:
                raise type(self.inbox.error)(*self.inbox.error.args)
            if self._stopping:
                raise TransportError("the transport is closed")
            if len(self._outbox) >= HIGH_WATER_MARK:
                raise TransportError(
                    f"{HIGH_WATER_MARK} messages wait for {self._endpoint}; it does not read them"
                )
            now = time.monotonic()
            self._outbox.append((now, frames))
            if awaits_answer:
                self._welcome_due = now + self._timeout_s
            self._wake()

    def stop(self) -> None:
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            self._outbox.append((time.monotonic(), [encode(Goodbye())]))
            self._wake()

    def _wake(self) -> None:
        # A full pipe has woken the thread already; a closed one has no thread to wake.
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_write, b"\0")

    # ------------------------------------------------------------ the I/O thread

    def run(self) -> None:
        try:
            self._loop()
            self.inbox.fail(TransportError("the transport is closed"))
        except TransportError as error:
            self.inbox.fail(error)
        except Exception as error:
            self.inbox.fail(TransportError(f"transport to {self._endpoint} failed: {error!r}"))
        finally:
            with self._lock:
                self._stopping = True
                self._dispose()

    def _loop(self) -> None:
        import zmq

        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        poller.register(self._handshake.socket, zmq.POLLIN)
        while True:
            # POLLOUT only while something waits: a connected socket is always writable.
            poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if self._outbox else 0))
            ready = dict(poller.poll(self._poll_ms()))
            if self._wake_read in ready:
                os.read(self._wake_read, 65536)
            if self._handshake.socket in ready or self._handshake.due is not None:
                self._handshake.read()
            self._receive_all()
            self._ping_when_due()
            self._send_all()
            if self._stopping and not self._outbox:
                return
            self._check_deadlines()

    def _poll_ms(self) -> int:
        now = time.monotonic()
        due = [now + 1.0]
        if self._outbox:
            due.append(self._outbox[0][0] + self._timeout_s)
        if self._welcome_due is not None:
            due.append(self._welcome_due)
        if self._ping_interval_s is not None:
            due.append(self._next_ping)
        if self._handshake.due is not None:
            due.append(self._handshake.due)
        return max(0, int((min(due) - now) * 1000) + 1)

    def _receive_all(self) -> None:
        import zmq

        # Asking first is cheaper than the exception of a socket that has nothing.
        while int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
            messages = []
            for frame in frames:
                try:
                    message = decode(frame)
                except ProtocolError as error:
                    raise TransportError(
                        f"{self._endpoint} does not speak radixrt: {error}"
                    ) from error
                if not isinstance(message, ToClient):
                    raise TransportError(
                        f"{self._endpoint} sent {type(message).__name__}, a client's message"
                    )
                if self._note(message):
                    messages.append(message)
            self.inbox.put(messages)

    def _note(self, message: ToClient) -> bool:
        """Take what concerns the session from a message; False when its user need not see it."""
        if isinstance(message, Pong) and message.seq < 0:
            while self._unanswered and self._unanswered[0][0] >= message.seq:
                self._unanswered.popleft()
            return False
        if isinstance(message, Welcome):
            self._ping_interval_s = message.limits.ping_interval_s
            self._next_ping = time.monotonic() + self._ping_interval_s
        elif isinstance(message, Goodbye):
            self._ping_interval_s = None
            self._unanswered.clear()
            # The runtime waits for this before it closes the connection, so nothing is lost.
            self._outbox.append((time.monotonic(), [encode(Goodbye())]))
        self._welcome_due = None
        return True

    def _ping_when_due(self) -> None:
        now = time.monotonic()
        if self._ping_interval_s is None or now < self._next_ping or self._stopping:
            return
        self._next_ping = now + self._ping_interval_s
        if len(self._outbox) < HIGH_WATER_MARK:
            self._outbox.append((now, [encode(Ping(self._next_seq))]))
        self._unanswered.append((self._next_seq, now))
        self._next_seq -= 1

    def _send_all(self) -> None:
        import zmq

        while self._outbox:
            try:
                self._socket.send_multipart(self._outbox[0][1], zmq.NOBLOCK)
            except zmq.Again:
                return
            self._outbox.popleft()

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        late = self._outbox and now - self._outbox[0][0] > (
            LINGER_MS / 1000 if self._stopping else self._timeout_s
        )
        if late or (self._welcome_due is not None and now > self._welcome_due):
            if self._stopping:
                raise TransportError("the transport is closed")
            if self._handshake.is_breaking:
                raise RuntimeUnavailable(
                    f"what listens at {self._endpoint} does not speak ZeroMQ; an HTTP port? Use "
                    "the endpoint that `radixrt serve` prints"
                )
            raise RuntimeUnavailable(
                f"nobody answers at {self._endpoint} within {self._timeout_s:g} s; "
                "is `radixrt serve` running there?"
            )
        interval = self._ping_interval_s
        if interval and self._unanswered and now - self._unanswered[0][1] > MISSED_PINGS * interval:
            raise RuntimeUnavailable(
                f"{self._endpoint} has answered no ping for {MISSED_PINGS * interval:g} s"
            )

    def _dispose(self) -> None:
        self._context.destroy(linger=LINGER_MS)
        os.close(self._wake_write)
        os.close(self._wake_read)
