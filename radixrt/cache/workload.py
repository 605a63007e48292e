"""Request traces made up from stated distributions: conversations, and programs with tools."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from radixrt.cache.trace import BLOCK_TOKENS, TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """People who chat. Times in seconds, sizes in tokens; log-normal where a spread is given.

    A conversation begins every ``between_s`` (exponential), with one of ``num_systems`` system
    prompts; the i-th is ``1 / (i + 1)`` times as frequent as the first. It has ``mean_turns`` turns
    (geometric); between two of them the person reads and types.
    """

    num_requests: int = 10_000
    between_s: float = 0.8
    num_systems: int = 8
    system_tokens: float = 1500
    mean_turns: float = 3.0
    turn_tokens: float = 2500
    turn_spread: float = 1.2
    think_s: float = 60
    think_spread: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """Something that programs do between two calls: how long it takes and what it returns."""

    seconds: float
    spread: float
    tokens: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """Programs that call tools, fork and end. Times in seconds, sizes in tokens, log-normal.

    A program begins every ``between_s`` (exponential) with one of ``num_kinds`` prompts
    (``kind_tokens``) and its task (``task_tokens``). It makes ``mean_steps`` calls (geometric), and
    after each uses a tool. With ``fork_chance`` a step forks into ``num_forks`` branches of
    ``fork_steps`` calls each, which end, and the program goes on with what they found. What a
    program expects of a pause is the median of the tool it calls: that is what its client would
    have learned at that line. It cannot know how long forks take.
    """

    num_requests: int = 10_000
    between_s: float = 0.45
    num_kinds: int = 6
    kind_tokens: float = 3000
    task_tokens: float = 2000
    task_spread: float = 1.0
    mean_steps: float = 7.0
    tools: tuple[Tool, ...] = (
        Tool(seconds=0.5, spread=0.5, tokens=400, share=0.5),
        Tool(seconds=6.0, spread=0.5, tokens=1200, share=0.3),
        Tool(seconds=90.0, spread=0.6, tokens=2500, share=0.2),
    )
    fork_chance: float = 0.12
    num_forks: int = 4
    fork_steps: int = 2
    call_s: float = 3.0
    seed: int = 0


def generate(workload: Conversations | Agents) -> list[TraceRequest]:
    """Return ``num_requests`` requests, and the ends of programs among them, in order of time."""
    made = _Trace(workload.seed)
    begin = made.conversation if isinstance(workload, Conversations) else made.program
    num_requests = 0
    found: list[TraceRequest] = []
    for request in _in_order(begin, workload, made):
        found.append(request)
        num_requests += bool(request.blocks)
        if num_requests == workload.num_requests:
            break
    return found


def working_set(trace: list[TraceRequest], block_tokens: int = BLOCK_TOKENS) -> int:
    """Return the most tokens that were, at any time, asked for before and again later: a cache of
    this size that knew the future would miss nothing but what is new."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for index, request in enumerate(trace):
        for block in request.blocks:
            first.setdefault(block, index)
            last[block] = index
    change = [0] * (len(trace) + 1)
    for block, index in first.items():
        if last[block] > index:
            change[index] += 1
            change[last[block]] -= 1
    live = most = 0
    for step in change:
        live += step
        most = max(most, live)
    return most * block_tokens


@dataclass(slots=True)
class _Context:
    """A prompt as it grows: whole blocks, and the tokens that begin the next one."""

    blocks: tuple[int, ...] = ()
    rest: int = 0

    def fork(self) -> _Context:
        return _Context(self.blocks, self.rest)


