"""An engine in the test's own thread: a tiny model, a scripted channel, checks every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radixrt.cache.hicache import HiCache
from radixrt.cache.host import HostTier
from radixrt.cache.learned import learned_policy
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import RadixCache
from radixrt.cache.tier import Tier
from radixrt.cache.tier_policy import TierPolicy
from radixrt.runtime.attention.reference import ReferenceAttention
from radixrt.runtime.engine.loop import EngineLoop
from radixrt.runtime.engine.open_calls import OpenCalls
from radixrt.runtime.engine.refusals import Capacity
from radixrt.runtime.forward.engine import Engine
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.model.loader import load_model
from radixrt.runtime.ops.reference import ReferenceOps
from radixrt.runtime.scheduling.kv import KvPool, KvSpace
from radixrt.runtime.scheduling.metrics import Metrics
from radixrt.runtime.scheduling.request import GREEDY
from radixrt.runtime.scheduling.scheduler import Limits, Scheduler
from radixrt.runtime.scheduling.slots import SlotTable
from radixrt.runtime.transfer import choose_mover
from radixrt.runtime.wire import (
    Done,
    EngineFailed,
    FromEngine,
    GrammarSpec,
    Run,
    Sampled,
    Score,
    Scored,
    Step,
    ToEngine,
    TokenSampling,
    pack_ids,
)

CPU = torch.device("cpu")


class ScriptedChannel:
    """Hands the loop what the test puts in ``inbox`` and keeps what it sends."""

    def __init__(self) -> None:
        self.inbox: list[ToEngine] = []
        self.sent: list[FromEngine] = []

    def receive(self, timeout_s: float) -> list[ToEngine]:
        messages, self.inbox = self.inbox, []
        return messages

    def send(self, messages: list[FromEngine]) -> None:
        self.sent += messages


class Clock:
    """Time that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Runtime:
    """One engine loop with small limits. ``step`` runs one iteration and checks all invariants."""

    def __init__(
        self,
        model: CausalLM,
        *,
        num_pages: int = 512,
        page_size: int = 4,
        max_running: int = 8,
        max_step_tokens: int = 64,
        max_context: int = 256,
        max_logits_rows: int | None = None,
        max_queue: int = 1000,
        reuse: bool = True,
        overlap: int = 0,
        overtake_limit: int = 64,
        grammars: Any = None,
        host_pages: int = 0,
        stores: Callable[[Runtime], Sequence[Tier]] | None = None,
        policy: TierPolicy | None = None,
    ) -> None:
        self.clock = Clock()
        self.channel = ScriptedChannel()
        self.slots = SlotTable(max_running, max_context, page_size)
        self.allocator = PageAllocator(num_pages)
        learned = learned_policy(num_pages, self.clock)
        self.cache = RadixCache(self.allocator, page_size, clock=self.clock, policy=learned)
        self.metrics = Metrics()
        config = model.config
        pool = KvPool.zeros(
            config.num_layers,
            num_pages,
            page_size,
            config.num_kv_heads,
            config.head_dim,
            dtype=torch.float32,
            device=CPU,
        )
        # A read of a page that nobody wrote shows.
        pool.k.fill_(1e4)
        pool.v.fill_(1e4)
        self.tiers: HiCache | None = None
        self.host: HostTier | None = None
        if host_pages:
            mover, memory = choose_mover(pool, host_pages)
            memory[:] = 0x7F
            self.host = HostTier(memory, page_size, mover, clock=self.clock)
            self.tiers = HiCache(
                self.cache,
                self.host,
                stores(self) if stores is not None else (),
                policy=policy or TierPolicy(always_load=True),
                clock=self.clock,
            )
        self.kv = KvSpace(self.cache, self.allocator, self.slots, reuse=reuse, tiers=self.tiers)
        self.scheduler = Scheduler(
            self.slots,
            self.kv,
            Limits(max_step_tokens, max_logits_rows or max_running + 16),
            self.metrics,
            overtake_limit=overtake_limit,
            clock=self.clock,
        )
        self.engine = Engine(
            model,
            pool,
            ReferenceAttention(config.attention, page_size),
            ReferenceOps(),
            self.slots,
            CPU,
            host=self.host,
        )
        self.calls = OpenCalls(
            self.scheduler,
            Capacity(max_context, (num_pages - 1) * page_size, config.vocab_size, max_queue),
            grammars=grammars,
            clock=self.clock,
        )
        self.loop = EngineLoop(
            self.engine,
            self.scheduler,
            self.calls,
            self.channel,
            vocab_size=config.vocab_size,
            overlap=overlap,
            clock=self.clock,
        )
        self.num_ids = 0

    # ------------------------------------------------------------ drive

    def put(self, *messages: ToEngine) -> None:
        self.channel.inbox += messages

    def step(self) -> bool:
        worked = self.loop.step()
        self.kv.check()
        return worked

    def finish(self, limit: int = 5000) -> None:
        """Step until nothing is left to do."""
        for _ in range(limit):
            if not self.step() and not len(self.calls):
                return
        raise AssertionError(f"still {len(self.calls)} calls open after {limit} steps")

    def run(
        self,
        token_ids: Sequence[int],
        *,
        branch: int | None = None,
        grammar: GrammarSpec | None = None,
        deadline_s: float | None = None,
        namespace: str = "",
        pause_s: float | None = None,
        **sampling: Any,
    ) -> int:
        """Put a ``Run`` in and return its id."""
        self.num_ids += 1
        self.put(
            Run(
                self.num_ids,
                self.num_ids if branch is None else branch,
                pack_ids(np.array(token_ids, np.int32)),
                params(**sampling),
                grammar,
                namespace,
                deadline_s,
                pause_s=pause_s,
            )
        )
        return self.num_ids

    def score(
        self,
        token_ids: Sequence[int],
        options: Sequence[Sequence[int]],
        *,
        branch: int | None = None,
        unconditional: Sequence[int] = (),
        deadline_s: float | None = None,
    ) -> int:
        """Put a ``Score`` in and return its id."""
        self.num_ids += 1
        self.put(
            Score(
                self.num_ids,
                self.num_ids if branch is None else branch,
                pack_ids(np.array(token_ids, np.int32)),
                tuple(tuple(option) for option in options),
                bool(unconditional),
                tuple(unconditional),
                deadline_s=deadline_s,
            )
        )
        return self.num_ids

    # ------------------------------------------------------------ results

    def sampled(self, call: int) -> list[Sampled]:
        return [
            sampled
            for message in self.channel.sent
            if isinstance(message, Step)
            for sampled in message.sampled
            if sampled.id == call
        ]

    def tokens(self, call: int) -> list[int]:
        return [token for sampled in self.sampled(call) for token in sampled.token_ids]

    def ends(self, call: int) -> list[Done | Scored | EngineFailed]:
        return [
            message
            for message in self.channel.sent
            if isinstance(message, Done | Scored | EngineFailed) and message.id == call
        ]

    def end(self, call: int) -> Any:
        (message,) = self.ends(call)
        return message

    def generate(self, token_ids: Sequence[int], **options: Any) -> list[int]:
        """Run one call to its end and return its tokens."""
        call = self.run(token_ids, **options)
        self.finish()
        return self.tokens(call)


