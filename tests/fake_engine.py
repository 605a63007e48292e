"""An engine without a model: deterministic tokens over the wire's messages, for frontend tests.

As a script it is an engine process: ``fake_engine.py [--step-s S] [--vocab N] ENDPOINT``; with
``--after FILE`` it is ready when the file exists.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from radixrt.runtime.channel import EngineChannel
from radixrt.runtime.wire import (
    Abort,
    Done,
    EngineFailed,
    EnginePing,
    EnginePong,
    EngineReply,
    EngineUsage,
    FlushCache,
    FromEngine,
    Progress,
    QueryStats,
    Ready,
    Release,
    Run,
    Sampled,
    SampledLogprob,
    Score,
    Scored,
    Shutdown,
    Step,
    ToEngine,
    unpack_ids,
)

Reply = Callable[[list[int], int], int]
"""(all tokens so far, how many of them were generated) → the next token."""


@dataclass
class _Running:
    run: Run
    token_ids: list[int]
    prompt_len: int
    cached: int
    is_aborted: bool = False
    fault: str = ""

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.prompt_len


@dataclass
class FakeEngine:
    """Takes messages, and emits one token of every running call at each ``step``."""

    vocab_size: int
    reply: Reply | None = None
    score: Callable[[list[int], Sequence[int]], list[float]] | None = None
    tokens_a_step: int = 1
    received: list[ToEngine] = field(default_factory=list)
    running: dict[int, _Running] = field(default_factory=dict)
    leases: set[int] = field(default_factory=set)
    is_over: bool = False
    _replies: list[FromEngine] = field(default_factory=list)
    _seen: list[list[int]] = field(default_factory=list)

    def ready(self, max_context: int = 512) -> Ready:
        info = {"model": "fake", "architecture": "Fake", "device": "none", "kv_tokens": 1000}
        info |= {"attention": "none", "attention_why": "nothing is computed", "max_running": 7}
        return Ready(max_context, self.vocab_size, info)

    def take(self, messages: Sequence[ToEngine]) -> None:
        self.received += messages
        for message in messages:
            match message:
                case Run():
                    ids = unpack_ids(message.token_ids).tolist()
                    cached = max((_common(ids, seen) for seen in self._seen), default=0)
                    self.running[message.id] = _Running(
                        message, ids, len(ids), min(cached, len(ids) - 1)
                    )
                    self.leases.add(message.branch)
                case Score():
                    self._take_score(message)
                case Abort():
                    if message.id in self.running:
                        self.running[message.id].is_aborted = True
                case Release():
                    self.leases.difference_update(message.branches)
                case FlushCache():
                    self._seen.clear()
                    self._replies.append(EngineReply(message.id, {"evicted_pages": 0}))
                case QueryStats():
                    data = {
                        "leases": len(self.leases),
                        "running": len(self.running),
                        "pid": os.getpid(),
                    }
                    self._replies.append(EngineReply(message.id, data))
                case EnginePing():
                    self._replies.append(EnginePong(message.seq, 0.25))
                case Shutdown():
                    self.is_over = True

    def step(self) -> list[FromEngine]:
        """Return what one step of the engine sends."""
        sampled, ended = [], []
        for state in list(self.running.values()):
            new: list[int] = []
            while not self._is_done(state) and len(new) < self.tokens_a_step:
                new.append(self._next(state))
                state.token_ids.append(new[-1])
            if new:
                sampled.append(Sampled(state.run.id, tuple(new), self._logprobs(state, new)))
            if self._is_done(state):
                ended.append(self._done(state))
                self._seen.append(state.token_ids)
                del self.running[state.run.id]
        replies, self._replies = self._replies, []
        steps: list[FromEngine] = [Step(tuple(sampled))] if sampled else []
        return [*steps, *ended, *replies]

    def fail(self, message: str, code: str = "engine_fault") -> None:
        """Let every running call fail."""
        for run_id in list(self.running):
            self._replies.append(EngineFailed(run_id, code, message))
            del self.running[run_id]

    def _next(self, state: _Running) -> int:
        if self.reply is not None:
            return self.reply(state.token_ids, state.num_generated)
        return (state.token_ids[-1] + 1) % self.vocab_size

    def _is_done(self, state: _Running) -> bool:
        sampling = state.run.sampling
        return (
            state.is_aborted
            or state.num_generated >= sampling.max_tokens
            or self._matched(state) is not None
        )

    def _matched(self, state: _Running) -> int | None:
        generated = state.num_generated
        last = state.token_ids[-1]
        stops = state.run.sampling.stop_token_ids
        return last if generated > state.run.sampling.min_tokens and last in stops else None

    def _logprobs(self, state: _Running, new: list[int]) -> tuple[SampledLogprob, ...]:
        sampling = state.run.sampling
        if not sampling.logprobs:
            return ()
        top = range(sampling.top_logprobs_num)
        return tuple(
            SampledLogprob(-token / 100, tuple(top), tuple(-float(i) for i in top)) for token in new
        )

    def _done(self, state: _Running) -> Done:
        matched = self._matched(state)
        reason = "stop" if matched is not None else "abort" if state.is_aborted else "length"
        start = state.run.sampling.prompt_logprobs_from
        prompt = [SampledLogprob(-0.5) for _ in range(state.prompt_len)]
        prompt[0] = SampledLogprob(None)
        usage = EngineUsage(
            prompt=state.prompt_len,
            cached=state.cached,
            computed=state.prompt_len - state.cached,
            evicted=0,
            completion=state.num_generated,
        )
        return Done(
            state.run.id, reason, usage, matched, tuple(prompt[start:]) if start >= 0 else ()
        )

    def _take_score(self, message: Score) -> None:
        prompt = unpack_ids(message.token_ids).tolist()
        score = self.score or (lambda before, option: [-(token % 7 + 1) / 10 for token in option])
        usage = EngineUsage(
            prompt=len(prompt), cached=0, computed=len(prompt), evicted=0, completion=0
        )
        plain = message.options if message.unconditional else ()
        prefix = list(message.unconditional_prefix)
        self.leases.add(message.branch)
        self._replies.append(
            Scored(
                message.id,
                tuple(tuple(score(prompt, option)) for option in message.options),
                usage,
                tuple(tuple(score(prefix, option)) for option in plain),
            )
        )


class FakeLoop:
    """What ``build_loop`` returns for the fake engine."""

    def __init__(self, engine: FakeEngine, channel: EngineChannel, step_s: float = 0.0) -> None:
        self.engine = engine
        self._channel = channel
        self._step_s = step_s
        channel.send([engine.ready()])

    def run(self) -> None:
        while not self.engine.is_over:
            self.engine.take(self._channel.receive(0.0 if self.engine.running else 0.1))
            if self._step_s and self.engine.running:
                time.sleep(self._step_s)
            messages = self.engine.step()
            if messages:
                self._channel.send(messages)


def _common(a: list[int], b: list[int]) -> int:
    length = min(len(a), len(b))
    differs = np.nonzero(np.array(a[:length]) != np.array(b[:length]))[0]
    return int(differs[0]) if len(differs) else length


def main() -> None:
    from radixrt.runtime.channel import ZmqEngineChannel

    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--vocab", type=int, default=512)
    parser.add_argument("--fail", default="")
    parser.add_argument("--after", default="")
    options = parser.parse_args()
    sys.stdin.buffer.read()
    channel = ZmqEngineChannel(options.endpoint)
    if options.after:
        channel.send([Progress("weights", "are on their way")])
        while not os.path.exists(options.after) and not channel.receive(0.01):
            pass
    if options.fail:
        channel.send([EngineFailed(None, "engine_fault", options.fail)])
    else:
        FakeLoop(FakeEngine(options.vocab), channel, options.step_s).run()
    channel.close()


if __name__ == "__main__":
    main()