@dataclass(slots=True)
class _Trace:
    seed: int
    rng: random.Random = field(init=False)
    num_blocks: int = 0
    num_programs: int = 0
    prompts: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def conversation(self, w: Conversations, start: float) -> Iterator[TraceRequest]:
        context = self._shared(w.num_systems, w.system_tokens)
        program, now = self._program(), start
        for turn in range(self._geometric(w.mean_turns)):
            if turn:
                now += self._normal(w.think_s, w.think_spread)
            self._grow(context, self._normal(w.turn_tokens, w.turn_spread))
            yield self._request(context, now, program, w.think_s)
        yield TraceRequest(now, (), 0, program, None, is_end=True)

    def program(self, w: Agents, start: float) -> Iterator[TraceRequest]:
        context = self._shared(w.num_kinds, w.kind_tokens)
        self._grow(context, self._normal(w.task_tokens, w.task_spread))
        program, now = self._program(), start
        for _ in range(self._geometric(w.mean_steps)):
            if self.rng.random() < w.fork_chance:
                yield self._request(context, now, program, None)
                now += w.call_s
                end = now
                found = 0.0
                parts = []
                for _ in range(w.num_forks):
                    steps, finished, tokens = self._branch(w, context.fork(), now)
                    parts.append(steps)
                    end = max(end, finished)
                    found += tokens
                yield from heapq.merge(*parts, key=lambda request: request.time_s)
                now = end
                self._grow(context, found)
            else:
                tool = self._tool(w)
                yield self._request(context, now, program, tool.seconds + w.call_s)
                now += w.call_s + self._normal(tool.seconds, tool.spread)
                self._grow(context, self._normal(tool.tokens, 0.6))
        yield TraceRequest(now, (), 0, program, None, is_end=True)

    def _branch(
        self, w: Agents, context: _Context, now: float
    ) -> tuple[list[TraceRequest], float, float]:
        steps, program, tokens = [], self._program(), 0.0
        for _ in range(w.fork_steps):
            tool = self._tool(w)
            self._grow(context, self._normal(tool.tokens, 0.6))
            steps.append(self._request(context, now, program, tool.seconds + w.call_s))
            now += w.call_s + self._normal(tool.seconds, tool.spread)
            tokens += 200
        steps.append(TraceRequest(now, (), 0, program, None, is_end=True))
        return steps, now, tokens

    def _tool(self, w: Agents) -> Tool:
        return self.rng.choices(w.tools, [tool.share for tool in w.tools])[0]

    def _program(self) -> int:
        self.num_programs += 1
        return self.num_programs

    def _shared(self, num: int, tokens: float) -> _Context:
        which = self.rng.choices(range(num), [1 / (i + 1) for i in range(num)])[0]
        if which not in self.prompts:
            self.prompts[which] = self._new(max(1, round(tokens / BLOCK_TOKENS)))
        return _Context(self.prompts[which])

    def _new(self, num: int) -> tuple[int, ...]:
        first = self.num_blocks
        self.num_blocks += num
        return tuple(range(first, self.num_blocks))

    def _grow(self, context: _Context, tokens: float) -> None:
        total = context.rest + max(1, round(tokens))
        context.blocks += self._new(total // BLOCK_TOKENS)
        context.rest = total % BLOCK_TOKENS

    def _request(
        self, context: _Context, now: float, program: int, pause_s: float | None
    ) -> TraceRequest:
        blocks, num_tokens = context.blocks, len(context.blocks) * BLOCK_TOKENS + context.rest
        if context.rest:
            blocks += self._new(1)  # what fills it later is another block
        return TraceRequest(now, blocks, num_tokens, program, pause_s)

    def _normal(self, median: float, spread: float) -> float:
        return median * math.exp(spread * self.rng.gauss(0.0, 1.0))

    def _geometric(self, mean: float) -> int:
        return 1 + int(math.log(1.0 - self.rng.random()) / math.log(1.0 - 1.0 / max(mean, 1.001)))


def _in_order(
    begin: object, workload: Conversations | Agents, made: _Trace
) -> Iterator[TraceRequest]:
    """Yield the requests of programs that overlap, by time."""
    assert callable(begin)
    waiting: list[tuple[float, int, TraceRequest, Iterator[TraceRequest]]] = []
    start, num = 0.0, 0
    while True:
        while not waiting or start <= waiting[0][0]:
            steps: Iterator[TraceRequest] = begin(workload, start)
            num += 1
            heapq.heappush(waiting, (start, num, next(steps), steps))
            start += made.rng.expovariate(1.0 / workload.between_s)
        _, order, request, steps = heapq.heappop(waiting)
        yield request
        following = next(steps, None)
        if following is not None:
            heapq.heappush(waiting, (following.time_s, order, following, steps))
