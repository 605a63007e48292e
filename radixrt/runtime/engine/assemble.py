"""From a config to a running engine loop."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from radixrt.cache.eviction import Policy, RecencyOrder
from radixrt.cache.history import PageHistory
from radixrt.cache.learned import LearnedOrder, learned_policy
from radixrt.cache.namespace import Namespace
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import RadixCache
from radixrt.config import RuntimeConfig, parse_size
from radixrt.errors import ConfigError
from radixrt.runtime import device as devices
from radixrt.runtime.attention import choose_attention
from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.engine.kv_events import MEDIUM_DEVICE, MEDIUM_HOST, KvEvents
from radixrt.runtime.engine.loop import EngineLoop
from radixrt.runtime.engine.memory import MemoryPlan, measure_peak, plan_memory
from radixrt.runtime.engine.open_calls import OpenCalls
from radixrt.runtime.engine.profile import WorstSteps
from radixrt.runtime.engine.refusals import Capacity
from radixrt.runtime.engine.snapshots import Snapshots
from radixrt.runtime.engine.tiers import build_tiers, layout_of, page_bytes, tiers_of
from radixrt.runtime.forward.engine import Engine
from radixrt.runtime.forward.graph import StepGraphs, graph_sizes
from radixrt.runtime.host import num_cores
from radixrt.runtime.model.config import ModelConfig, read_config
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.model.loader import load_model
from radixrt.runtime.model.weights import fingerprint
from radixrt.runtime.ops import choose_ops
from radixrt.runtime.ops.base import Ops
from radixrt.runtime.scheduling.kv import KvPool, KvSpace
from radixrt.runtime.scheduling.metrics import Metrics
from radixrt.runtime.scheduling.scheduler import Limits, Scheduler
from radixrt.runtime.scheduling.slots import SlotTable
from radixrt.runtime.wire import Progress, Ready

if TYPE_CHECKING:
    from radixrt.cache.hicache import HiCache
    from radixrt.runtime.channel import EngineChannel
    from radixrt.runtime.grammar.service import GrammarService

log = logging.getLogger(__name__)

OVERTAKE_LIMIT = 64
"""Later arrivals that may be admitted before a request, where fewer run at the same time."""

GRAPH_BYTES = 8 << 20
"""Bytes set aside for a recorded graph beside the memory that all share: its nodes and arrays."""

MORE_LOGITS_ROWS = 64
"""Wanted logits of a step beyond one a running request, for scoring."""

MASK_THREADS = 8
"""Threads that fill masks, at most."""

COMPILE_THREADS = 4
"""Threads that compile constraints, at most."""


def build_loop(config: RuntimeConfig, channel: EngineChannel) -> EngineLoop:
    """Load the model, measure the worst step, give the rest of the budget to KV, return the loop.

    Sends ``Progress`` for every phase and ``Ready`` at the end. Raises ``ConfigError`` or
    ``ModelError``.
    """

    def progress(phase: str, detail: str = "") -> None:
        log.info("%s %s", phase, detail)
        channel.send([Progress(phase, detail)])

    device = devices.choose_device(config.device)
    model_config = read_config(config.model_path)
    total = devices.memory_info(device).total
    config = with_context(config.resolve(device=str(device), memory_bytes=total), model_config)
    dtype = devices.choose_dtype(config.dtype, model_config.dtype, device)
    before = devices.memory_info(device)
    ops, ops_why = choose_ops(device, config.ops)
    attention, attention_why = choose_attention(
        config.attention, model_config.attention, config.page_size, device, dtype
    )
    if device.type == "cpu" and torch.get_num_threads() > num_cores():
        devices.set_num_threads()  # torch counts the machine's cores, not the container's

    progress("weights", f"{config.model_path.name} on {devices.describe(device)}")
    model = load_model(
        config.model_path,
        device=device,
        dtype=dtype,
        ops=ops,
        load_format=config.load_format,
        seed=config.seed,
    )
    limits = Limits(
        config.max_step_tokens, config.max_running + MORE_LOGITS_ROWS, config.mixed_step_tokens
    )

    progress("profile", f"{limits.max_step_tokens} tokens, {config.max_running} running")
    worst = WorstSteps(model, attention, ops, config, limits, device, dtype)
    worst.warm_up()
    step = measure_peak(device, worst.run, worst.least_bytes)
    step += _graph_bytes(config, model, attention, device, dtype)
    devices.release_unused(device)
    memory = plan_memory(
        config,
        model_config,
        dtype=dtype,
        is_gpu=device.type == "cuda",
        before=before,
        weights=model.num_weight_bytes,
        step=step,
        used=devices.used_memory(device),
    )
    progress("memory", str(memory))
    pool = KvPool.zeros(
        model_config.num_layers,
        memory.num_pages,
        config.page_size,
        model_config.num_kv_heads,
        model_config.head_dim,
        dtype=dtype,
        device=device,
    )
    loop = _assemble(config, model, pool, attention, ops, memory, limits, device, channel)
    ready = _ready(config, model_config, memory, device, dtype, ops, attention)
    more = {
        "attention_why": attention_why,
        "ops_why": ops_why,
        "tiers": _tier_tokens(config, memory, pool, loop.scheduler.kv.tiers),
        "max_context": ready.max_context,
    }
    channel.send([msgspec.structs.replace(ready, info=ready.info | more)])
    return loop


def _assemble(
    config: RuntimeConfig,
    model: CausalLM,
    pool: KvPool,
    attention: AttentionBackend,
    ops: Ops,
    memory: MemoryPlan,
    limits: Limits,
    device: torch.device,
    channel: EngineChannel,
) -> EngineLoop:
    slots = SlotTable(config.max_running, config.context_length, config.page_size)
    allocator = PageAllocator(memory.num_pages)
    eviction = _eviction(config, memory.num_pages)
    cache = RadixCache(allocator, config.page_size, policy=eviction)
    tiers = build_tiers(config, pool, cache)
    if tiers is not None and isinstance(eviction.order, LearnedOrder):
        eviction.order.copy_cost = tiers.copy_cost
    kv = KvSpace(cache, allocator, slots, reuse=config.cache, tiers=tiers)
    scheduler = Scheduler(
        slots,
        kv,
        limits,
        Metrics(),
        lease_bias_s=config.lease_bias_s,
        overtake_limit=max(OVERTAKE_LIMIT, config.max_running),
    )
    vocab_size = model.config.vocab_size
    calls = OpenCalls(
        scheduler,
        Capacity(config.context_length, memory.kv_tokens, vocab_size, config.max_queue),
        namespace=_namespace(config, model),
        grammars=_grammars(config, model.config),
    )
    last_ids = torch.zeros(config.max_running, dtype=torch.int64, device=device)
    graphs = _record_graphs(config, model, pool, attention, last_ids)
    host = tiers.host if tiers is not None else None
    engine = Engine(model, pool, attention, ops, slots, device, graphs, last_ids, host)
    snapshots = Snapshots(lambda: tiers_of(kv, engine, pool), layout_of(pool))
    events = None
    if config.kv_events:
        events = KvEvents(config.kv_events, config.kv_events_replay, config.kv_events_topic)
        events.watch(cache.tree, MEDIUM_DEVICE)
        if tiers is not None:
            events.watch(tiers.host.cache.tree, MEDIUM_HOST)
    return EngineLoop(
        engine,
        scheduler,
        calls,
        channel,
        vocab_size=vocab_size,
        overlap=config.overlap,
        snapshots=snapshots if config.cache else None,
        events=events,
    )


@torch.inference_mode()
def _record_graphs(
    config: RuntimeConfig,
    model: CausalLM,
    pool: KvPool,
    attention: AttentionBackend,
    last_ids: torch.Tensor,
    sizes: list[int] | None = None,
) -> StepGraphs | None:
    """Return graphs of small steps, on a device where decode is the kernel of ours: a graph can
    record that."""
    device = last_ids.device
    if device.type != "cuda" or not config.graphs or not attention.name.startswith("triton"):
        return None
    from radixrt.runtime.attention.triton import TritonAttention

    return StepGraphs(
        lambda batch, attention: model.trunk(batch, pool.k, pool.v, attention),
        model.head,
        TritonAttention(model.config.attention, config.page_size, device),
        config.max_running,
        -(-(config.context_length + 1) // config.page_size),
        pool.k.shape[1],
        last_ids,
        sizes,
    )


def _graph_bytes(
    config: RuntimeConfig,
    model: CausalLM,
    attention: AttentionBackend,
    device: torch.device,
    dtype: torch.dtype,
) -> int:
    """Return the bytes that the recorded graphs will take: the largest is recorded on trial, whose
    memory the others share, and each has arrays and the driver's own of its own."""
    shape = model.config
    pool = KvPool.zeros(
        shape.num_layers, 2, config.page_size, shape.num_kv_heads, shape.head_dim,
        dtype=dtype, device=device,
    )  # fmt: skip
    last_ids = torch.zeros(config.max_running, dtype=torch.int64, device=device)
    devices.release_unused(device)
    before = devices.used_memory(device)
    graphs = _record_graphs(config, model, pool, attention, last_ids, [config.max_running])
    if graphs is None:
        return 0
    devices.release_unused(device)
    largest = max(0, devices.used_memory(device) - before)
    return largest + GRAPH_BYTES * len(graph_sizes(config.max_running))


