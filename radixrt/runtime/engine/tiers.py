"""The tiers below the device, from a config."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from radixrt.cache.costs import Costs
from radixrt.cache.disk import DiskTier
from radixrt.cache.hicache import HiCache
from radixrt.cache.host import HostTier
from radixrt.cache.pagekeys import KEY_BYTES
from radixrt.cache.records import Layout
from radixrt.cache.tier_policy import TierPolicy
from radixrt.config import RuntimeConfig, parse_size
from radixrt.errors import ConfigError
from radixrt.runtime.host import host_memory
from radixrt.runtime.transfer import choose_mover

if TYPE_CHECKING:
    from radixrt.cache.radix import RadixCache
    from radixrt.cache.tier import Tier
    from radixrt.runtime.forward.engine import Engine
    from radixrt.runtime.scheduling.kv import KvPool, KvSpace

log = logging.getLogger(__name__)

AUTO_GPU_BYTES = 4 << 30
AUTO_GPU_SHARE = 8
"""Host memory beside a GPU: so many bytes, at most one part in so many of what is available."""

AUTO_CPU_BYTES = 256 << 20
"""Host memory on a CPU that has a store: pages pass through it."""

SMALL_BYTES = 64 << 20
"""Host memory that saving and restoring pass through where there is none."""

CALIBRATED_PAGES = (1, 16, 64)
"""Sizes of the loads that are timed at start-up."""


def build_tiers(config: RuntimeConfig, pool: KvPool, cache: RadixCache) -> HiCache | None:
    """Return the tiers that the config asks for, timed; None when it asks for none.

    To be called while nobody uses the pool. Raises ``ConfigError``.
    """
    num_bytes = host_bytes(config, pool.k.device.type)
    if num_bytes < page_bytes(pool) or not config.cache:
        return None
    host = _host(pool, num_bytes)
    costs = Costs()
    calibrate(host, costs, pool.k.shape[1] - 1)
    log.info("host tier: %d pages, mover %s", host.pages.num_usable, host.mover.name)
    policy = TierPolicy(store_on=config.store_on, fetch_deadline_s=config.fetch_deadline_s)
    return HiCache(cache, host, open_stores(config, pool, host), costs=costs, policy=policy)


def tiers_of(kv: KvSpace, engine: Engine, pool: KvPool) -> HiCache:
    """Return the runtime's tiers; where it has none, small ones that copy when they are asked to:
    what saving and restoring pass through."""
    if kv.tiers is None:
        host = _host(pool, max(SMALL_BYTES, 64 * page_bytes(pool)))
        engine.host = host
        kv.tiers = HiCache(kv.cache, host, policy=TierPolicy(write_through=False))
    return kv.tiers


def page_bytes(pool: KvPool) -> int:
    """Return the bytes of one page: K and V of all layers."""
    return 2 * pool.k[:, 0].nbytes


def _host(pool: KvPool, num_bytes: int) -> HostTier:
    mover, pages = choose_mover(pool, num_bytes // page_bytes(pool) + 1)
    return HostTier(pages, pool.k.shape[2], mover)


def open_stores(config: RuntimeConfig, pool: KvPool, host: HostTier) -> list[Tier]:
    """Return the tiers below the host that the config names; raises ``ConfigError``."""
    stores: list[Tier] = []
    if config.disk is not None:
        quota = parse_size("disk_quota", config.disk_quota)
        folder = Path(config.disk).expanduser()
        try:
            stores.append(DiskTier(folder, layout_of(pool), host.data, quota=quota))
        except OSError as error:
            raise ConfigError(f"disk={config.disk} cannot be used: {error}") from error
    if config.remote:
        try:
            from radixrt.cache.remote import RemoteTier
        except ImportError as error:
            raise ConfigError(
                f"remote={config.remote} needs the redis package: pip install 'radixrt[redis]'"
            ) from error
        stores.append(RemoteTier(config.remote, layout_of(pool), host.data))
    return stores


def layout_of(pool: KvPool) -> Layout:
    """Return what a page is outside of memory; what else decides its bytes is in its key."""
    num_layers, _, page_size, num_heads, head_dim = pool.k.shape
    name = f"{pool.k.dtype} {num_layers} {page_size} {num_heads} {head_dim}"
    digest = hashlib.blake2b(name.encode(), digest_size=KEY_BYTES).digest()
    return Layout(page_size, page_bytes(pool), digest)


def host_bytes(config: RuntimeConfig, device_type: str) -> int:
    """Return the bytes of the host tier."""
    if config.host_memory != "auto":
        return parse_size("host_memory", config.host_memory)
    if device_type == "cuda":
        return min(AUTO_GPU_BYTES, host_memory().available // AUTO_GPU_SHARE)
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
        seconds = []
        for _ in range(2):  # the first of a size may prepare something
            move = host.mover.load(pages, pages)
            move.finish()
            seconds.append(move.seconds)
        costs.tier(host.name).observe(count, min(seconds))
