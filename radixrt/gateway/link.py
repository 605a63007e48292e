"""The gateway's one connection to the runtime, on the event loop's own thread.

The socket is read where its descriptor becomes readable: no thread, no future a message. A lost
runtime is noticed by its goodbye, by the connection's end or by three unanswered pings; calls that
were under way fail then, and the link greets again until somebody answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq
import zmq.utils.monitor

from radixrt.errors import ProtocolError
from radixrt.gateway.errors import ApiError, of_failure, unavailable
from radixrt.gateway.exchange import Exchange
from radixrt.protocol import (
    Chunk,
    DescribeTokenizer,
    Failed,
    Finished,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Reply,
    State,
    ToRuntime,
    Welcome,
    decode,
    encode,
)
from radixrt.transport import MISSED_PINGS, connect_dealer

log = logging.getLogger(__name__)

TICK_S = 0.1
"""How often a link that is not open tries to greet."""

WATCH_S = 1.0
"""How often an open link looks after pings."""

_POLLIN = int(zmq.POLLIN)
"""As a number: combining flags of an enumeration makes a new one each time."""

_MAX_MESSAGES_A_ROUND = 64
"""ZeroMQ messages handled before other events of the loop get their turn."""

Question = Any
"""A message of the protocol that is answered by ``Reply``."""


class RuntimeLink:
    """Sends calls and hands their answers to whoever waits. All methods belong to the loop's
    thread."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.phase = "connecting"
        self.detail = ""
        self.welcome: Welcome | None = None
        self.tokenizer: dict[str, Any] = {}
        self._was_open = self._is_described = False
        self._watchers: list[Callable[[], None]] = []
        self._exchanges: dict[int, tuple[Exchange, int]] = {}
        self._questions: dict[int, asyncio.Future[Reply | Failed]] = {}
        self._next_call = 0
        self._next_seq = 0
        self._unanswered: list[tuple[int, float]] = []
        self._next_ping = 0.0
        self._has_greeted = False
        self._has_state = False
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] | None = None

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Connect, and stay connected until ``close``. Needs a running loop."""
        self._loop = asyncio.get_running_loop()
        self._open()
        self._timer = self._loop.call_later(0.0, self._on_timer)

    async def close(self) -> None:
        """Say goodbye and end; what is under way fails."""
        if self._is_closed:
            return
        self._is_closed = True
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self.fail_all("the gateway is shutting down")
        self._send_now([Goodbye()])
        self._disconnect()
        self._context.destroy(linger=200)

    @property
    def is_ready(self) -> bool:
        """Whether calls are taken."""
        return self.phase == "ready" and self._is_described

    @property
    def num_calls(self) -> int:
        """Generations that are not answered yet."""
        return len(self._exchanges)

    def ready_welcome(self) -> Welcome:
        """Return what the runtime said of itself; ``ApiError`` 503 while it takes no calls."""
        if self.welcome is None or not self.is_ready:
            raise self.not_ready()
        return self.welcome

    def not_ready(self) -> ApiError:
        """Return the error for a request that comes while the runtime takes none."""
        phase = "connecting" if self.phase == "ready" else self.phase
        detail = f" ({self.detail})" if self.detail else ""
        return unavailable(f"the runtime is not ready: {phase}{detail}; try again later")

    # ------------------------------------------------------------ calls

    def next_call_id(self) -> int:
        """Return an id that no other call, and no other branch, of this link has."""
        self._next_call += 1
        return self._next_call

    def begin(self, exchange: Exchange, ids: Sequence[int], messages: Sequence[ToRuntime]) -> None:
        """Send the messages of a request whose calls ``ids`` are answered to ``exchange``.

        Raises ``ApiError`` when the runtime cannot be reached; then nothing was sent.
        """
        self._send(messages)
        for position, call_id in enumerate(ids):
            self._exchanges[call_id] = exchange, position

    def tell(self, message: ToRuntime) -> None:
        """Send what has no answer of its own, while there is somebody to hear it."""
        if self._has_greeted and not self._is_closed:
            self._send_now([message])

    def forget(self, call_id: int) -> None:
        """The answer of a call is no longer of interest."""
        self._exchanges.pop(call_id, None)

    async def ask(self, make: Callable[[int], Question], timeout_s: float = 30.0) -> dict[str, Any]:
        """Send the question that ``make`` gives for a call id; return its answer's data.

        Raises ``ApiError``.
        """
        call_id = self.next_call_id()
        future: asyncio.Future[Reply | Failed] = self._loop.create_future()
        self._questions[call_id] = future
        try:
            self._send([make(call_id)])
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError:
            text = f"the runtime has not answered within {timeout_s:g} s"
            raise ApiError(504, text, code="timeout") from None
        finally:
            self._questions.pop(call_id, None)
        if isinstance(answer, Failed):
            raise of_failure(answer)
        return answer.data

    # ------------------------------------------------------------ sending

    def _send(self, messages: Sequence[ToRuntime]) -> None:
        if self.welcome is None or self._is_closed:
            raise self.not_ready()
        if not self._send_now(messages):
            raise unavailable("the runtime does not read what is sent to it; try again later")

    def _send_now(self, messages: Sequence[ToRuntime]) -> bool:
        socket = self._socket
        if socket is None:
            return False
        try:
            socket.send_multipart([encode(message) for message in messages], zmq.NOBLOCK)
        except zmq.Again:
            return False
        # The descriptor tells of changes only: what came during the send may have used it up.
        if int(socket.get(zmq.EVENTS)) & _POLLIN:
            self._loop.call_soon(self._on_readable)
        return True

    # ------------------------------------------------------------ receiving

    def _on_readable(self) -> None:
        socket = self._socket
        for _ in range(_MAX_MESSAGES_A_ROUND):
            if socket is None or socket is not self._socket:
                return
            if not int(socket.get(zmq.EVENTS)) & _POLLIN:
                return
            for frame in socket.recv_multipart(zmq.NOBLOCK):
                try:
                    message = decode(frame)
                except ProtocolError as error:
                    log.error("the runtime does not speak our protocol: %s", error)
                    self._reset("the runtime does not speak our protocol")
                    return
                self._on_message(message)
        self._loop.call_soon(self._on_readable)

    def _on_message(self, message: Any) -> None:
        if type(message) is Chunk:  # nearly all of them
            entry = self._exchanges.get(message.call)
            if entry is not None:
                entry[0].put(entry[1], message)
            return
        match message:
            case Finished():
                entry = self._exchanges.pop(message.call, None)
                if entry is not None:
                    entry[0].put(entry[1], message)
            case Failed():
                self._on_failed(message)
            case Reply():
                future = self._questions.get(message.call)
                if future is not None and not future.done():
                    future.set_result(message)
            case Pong():
                self._unanswered = [ping for ping in self._unanswered if ping[0] > message.seq]
            case State():
                self._has_state = True
                self._set_phase(message.phase, message.detail)
            case Welcome():
                self._on_welcome(message)
            case Goodbye():
                self._send_now([Goodbye()])
                self._reset(message.reason or "the runtime has ended the session")
            case _:
                log.warning("unexpected %s", type(message).__name__)

    def _on_failed(self, failed: Failed) -> None:
        # A branch has the id of its one call: what refuses its text is the call's outcome.
        call_id = failed.branch if failed.call is None else failed.call
        if call_id is None:
            log.warning("the runtime refused a message: %s", failed.message)
            return
        entry = self._exchanges.pop(call_id, None)
        if entry is not None:
            entry[0].put(entry[1], failed)
            return
        if failed.call is None:
            return
        future = self._questions.get(failed.call)
        if future is not None and not future.done():
            future.set_result(failed)

    def _on_welcome(self, welcome: Welcome) -> None:
        self.welcome = welcome
        self._next_ping = time.monotonic() + welcome.limits.ping_interval_s
        task = self._loop.create_task(self._describe())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _describe(self) -> None:
        """Learn what a session needs to know before it takes calls."""
        try:
            self.tokenizer = await self.ask(DescribeTokenizer)
        except ApiError as error:
            log.warning("the runtime did not describe its tokenizer: %s", error.message)
            return
        self._was_open = self._is_described = True
        # A runtime that tells its state is ready when it says so.
        if not self._has_state or self.phase == "connecting":
            self._set_phase("ready", "")
        for watcher in self._watchers:
            watcher()

    def on_welcome(self, watcher: Callable[[], None]) -> None:
        """Have ``watcher`` called whenever a session has been opened."""
        self._watchers.append(watcher)

    def _set_phase(self, phase: str, detail: str) -> None:
        if (phase, detail) != (self.phase, self.detail):
            log.debug("runtime: %s %s", phase, detail)  # the server tells it itself
        self.phase, self.detail = phase, detail

    # ------------------------------------------------------------ connection

    def _open(self) -> None:
        socket = connect_dealer(self._context, self.endpoint, timeout_s=1.0)
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket, self._monitor = socket, monitor
        self._has_greeted = self._has_state = False
        self._unanswered.clear()
        self._loop.add_reader(int(socket.get(zmq.FD)), self._on_readable)
        self._loop.add_reader(int(monitor.get(zmq.FD)), self._on_event)

    def _disconnect(self) -> None:
        socket, self._socket = self._socket, None
        if socket is None:
            return
        self._loop.remove_reader(int(socket.get(zmq.FD)))
        self._loop.remove_reader(int(self._monitor.get(zmq.FD)))
        socket.disable_monitor()
        self._monitor.close(0)
        socket.close(200)

    def _reset(self, reason: str) -> None:
        """The session is over: fail what is under way and begin again."""
        self._disconnect()
        self.welcome, self._is_described = None, False
        phase = "restarting" if self._was_open else "connecting"
        if self._exchanges:
            log.warning("%d generations failed: %s", len(self._exchanges), reason)
        self._set_phase(phase, reason)
        self.fail_all(reason)
        if not self._is_closed:
            self._open()

    def fail_all(self, reason: str) -> None:
        """End everything that is under way with a failure that may be tried again."""
        exchanges, self._exchanges = self._exchanges, {}
        for call_id, (exchange, position) in exchanges.items():
            exchange.put(position, Failed(call_id, "engine_fault", reason, retryable=True))
        for call_id, future in self._questions.items():
            if not future.done():
                future.set_result(Failed(call_id, "engine_fault", reason, retryable=True))

    def _on_event(self) -> None:
        monitor = self._monitor
        is_lost = False
        while not monitor.closed and int(monitor.get(zmq.EVENTS)) & _POLLIN:
            zmq.utils.monitor.recv_monitor_message(monitor, zmq.NOBLOCK)
            is_lost = True
        if is_lost and self._has_greeted:
            self._on_readable()  # what it said before it went
            if self._has_greeted:
                self._reset("the connection to the runtime was lost")

    def _on_timer(self) -> None:
        if self._is_closed:
            return
        try:
            if not self._has_greeted:
                hello = Hello(client="gateway", watch=True)
                self._has_greeted = self._send_now([hello])
            elif self.welcome is not None:
                self._look_after_pings(self.welcome.limits.ping_interval_s)
            with contextlib.suppress(zmq.ZMQError):
                self._on_readable()
        except Exception:  # the timer has to go on whatever happens
            log.exception("the link to the runtime")
        wait_s = TICK_S if self.welcome is None else WATCH_S
        self._timer = self._loop.call_later(wait_s, self._on_timer)

    def _look_after_pings(self, interval_s: float) -> None:
        now = time.monotonic()
        if self._unanswered and now - self._unanswered[0][1] > MISSED_PINGS * interval_s:
            self._reset(f"no ping was answered for {MISSED_PINGS * interval_s:g} s")
        elif now >= self._next_ping:
            self._next_ping = now + interval_s
            self._next_seq += 1
            self._unanswered.append((self._next_seq, now))
            self._send_now([Ping(self._next_seq)])
