"""Scattered pages between the host's memory and the device's, beside one block copy.

    python benchmarks/hicache_transfer.py                      # on a GPU: llama-3.1-8b's pages
    python benchmarks/hicache_transfer.py --device cpu         # between two CPU pools: 0.5B's pages
    PYTHONPATH=DIR python benchmarks/hicache_transfer.py       # with sgl_kernel in DIR: beside it

Every way moves the same tokens of all layers, from pages in a random order to pages in another, and
is checked page by page before it is timed. A rate is the bytes over the median time, the launches
on the host included; the share is of the block copy of as many bytes in the same run: pinned memory
to the device with cudaMemcpy, or memcpy on one thread of a CPU, where a move has the mover's thread
and the one that waits for it, or one alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radixrt.runtime import device as devices

SHAPES = {"llama-3.1-8b": (32, 8, 128), "qwen2-0.5b": (24, 2, 64)}
"""Layers, KV heads, head_dim."""

CHECKED_PAGES = 256
PROGRAMS = (16, 32, 64, 128)
LARGE_BYTES = 4 << 30
"""Larger cases are timed three times: each takes a good part of a second."""


@dataclass
class Pools:
    """One block of memory on each side, seen as pools of pages of any size."""

    layers: int
    heads: int
    dim: int
    num_tokens: int
    device: torch.device
    block: torch.Tensor = field(init=False)
    host: torch.Tensor = field(init=False)
    """The host's block, as flat as the device's."""

    def __post_init__(self) -> None:
        shape = (2 * self.layers * self.num_tokens, self.heads * self.dim)
        self.block = devices.zeros(shape, torch.bfloat16, self.device)
        self.host = devices.transfer_zeros(shape, torch.bfloat16, self.device)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token: K and V of all layers."""
        return 2 * self.layers * self.heads * self.dim * 2

    def pools(self, page_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V as [layers, pages, page_size, heads, dim]."""
        shape = (2, self.layers, -1, page_size, self.heads, self.dim)
        k, v = self.block.view(shape).unbind(0)
        return k, v

    def host_pages(self, page_size: int) -> torch.Tensor:
        """The host's pool as [pages, layers, 2, page_size, heads, dim]."""
        return self.host.view(-1, self.layers, 2, page_size, self.heads, self.dim)

    def scramble(self) -> None:
        """Give every page of the host contents of its own, and the device none."""
        self.block.view(torch.int32).random_(0, 2**31 - 1)
        self.host.copy_(self.block)
        self.block.zero_()


def seconds_of(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median seconds of ``call``, which returns when its copies are launched."""
    call()
    times = []
    for _ in range(repeats):
        devices.synchronize(device)
        begin = time.perf_counter()
        call()
        devices.synchronize(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


class Case:
    """So many pages of one size, in random order on both sides."""

    def __init__(self, pools: Pools, page_size: int, num_pages: int) -> None:
        self.pools = pools
        self.page_size = page_size
        self.num_pages = num_pages
        total = pools.num_tokens // page_size
        rng = np.random.default_rng(0)
        self.pages = rng.permutation(total)[:num_pages].astype(np.int32)
        self.host_pages = rng.permutation(total)[:num_pages].astype(np.int32)
        self.num_bytes = num_pages * page_size * pools.token_bytes

    def check_loaded(self, host_layout: str = "pages") -> None:
        """Raise unless the device's pages are the host's."""
        for page, host_page in self._sample():
            here, there = self._on_device(page).cpu(), self._on_host(host_page, host_layout)
            assert torch.equal(here.view(torch.int16), there.contiguous().view(torch.int16))

    def check_stored(self, host_layout: str = "pages") -> None:
        """Raise unless the host's pages are the device's."""
        self.check_loaded(host_layout)

    def _sample(self) -> list[tuple[int, int]]:
        step = max(1, self.num_pages // CHECKED_PAGES)
        return list(zip(self.pages[::step].tolist(), self.host_pages[::step].tolist(), strict=True))

    def _on_device(self, page: int) -> torch.Tensor:
        """[layers, 2, page_size, heads, dim]."""
        k, v = self.pools.pools(self.page_size)
        return torch.stack([k[:, page], v[:, page]], 1)

    def _on_host(self, page: int, layout: str) -> torch.Tensor:
        pools, tokens = self.pools, slice(page * self.page_size, (page + 1) * self.page_size)
        shape = (pools.heads, pools.dim)
        if layout == "pages":
            return pools.host_pages(self.page_size)[page]
        if layout == "layers":  # [2, layers, tokens, heads, dim]
            both = pools.host.view(2, pools.layers, -1, *shape)[:, :, tokens]
            return both.transpose(0, 1)
        both = pools.host.view(2, -1, pools.layers, *shape)[:, tokens]  # [2, tokens, layers, …]
        return both.permute(2, 0, 1, 3, 4)


def paired_shares(
    calls: dict[str, Callable[[], Any]], blocks: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, float]:
    """Return how fast each call is beside the block copy just before it, medians: on a machine that
    others use, a rate and a rate taken later have little to do with each other."""
    shares = {}
    for name, call in calls.items():
        ratios = []
        for _ in range(3 * repeats):
            begin = time.perf_counter()
            blocks[name]()
            middle = time.perf_counter()
            call()
            ratios.append((middle - begin) / (time.perf_counter() - middle))
        shares[f"{name} share"] = statistics.median(ratios)
    return shares


def block_calls(case: Case) -> dict[str, Callable[[], Any]]:
    """Return copies of as many bytes in one piece, to the device and back."""
    pools = case.pools
    rows = case.num_bytes // pools.block[0].nbytes
    host, device = pools.host[:rows], pools.block[:rows]
    if pools.device.type == "cpu":
        addresses = device.data_ptr(), host.data_ptr()
        size = case.num_bytes

        def copy(to_host: bool) -> None:
            target, source = addresses[::-1] if to_host else addresses
            ctypes.memmove(target, source, size)

        return {"load": lambda: copy(False), "store": lambda: copy(True)}
    return {
        "load": lambda: device.copy_(host, non_blocking=True),
        "store": lambda: host.copy_(device, non_blocking=True),
    }


def block_copies(case: Case, repeats: int) -> dict[str, float]:
    """Return GB/s of these copies."""
    return {
        name: case.num_bytes / seconds_of(call, case.pools.device, repeats) / 1e9
        for name, call in block_calls(case).items()
    }


def movers(case: Case, programs: tuple[int, ...]) -> dict[str, tuple[str, Any]]:
    """Return our movers: name → (direction it is measured in, mover)."""
    pools = case.pools
    k, v = pools.pools(case.page_size)
    host = pools.host_pages(case.page_size)
    if pools.device.type == "cpu":
        from radixrt.runtime.transfer.cpu import CpuMover

        return {"cpu": ("both", CpuMover(k, v, host))}
    from radixrt.runtime.transfer.copy_engine import CopyEngine
    from radixrt.runtime.transfer.triton import TritonMover

    found: dict[str, tuple[str, Any]] = {}
    for count in programs:
        mover = TritonMover(k, v, host, num_programs=count)
        found[f"direct, {count} programs"] = "both", mover
    if CopyEngine.find() is not None:
        found["staged"] = "both", TritonMover(k, v, host, load_by="staged")
    return found


def measure_mover(case: Case, mover: Any, block: dict[str, float], repeats: int) -> dict[str, Any]:
    """Check a mover both ways, then time it."""
    pools, row = case.pools, {}
    pools.scramble()

    def load() -> None:
        mover.load(case.pages, case.host_pages).wait_all()

    def store() -> None:
        mover.store(case.pages, case.host_pages).wait_all()

    load()
    devices.synchronize(pools.device)
    case.check_loaded()
    pools.block.view(torch.int32).random_(0, 2**31 - 1)
    store()
    devices.synchronize(pools.device)
    case.check_stored()
    for name, call in (("load", load), ("store", store)):
        rate = case.num_bytes / seconds_of(call, pools.device, repeats) / 1e9
        row |= {f"{name} GB/s": rate, f"{name} share": rate / block[name]}
    if pools.device.type == "cpu":
        blocks = block_calls(case)
        row |= paired_shares({"load": load, "store": store}, blocks, repeats)
        alone = paired_shares(on_one_thread(case, mover), blocks, repeats)
        row |= {f"{name}, one thread": share for name, share in alone.items()}
    devices.synchronize(pools.device)
    begin = time.perf_counter()
    move = mover.load(case.pages, case.host_pages)
    row["host s"] = time.perf_counter() - begin
    if pools.device.type == "cpu":
        move.wait_layer(0)
        row["first layer s"] = time.perf_counter() - begin
        move.finish()
    else:
        move.wait_layer(0)
        torch.cuda.current_stream().synchronize()
        row["first layer s"] = time.perf_counter() - begin
        move.finish()
    row["all layers s"] = time.perf_counter() - begin
    return row


def on_one_thread(case: Case, mover: Any) -> dict[str, Callable[[], Any]]:
    """Return moves between CPU pools that the calling thread makes alone: who waits for a move
    copies as well, beside the mover's thread."""
    from radixrt.runtime.transfer.cpu import CpuMove

    return {
        name: lambda to_host=to_host: CpuMove(
            mover, case.pages, case.host_pages, to_host=to_host
        ).run()
        for name, to_host in (("load", False), ("store", True))
    }


def sgl_calls(case: Case) -> dict[str, tuple[str, str, Callable[[], None]]]:
    """Return sgl_kernel's ways: name → (direction, layout of the host, call)."""
    from sgl_kernel import kvcacheio as sgl

    pools, size = case.pools, case.page_size
    layers, item = pools.layers, pools.heads * pools.dim * 2
    k, v = (pool.view(layers, -1, pools.heads, pools.dim) for pool in pools.pools(size))
    offsets = torch.arange(size)

    def tokens(pages: Any) -> torch.Tensor:
        at = torch.from_numpy(pages.astype(np.int64))[:, None] * size + offsets
        return at.flatten().to(pools.device)

    def pages_of(pages: Any) -> torch.Tensor:
        return torch.from_numpy(pages.astype(np.int64)).to(pools.device)

    def pointers(pool: torch.Tensor) -> torch.Tensor:
        at = [layer.data_ptr() for layer in pool]
        return torch.tensor(at, dtype=torch.uint64, device=pools.device)

    here, there = tokens(case.pages), tokens(case.host_pages)
    here_page, there_page = pages_of(case.pages), pages_of(case.host_pages)
    lf_k, lf_v = pools.host.view(2, layers, -1, pools.heads, pools.dim).unbind(0)
    pf_k, pf_v = pools.host.view(2, -1, layers, pools.heads, pools.dim).unbind(0)
    all_device = pointers(k), pointers(v)
    all_host = pointers(lf_k), pointers(lf_v)

    def per_layer() -> None:
        for i in range(layers):
            sgl.transfer_kv_per_layer(lf_k[i], k[i], lf_v[i], v[i], there, here, item)

    def per_layer_pages() -> None:
        for i in range(layers):
            sgl.transfer_kv_per_layer(
                lf_k[i], k[i], lf_v[i], v[i], there_page, here_page, item * size
            )

    def all_layer() -> None:
        sgl.transfer_kv_all_layer(
            all_host[0], all_device[0], all_host[1], all_device[1], there, here, item, layers
        )

    def per_layer_pf() -> None:
        for i in range(layers):
            sgl.transfer_kv_per_layer_pf_lf(
                pf_k, k[i], pf_v, v[i], there, here, i, item, item * layers
            )

    def all_layer_store() -> None:
        sgl.transfer_kv_all_layer(
            all_device[0], all_host[0], all_device[1], all_host[1], here, there, item, layers
        )

    def all_layer_pf_store() -> None:
        sgl.transfer_kv_all_layer_lf_pf(
            all_device[0], pf_k, all_device[1], pf_v, here, there, item, item * layers, layers
        )

    return {
        "sgl per_layer": ("load", "layers", per_layer),
        "sgl per_layer, a page an item": ("load", "layers", per_layer_pages),
        "sgl all_layer": ("load", "layers", all_layer),
        "sgl per_layer_pf_lf": ("load", "tokens", per_layer_pf),
        "sgl all_layer store": ("store", "layers", all_layer_store),
        "sgl all_layer_lf_pf store": ("store", "tokens", all_layer_pf_store),
    }


def measure_sgl(
    case: Case, way: tuple[str, str, Callable[[], None]], block: dict[str, float], repeats: int
) -> dict[str, Any]:
    """Check one of sgl_kernel's ways, then time it."""
    direction, layout, call = way
    pools = case.pools
    pools.scramble()
    if direction == "store":
        pools.block.view(torch.int32).random_(0, 2**31 - 1)
    call()
    devices.synchronize(pools.device)
    case.check_loaded(layout)
    rate = case.num_bytes / seconds_of(call, pools.device, repeats) / 1e9
    return {f"{direction} GB/s": rate, f"{direction} share": rate / block[direction]}


def measure(case: Case, repeats: int, with_sgl: bool) -> list[dict[str, Any]]:
    """Return a row for every way of one case."""
    repeats = min(repeats, 3) if case.num_bytes > LARGE_BYTES else repeats
    block = block_copies(case, repeats)
    rows: list[dict[str, Any]] = [
        {"way": "block copy"} | {f"{name} GB/s": rate for name, rate in block.items()}
    ]
    for name, (_, mover) in movers(case, PROGRAMS).items():
        rows.append({"way": name} | guarded(lambda m=mover: measure_mover(case, m, block, repeats)))
        mover.close()
    if with_sgl:
        for name, way in sgl_calls(case).items():
            rows.append({"way": name} | guarded(lambda w=way: measure_sgl(case, w, block, repeats)))
    for row in rows:
        row |= {"page_size": case.page_size, "pages": case.num_pages, "bytes": case.num_bytes}
    return rows


def guarded(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the row, or what went wrong in its place: the other ways are still measured."""
    try:
        return run()
    except AssertionError:
        return {"error": "wrong contents"}
    except Exception as error:
        return {"error": repr(error)[:300]}


def has_sgl(device: torch.device) -> bool:
    """Whether sgl_kernel's transfer kernels load."""
    if device.type != "cuda":
        return False
    try:
        from sgl_kernel import kvcacheio  # noqa: F401
    except Exception as error:
        print(f"sgl_kernel: {error!r}", file=sys.stderr)
        return False
    return True


def main() -> None:
    """Print a table and write the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shape", choices=SHAPES, help="default: 8b on a GPU, 0.5b on a CPU")
    parser.add_argument("--pages", type=int, nargs="*", default=[16, 256, 4096])
    parser.add_argument("--page-sizes", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--max-bytes", type=float, help="of a case; default 1e9 on a CPU")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = devices.choose_device(options.device)
    is_gpu = device.type == "cuda"
    shape = SHAPES[options.shape or ("llama-3.1-8b" if is_gpu else "qwen2-0.5b")]
    token_bytes = 2 * shape[0] * shape[1] * shape[2] * 2
    limit = options.max_bytes or (float("inf") if is_gpu else 1e9)
    sizes = [
        (page_size, num_pages)
        for page_size in options.page_sizes
        for num_pages in options.pages
        if page_size * num_pages * token_bytes <= limit
    ]
    most = max(page_size * num_pages for page_size, num_pages in sizes)
    pools = Pools(*shape, num_tokens=most + max(options.page_sizes), device=device)
    with_sgl = has_sgl(device)
    report = {"device": devices.describe(device), "shape": shape, "torch": torch.__version__}
    print(json.dumps(report))
    rows = []
    for page_size, num_pages in sizes:
        case = Case(pools, page_size, num_pages)
        print(f"{num_pages} pages of {page_size} tokens, {case.num_bytes / 1e6:.0f} MB", flush=True)
        for row in measure(case, options.repeats, with_sgl):
            rows.append(row)
            shown = {
                key: round(value, 5 if key.endswith(" s") else 3)
                for key, value in row.items()
                if isinstance(value, float)
            }
            print(f"  {row['way']:32}", row.get("error") or shown, flush=True)
    if options.json:
        options.json.write_text(json.dumps(report | {"rows": rows}, indent=1))
    ours = [row for row in rows if "error" in row and not row["way"].startswith("sgl")]
    if ours:
        raise SystemExit(f"failed: {ours}")


if __name__ == "__main__":
    main()
