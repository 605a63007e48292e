"""The tiers below the device, from a config."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from radixrt.cache.costs import Costs
from radixrt.cache.disk import DiskTier
from radixrt.cache.hicache import HiCache, TierPolicy
from radixrt.cache.host import HostTier
from radixrt.cache.pagekeys import KEY_BYTES
from radixrt.cache.records import Layout
from radixrt.config import RuntimeConfig, parse_size
from radixrt.runtime import device as devices
from radixrt.runtime.transfer import choose_mover

if TYPE_CHECKING:
    from radixrt.cache.radix import RadixCache
    from radixrt.cache.tier import Tier
    from radixrt.runtime.kv import KvPool

log = logging.getLogger(__name__)

AUTO_GPU_BYTES = 4 << 30
AUTO_GPU_SHARE = 8
"""Host memory beside a GPU: so many bytes, at most one part in so many of what is available."""

AUTO_CPU_BYTES = 256 << 20
"""Host memory on a CPU that has a store: pages pass through it."""

CALIBRATED_PAGES = (1, 16, 64)
"""Sizes of the loads that are timed at start-up."""


def build_tiers(config: RuntimeConfig, pool: KvPool, cache: RadixCache) -> HiCache | None:
    """Return the tiers that the config asks for, timed; None when it asks for none.

    To be called while nobody uses the pool. Raises ``ConfigError``.
    """
    page_bytes = 2 * pool.k[:, 0].nbytes
    num_pages = host_bytes(config, pool.k.device.type) // page_bytes
    if num_pages < 1 or not config.cache:
        return None
    mover, memory = choose_mover(pool, num_pages + 1)
    host = HostTier(memory.pages, config.page_size, mover)
    costs = Costs()
    calibrate(host, costs, pool.k.shape[1] - 1)
    log.info("host tier: %d pages of %d bytes, mover %s", num_pages, page_bytes, mover.name)
    policy = TierPolicy(store_on=config.store_on, fetch_deadline_s=config.fetch_deadline_s)
    return HiCache(cache, host, open_stores(config, pool, host), costs=costs, policy=policy)


def open_stores(config: RuntimeConfig, pool: KvPool, host: HostTier) -> list[Tier]:
    """Return the tiers below the host that the config names; raises ``ConfigError``."""
    stores: list[Tier] = []
    if config.disk is not None:
        quota = parse_size("disk_quota", config.disk_quota)
        folder = Path(config.disk).expanduser()
        stores.append(DiskTier(folder, layout_of(pool), host.data, quota=quota))
    return stores


def layout_of(pool: KvPool) -> Layout:
    """Return what a page is outside of memory; what else decides its bytes is in its key."""
    num_layers, _, page_size, num_heads, head_dim = pool.k.shape
    name = f"{pool.k.dtype} {num_layers} {page_size} {num_heads} {head_dim}"
    digest = hashlib.blake2b(name.encode(), digest_size=KEY_BYTES).digest()
    return Layout(page_size, 2 * pool.k[:, 0].nbytes, digest)


def host_bytes(config: RuntimeConfig, device_type: str) -> int:
    """Return the bytes of the host tier."""
    if config.host_memory != "auto":
        return parse_size("host_memory", config.host_memory)
    if device_type == "cuda":
        return min(AUTO_GPU_BYTES, devices.host_memory().available // AUTO_GPU_SHARE)
    return AUTO_CPU_BYTES if config.disk or config.remote else 0


def calibrate(host: HostTier, costs: Costs, num_device_pages: int) -> None:
    """Time loads of a few sizes; overwrites the first pages of both pools."""
    largest = min(max(CALIBRATED_PAGES), num_device_pages, len(host.data) - 1)
    # Pinned memory holds anything, and a page of NaNs would spoil what is next to it in a page.
    host.data[: largest + 1] = 0
    host.mover.warm_up(largest)
    for count in sorted({min(count, largest) for count in CALIBRATED_PAGES}):
        pages = host.pages.take(count)
        host.pages.give(pages)
        move = host.mover.load(pages, pages)
        move.finish()
        costs.tier(host.name).observe(count, move.seconds)