def with_context(config: RuntimeConfig, model: ModelConfig) -> RuntimeConfig:
    """Return the config with the context that is served. Raises ``ConfigError``."""
    length = config.context_length or model.context_length
    if length > model.context_length:
        raise ConfigError(
            f"context_length={length} exceeds the model's {model.context_length} positions"
        )
    return dataclasses.replace(config, context_length=length)


def _eviction(config: RuntimeConfig, num_pages: int) -> Policy:
    if config.eviction == "learned":
        return learned_policy(num_pages)
    return Policy(RecencyOrder(), PageHistory.for_pages(num_pages))


def _namespace(config: RuntimeConfig, model: CausalLM) -> str:
    """Return the prefix of every call's namespace: what decides the bytes of a page."""
    if config.load_format == "dummy":
        weights = f"dummy {config.seed}"
    else:
        weights = fingerprint(config.model_path, model.config)
    return Namespace(
        weights=weights,
        tokenizer="",  # the keys are token ids: text never meets the cache
        rope=repr(model.config.ropes),
        kv_dtype=str(model.dtype),
        page_size=config.page_size,
        layout=f"{model.config.num_layers} {model.config.num_kv_heads} {model.config.head_dim}",
    ).fingerprint()


def _grammars(config: RuntimeConfig, model: ModelConfig) -> GrammarService | None:
    """Return the service of constraints; None without a tokenizer or without the library.

    The tokenizer is read by a thread meanwhile: it takes up to a second.
    """
    tokenizer_file = config.model_path / "tokenizer.json"
    if not tokenizer_file.exists():
        return None
    try:
        from radixrt.runtime.grammar.judges import Judges
        from radixrt.runtime.grammar.llguidance import LlguidanceEngine
        from radixrt.runtime.grammar.service import GrammarService
    except ImportError as error:
        log.warning("constraints are not available: %s", error)
        return None
    cores = num_cores()
    service = GrammarService(
        lambda: LlguidanceEngine(
            tokenizer_file, model.vocab_size, model.eos_token_ids, min(cores, MASK_THREADS)
        ),
        judges=Judges(tokenizer_file, model.vocab_size, tuple(model.eos_token_ids)),
        num_threads=max(1, min(cores // 2, COMPILE_THREADS)),
    )
    service.prepare()
    return service


def _tier_tokens(
    config: RuntimeConfig, memory: MemoryPlan, pool: KvPool, tiers: HiCache | None
) -> dict[str, int]:
    """Return how many tokens each tier holds; a remote store's size is not ours to know."""
    tokens = {"device": memory.kv_tokens}
    if tiers is not None:
        tokens["host"] = tiers.host.pages.num_usable * config.page_size
        if config.disk is not None:
            num_pages = parse_size("disk_quota", config.disk_quota) // page_bytes(pool)
            tokens["disk"] = num_pages * config.page_size
    return tokens


def _ready(
    config: RuntimeConfig,
    model: ModelConfig,
    memory: MemoryPlan,
    device: torch.device,
    dtype: torch.dtype,
    ops: Ops,
    attention: AttentionBackend,
) -> Ready:
    info: dict[str, Any] = {
        "model": config.model_path.name,
        "architecture": model.architecture,
        "device": devices.describe(device),
        "dtype": str(dtype).removeprefix("torch."),
        "kv_tokens": memory.kv_tokens,
        "page_size": config.page_size,
        "max_running": config.max_running,
        "max_step_tokens": config.max_step_tokens,
        "ops": ops.name,
        "attention": attention.name,
        "cache": config.cache,
        "overlap": config.overlap,
        "memory": str(memory),
        "memory_plan": dataclasses.asdict(memory),
        "eos_token_ids": list(model.eos_token_ids),
        "bos_token_id": model.bos_token_id,
    }
    max_context = min(config.context_length, memory.kv_tokens)
    return Ready(max_context, model.vocab_size, info)