def params(**changes: Any) -> TokenSampling:
    """Greedy, eight tokens, unless changed."""
    values = {name: getattr(GREEDY, name) for name in GREEDY.__struct_fields__}
    return TokenSampling(**{**values, "max_tokens": 8, **changes})


def tiny_model(path: Path) -> CausalLM:
    return load_model(path, device=CPU, dtype=torch.float32, ops=ReferenceOps())


def brute_force_logprobs(model: CausalLM, token_ids: Sequence[int], page_size: int = 4) -> Any:
    """Return log probabilities f32 [T, V] after each token, from one forward of the whole."""
    from radixrt.runtime.batch import ForwardBatch

    n = len(token_ids)
    num_pages = n // page_size + 2
    config = model.config
    pool = KvPool.zeros(
        config.num_layers,
        num_pages,
        page_size,
        config.num_kv_heads,
        config.head_dim,
        dtype=torch.float32,
        device=CPU,
    )
    attention = ReferenceAttention(config.attention, page_size)
    table = np.arange(1, num_pages, dtype=np.int32)[None]
    positions = torch.arange(n)
    batch = ForwardBatch(
        input_ids=torch.tensor(list(token_ids)),
        positions=positions,
        kv_slots=positions + page_size,
        query_start=torch.tensor([0, n], dtype=torch.int32),
        kv_lens=torch.tensor([n], dtype=torch.int32),
        logits_rows=positions,
        query_start_host=np.array([0, n], np.int32),
        kv_lens_host=np.array([n], np.int32),
        page_table_host=table,
    )
    with torch.inference_mode():
        attention.plan(batch)
        return model.forward(batch, pool.k, pool.v, attention).log_softmax(-1).numpy()
