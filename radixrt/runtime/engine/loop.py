"""The engine's loop: mailbox in, one step, messages out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from radixrt.runtime.engine.inspecting import Inspector
from radixrt.runtime.engine.open_calls import OpenCalls
from radixrt.runtime.engine.snapshots import Snapshots
from radixrt.runtime.forward.engine import Engine, StepInFlight
from radixrt.runtime.scheduling.masks import FEW, Filling, MaskFiller
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.scheduling.scheduler import Scheduler
from radixrt.runtime.wire import (
    Abort,
    EngineFailed,
    EnginePing,
    EnginePong,
    EngineReply,
    FlushCache,
    FromEngine,
    Hold,
    InspectTree,
    QueryStats,
    Release,
    RestoreCache,
    Run,
    Sampled,
    SaveCache,
    Score,
    Shutdown,
    Step,
    ToEngine,
)

if TYPE_CHECKING:
    from radixrt.runtime.channel import EngineChannel
    from radixrt.runtime.engine.kv_events import KvEvents

log = logging.getLogger(__name__)

IDLE_WAIT_S = 0.5
"""How long an idle loop waits for messages before it looks at its deadlines again."""

TRANSFER_WAIT_S = 0.001
"""The same while copies between the tiers are under way."""

LATE_S = 0.0003
"""A step that took less to be read was ready already: its device waited for the loop."""

GRAMMAR_WAIT_S = 0.0005
"""The same while a constraint is being compiled or validated by a thread."""


@dataclass(slots=True)
class _InFlight:
    """A step that was launched, and the masks that its sampling waits for."""

    step: StepInFlight
    filling: Filling | None
    is_sampled: bool = False


class EngineLoop:
    """Receives calls, computes steps, sends results; owned by one thread.

    ``overlap`` 0 reads every step back before the next, 1 plans and launches a step while the one
    before it is still running.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        calls: OpenCalls,
        channel: EngineChannel,
        *,
        vocab_size: int,
        overlap: int = 0,
        snapshots: Snapshots | None = None,
        events: KvEvents | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.scheduler = scheduler
        self.calls = calls
        self.channel = channel
        self.snapshots = snapshots
        self._events = events
        self._masks = MaskFiller(scheduler.slots, vocab_size, engine.mask_room)
        self._inspector = Inspector(scheduler, calls.namespace)
        self._overlap = overlap
        self._clock = clock
        self._in_flight: _InFlight | None = None
        self._sampled: list[Sampled] = []
        self._replies: list[FromEngine] = []
        self._drain_until: float | None = None
        self._last_read = 0.0
        self._is_late = False
        self.is_over = False

    def run(self) -> None:
        """Serve until ``Shutdown``. Raises what a step cannot recover from, after it said so."""
        try:
            while not self.is_over:
                self.step()
            self.close()
        except Exception as error:
            self.channel.send([EngineFailed(None, "engine_fault", f"the engine failed: {error!r}")])
            raise
        finally:
            self.calls.close()  # it has processes of its own

    def close(self) -> None:
        """End what goes on beside the loop; nothing can be computed afterwards."""
        if self.snapshots is not None:
            self.snapshots.close()
        if self.scheduler.kv.tiers is not None:
            self.scheduler.kv.tiers.close()
        if self._events is not None:
            self._events.close()

    def step(self) -> bool:
        """Do one iteration; True if there was work."""
        messages = self.channel.receive(self._patience())
        for message in messages:
            self._take(message)
        self.scheduler.poll_tiers(is_late=self._is_late)
        if self.snapshots is not None and self.snapshots.is_busy:
            self._replies += self.snapshots.poll()
        self._replies += self.calls.poll()
        self._sampled += self.calls.take_sampled()  # before what steps append to it
        has_work = self.scheduler.has_work or self._in_flight is not None
        if has_work:
            self._compute_safely()
            self._answer_ended()
            self.scheduler.settle()
        self._drain()
        self._send()
        return has_work or bool(messages)

    def _compute(self) -> None:
        """Plan and launch a step, and take in the one before it.

        While the device computes step n, its masks depend on the tokens of n - 1; so the host::

            reads n - 1 and lets threads begin to fill the masks of n
            answers, takes messages, plans n + 1                        (meanwhile)
            queues the sampling of n with its masks, then step n + 1
            reads n

        and the device waits only if all that takes longer than a forward.
        """
        plan = self.scheduler.schedule()
        if plan.num_rows == 0 and self._drop():
            return
        self._sample()
        if plan.num_rows == 0:
            self._commit()
            return
        # With nothing in flight the texts are known already, and masks fill under the launch.
        filling = None if self._in_flight else self._masks.begin(plan)
        step = self.engine.launch(plan)
        self.scheduler.note_launched()
        if self._in_flight:
            self._commit()
            filling = self._masks.begin(plan, at_once=FEW)
        self._in_flight = _InFlight(step, filling)
        if filling is None or not self._overlap:
            self._sample()
        if not self._overlap:
            self._commit()

    def _sample(self) -> None:
        """Queue the sampling of the step in flight, once its masks are complete."""
        flight = self._in_flight
        if flight is not None and not flight.is_sampled:
            self.engine.sample(flight.step, self._masks.finish(flight.filling, self._fail))
            flight.is_sampled = True

    def _drop(self) -> bool:
        """Give up the step in flight if all of its rows have ended meanwhile: nobody waits for the
        device to be done with it."""
        flight = self._in_flight
        if flight is None or not flight.is_sampled:
            return False
        if any(request.reason is None for request in flight.step.plan.requests):
            return False
        self._in_flight = None
        self.scheduler.metrics.step(flight.step.plan.num_tokens, 0)
        return True

    def _commit(self) -> None:
        """Read the step in flight, which was sampled, and take its results in."""
        flight, self._in_flight = self._in_flight, None
        if flight is not None:
            began = time.perf_counter()
            result = self.engine.read(flight.step)
            is_ready = time.perf_counter() - began < LATE_S
            # A CPU has computed when the launch returns, and waits for nobody.
            self._is_late = is_ready and self.engine.device.type != "cpu"
            self._measure(flight.step)
            self._sampled += self.scheduler.commit(flight.step.plan, result)

    def _measure(self, step: StepInFlight) -> None:
        """Tell the tiers how long computing prompts takes."""
        now, tiers, plan = time.perf_counter(), self.scheduler.kv.tiers, step.plan
        if tiers is not None and plan.num_tokens > plan.num_rows and not plan.loads:
            tiers.computed(plan.num_tokens, now - max(step.launched, self._last_read))
        self._last_read = now

    def _compute_safely(self) -> None:
        try:
            self._compute()
        except Exception as error:
            log.exception("a step failed")
            self._in_flight = None
            self.scheduler.metrics.step_failures += 1
            self.scheduler.fail_running(f"a step of the engine failed: {error!r}")

    def _fail(self, request: Request, message: str) -> None:
        self.scheduler.end(request, "failed", message, "constraint")

    # ------------------------------------------------------------ messages

    def _take(self, message: ToEngine) -> None:
        match message:
            case Run() | Score():
                refusal = self.calls.submit(message)
                if refusal is not None:
                    self._replies.append(refusal)
            case Abort(id=call_id):
                self.calls.abort(call_id)
            case Release(branches=branches, ended=ended):
                for branch in branches:
                    self.calls.release(branch, ended=ended)
            case Hold(branch=branch, ttl_s=ttl_s, priority=priority):
                self.scheduler.kv.hold(branch, ttl_s, priority)
            case FlushCache(id=call_id):
                kv = self.scheduler.kv
                evicted = kv.cache.clear()
                if kv.tiers is not None:
                    kv.tiers.clear()
                self._replies.append(EngineReply(call_id, {"evicted_pages": evicted}))
            case SaveCache(id=call_id, path=path):
                failed = (
                    self.snapshots.save(call_id, path) if self.snapshots else _no_pages(call_id)
                )
                if failed is not None:
                    self._replies.append(failed)
            case RestoreCache(id=call_id, path=path):
                answer = self.snapshots.restore(call_id, path) if self.snapshots else None
                self._replies.append(answer or _no_pages(call_id))
            case QueryStats(id=call_id):
                self._replies.append(EngineReply(call_id, self.stats()))
            case InspectTree(id=call_id):
                self._replies.append(EngineReply(call_id, self._inspector.answer(message)))
            case EnginePing(seq=seq, sent=sent):
                lag_ms = max(0.0, (time.monotonic() - sent) * 1000)
                self.scheduler.metrics.loop_lag_ms = lag_ms
                self._replies.append(EnginePong(seq, lag_ms))
            case Shutdown(drain_s=drain_s):
                self.calls.is_closed = True
                self._drain_until = self._clock() + drain_s

    def stats(self) -> dict[str, Any]:
        """Return counters and gauges."""
        kv, slots = self.scheduler.kv, self.scheduler.slots
        return (
            self.scheduler.metrics.snapshot()
            | {
                "running": len(slots.active),
                "waiting": len(self.scheduler.queue),
                "open_calls": len(self.calls),
                "kv_pages": kv.num_usable,
                "kv_pages_free": kv.allocator.num_free,
                "kv_pages_cached": kv.cache.num_cached,
                "kv_pages_evictable": kv.cache.num_evictable,
                "kv_pages_evicted": kv.cache.counters.evicted_pages,
                "page_size": slots.page_size,
                "parked_branches": len(kv.parked),
            }
            | self.calls.grammar_stats()
            | {"grammar_mask_s": self._masks.seconds}
            | ({"hicache": kv.tiers.stats()} if kv.tiers is not None else {})
        )

    def _answer_ended(self) -> None:
        ended = self.scheduler.take_ended()
        self._replies += self.calls.ended(ended)
        if ended:
            self._send()  # who waits for them shall not wait for their pages as well

    def _send(self) -> None:
        messages: list[FromEngine] = []
        if self._sampled:
            messages.append(Step(tuple(self._sampled)))
            self._sampled = []
        messages += self._replies
        self._replies = []
        if messages:
            self.channel.send(messages)

    def _patience(self) -> float:
        if self.scheduler.has_work or self._in_flight or self._drain_until is not None:
            return 0.0
        if self.calls.is_waiting:
            return GRAMMAR_WAIT_S
        is_saving = self.snapshots is not None and self.snapshots.is_busy
        return TRANSFER_WAIT_S if is_saving or self.scheduler.is_transferring else IDLE_WAIT_S

    def _drain(self) -> None:
        """End the loop once a shutdown was asked for and nothing runs, or its time is up."""
        if self._drain_until is None:
            return
        if len(self.calls) and self._clock() >= self._drain_until:
            self.calls.fail_all("engine_fault", "the runtime shut down before the call ended")
            self._in_flight = None
            self._answer_ended()
            self.scheduler.settle()
        self.is_over = not len(self.calls)


def _no_pages(call_id: int) -> EngineFailed:
    return EngineFailed(call_id, "unsupported", "this runtime caches nothing: cache=False")
