"""Experiment: which way of moving scattered pages comes nearest to one block copy, and why.

    PYTHONPATH=DIR python benchmarks/hicache_ways.py --json OUT            # sgl_kernel in DIR
    TRITON_INTERPRET=1 python benchmarks/hicache_ways.py --device cpu            # checks contents

Every way is checked page by page and then timed in turn with the block copy of as many bytes; the
share is the median of these pairs. "host s" is the part during which Python launches.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from hicache_transfer import SHAPES, Case, Pools, block_calls, guarded, has_sgl, sgl_calls
from triton.language.extra.cuda import gdc_launch_dependents

from radixrt.runtime import device as devices

ALL = 1 << 20


@triton.jit
def _move(
    keys,
    values,
    host,
    pages,
    host_pages,
    num_pages,
    first_layer,
    num_layers,
    layer_stride,
    host_stride,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    TO_HOST: tl.constexpr,
    PDL: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)
    total = num_pages * num_layers * 2 * PARTS
    for part in range(tl.program_id(0), total, tl.num_programs(0)):
        at = (part % PARTS) * BLOCK + columns
        inside = (at < CHUNK) if CHUNK % BLOCK else None
        half = (part // PARTS) % 2
        layer = first_layer + (part // (PARTS * 2)) % num_layers
        index = part // (PARTS * 2 * num_layers)
        page = tl.load(pages + index).to(tl.int64)
        host_page = tl.load(host_pages + index).to(tl.int64)
        there = host + host_page * host_stride + (layer * 2 + half) * CHUNK + at
        here = layer.to(tl.int64) * layer_stride + page * CHUNK + at
        if TO_HOST:
            if half == 0:
                tl.store(there, tl.load(keys + here, mask=inside), mask=inside)
            else:
                tl.store(there, tl.load(values + here, mask=inside), mask=inside)
        else:
            # Before the branch: what was read is on its way while the branch is decided.
            moved = tl.load(there, mask=inside, cache_modifier=".cg")
            if half == 0:
                tl.store(keys + here, moved, mask=inside)
            else:
                tl.store(values + here, moved, mask=inside)
    if PDL:
        gdc_launch_dependents()


class Attributes(ctypes.Structure):
    """``cudaMemcpyAttributes``: access order, two location hints of type and id, flags."""

    _fields_ = [(name, ctypes.c_int) for name in ("order", "st", "si", "dt", "di", "flags")]


class Copies:
    """The copy engine's calls; on a CPU the same copies at once, to check addresses."""

    def __init__(self, device: torch.device) -> None:
        self.lib = None
        if device.type == "cuda":
            torch.zeros(1, device=device)
            maps = Path("/proc/self/maps").read_text().split()
            self.lib = ctypes.CDLL(next(p for p in maps if "/libcudart.so" in p))

    def batch(self, to: np.ndarray, of: np.ndarray, size: int, stream: Any) -> None:
        """Copy ``size`` bytes from each address to each other one, in one call."""
        count = len(to)
        if self.lib is None:
            for target, source in zip(to.tolist(), of.tolist(), strict=True):
                ctypes.memmove(target, source, size)
            return
        to, of = np.ascontiguousarray(to, np.uint64), np.ascontiguousarray(of, np.uint64)
        sizes = np.full(count, size, np.uint64)
        attributes, first = Attributes(order=1), ctypes.c_size_t(0)
        self._check(
            self.lib.cudaMemcpyBatchAsync(
                ctypes.c_void_p(to.ctypes.data),
                ctypes.c_void_p(of.ctypes.data),
                ctypes.c_void_p(sizes.ctypes.data),
                ctypes.c_size_t(count),
                ctypes.byref(attributes),
                ctypes.byref(first),
                ctypes.c_size_t(1),
                ctypes.c_void_p(stream.cuda_stream),
            )
        )

    def rows(
        self, to: int, to_pitch: int, of: int, of_pitch: int, width: int, height: int, stream: Any
    ) -> None:
        """Copy ``height`` rows of ``width`` bytes that lie a pitch apart."""
        if self.lib is None:
            for row in range(height):
                ctypes.memmove(to + row * to_pitch, of + row * of_pitch, width)
            return
        size = ctypes.c_size_t
        self._check(
            self.lib.cudaMemcpy2DAsync(
                ctypes.c_void_p(to),
                size(to_pitch),
                ctypes.c_void_p(of),
                size(of_pitch),
                size(width),
                size(height),
                ctypes.c_int(4),  # the addresses say which side
                ctypes.c_void_p(stream.cuda_stream),
            )
        )

    def _check(self, error: int) -> None:
        if error:
            raise RuntimeError(f"CUDA error {error}")


class NoStream:
    """On a CPU everything happens at once."""

    cuda_stream = 0

    def wait_event(self, event: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


class Ways:
    """What a case is moved by; every way leaves the current stream waiting for its copies."""

    def __init__(self, case: Case, copies: Copies, streams: list[Any], staging: torch.Tensor):
        self.case, self.copies, self.streams = case, copies, streams
        self.is_cuda = case.pools.device.type == "cuda"
        self.k, self.v = case.pools.pools(case.page_size)
        self.host = case.pools.host_pages(case.page_size)
        self.layers = case.pools.layers
        self.chunk = self.k[0, 0].numel()
        self.chunk_bytes = self.chunk * 2
        self.page_bytes = self.host[0].nbytes
        self.staging = staging[: len(staging) // self.page_bytes * self.page_bytes]
        self.staging = self.staging.view(self.host.dtype).view(-1, *self.host.shape[1:])

    def event(self, stream: Any) -> Any:
        """Record an event on a stream."""
        if not self.is_cuda:
            return None
        event = torch.cuda.Event()
        event.record(stream)
        return event

    def on(self, stream: Any) -> Any:
        """Make a stream the current one."""
        return torch.cuda.stream(stream) if self.is_cuda else stream

    def begin(self) -> list[torch.Tensor]:
        """Upload the page numbers; the streams begin after that."""
        order = np.arange(len(self.staging), dtype=np.int32)
        ids = devices.upload([self.case.pages, self.case.host_pages, order], self.case.pools.device)
        here = torch.cuda.current_stream() if self.is_cuda else None
        ready = self.event(here)
        for stream in self.streams:
            stream.wait_event(ready)
        return ids

    def join(self, events: list[Any]) -> None:
        """Let the current stream wait."""
        if self.is_cuda:
            for event in events:
                torch.cuda.current_stream().wait_event(event)

    def launch(
        self,
        host: torch.Tensor,
        pages: torch.Tensor,
        host_pages: torch.Tensor,
        layers: tuple[int, int],
        *,
        to_host: bool,
        programs: int,
        block: int = 8192,
        warps: int = 8,
        pdl: bool = False,
    ) -> None:
        """Launch the kernel on the current stream."""
        block = min(block, triton.next_power_of_2(self.chunk))
        parts = -(-self.chunk // block)
        total = parts * 2 * (layers[1] - layers[0]) * len(pages)
        more = {"launch_pdl": True} if pdl else {}
        _move[(min(programs, total),)](
            self.k,
            self.v,
            host,
            pages,
            host_pages,
            len(pages),
            layers[0],
            layers[1] - layers[0],
            self.k.stride(0),
            host.stride(0),
            CHUNK=self.chunk,
            PARTS=parts,
            BLOCK=block,
            TO_HOST=to_host,
            PDL=pdl,
            num_warps=warps,
            **more,
        )

    def groups(self, group: int) -> list[tuple[int, int]]:
        """Return ranges of layers."""
        layers = range(0, self.layers, min(group, self.layers))
        return [(first, min(first + group, self.layers)) for first in layers]

    def direct(
        self, *, group: int, to_host: bool = False, num_streams: int = 1, **how: Any
    ) -> None:
        """The kernel, so many layers a launch, in turn on so many streams."""
        pages, host_pages, _ = self.begin()
        events = []
        for index, layers in enumerate(self.groups(group)):
            stream = self.streams[index % num_streams]
            with self.on(stream):
                self.launch(self.host, pages, host_pages, layers, to_host=to_host, **how)
            if not how.get("pdl"):
                events.append(self.event(stream))
        if how.get("pdl"):
            events.append(self.event(self.streams[0]))
        self.join(events)

    def staged(
        self, *, round_pages: int, to_host: bool = False, by: str = "batch", layers_at_once: int = 0
    ) -> None:
        """Whole pages through one of two staging buffers; the kernel's stream is another one.

        With ``layers_at_once`` a round is so many layers of all pages, so that layers come in
        order.
        """
        pages, host_pages, order = self.begin()
        copying, spreading = self.streams[0], self.streams[1]
        if layers_at_once:
            self._staged_layers(pages, order, layers_at_once, to_host)
            return
        round_pages = min(round_pages, len(self.staging) // 2)
        free: list[Any] = [None, None]
        last: list[Any] = []
        for index, first in enumerate(range(0, self.case.num_pages, round_pages)):
            side = index % 2
            buffer = self.staging[side * round_pages : (side + 1) * round_pages]
            part = self.case.host_pages[first : first + round_pages]
            here, there = pages[first : first + len(part)], order[: len(part)]
            if to_host:
                with self.on(spreading):
                    if free[side] is not None:
                        spreading.wait_event(free[side])
                    self.launch(buffer, here, there, (0, self.layers), to_host=True, programs=4096)
                    copying.wait_event(self.event(spreading))
                self._whole_pages(buffer, part, to_host, by, copying)
                free[side] = self.event(copying)
                last = [free[side]]
                continue
            if free[side] is not None:
                copying.wait_event(free[side])
            self._whole_pages(buffer, part, to_host, by, copying)
            spreading.wait_event(self.event(copying))
            with self.on(spreading):
                self.launch(buffer, here, there, (0, self.layers), to_host=False, programs=4096)
            free[side] = self.event(spreading)
            last = [free[side]]
        self.join(last)

    def _whole_pages(
        self, buffer: torch.Tensor, part: np.ndarray, to_host: bool, by: str, stream: Any
    ) -> None:
        if by == "copy":
            with self.on(stream):
                for index, page in enumerate(part.tolist()):
                    ends = (self.host[page], buffer[index])
                    to, of = ends if to_host else ends[::-1]
                    to.copy_(of, non_blocking=True)
            return
        size = self.page_bytes
        on_host = self.host.data_ptr() + part.astype(np.uint64) * np.uint64(size)
        here = buffer.data_ptr() + np.arange(len(part), dtype=np.uint64) * np.uint64(size)
        to, of = (on_host, here) if to_host else (here, on_host)
        self.copies.batch(to, of, size, stream)

    def _staged_layers(
        self, pages: torch.Tensor, order: torch.Tensor, group: int, to_host: bool
    ) -> None:
        assert not to_host
        count = self.case.num_pages
        assert count <= len(self.staging), "the staging buffer holds all layers here"
        copying, spreading = self.streams[0], self.streams[1]
        host = self.case.host_pages.astype(np.uint64) * np.uint64(self.page_bytes)
        here = np.arange(count, dtype=np.uint64) * np.uint64(self.page_bytes)
        events = []
        for first, end in self.groups(group):
            offset = np.uint64(first * 2 * self.chunk_bytes)
            self.copies.batch(
                self.staging.data_ptr() + here + offset,
                self.host.data_ptr() + host + offset,
                (end - first) * 2 * self.chunk_bytes,
                copying,
            )
            spreading.wait_event(self.event(copying))
            with self.on(spreading):
                self.launch(
                    self.staging,
                    pages,
                    order[:count],
                    (first, end),
                    to_host=False,
                    programs=4096,
                )
            events.append(self.event(spreading))
        self.join(events)

    def straight(self, *, group: int, by: str = "batch", to_host: bool = False) -> None:
        """The copy engine alone, a chunk a copy, or as rows of all layers of a group."""
        self.begin()
        stream = self.streams[0]
        events = []
        for first, end in self.groups(group):
            if by == "rows":
                self._rows(first, end, to_host, stream)
            else:
                here, there = self._chunks(first, end)
                to, of = (there, here) if to_host else (here, there)
                self.copies.batch(to, of, self.chunk_bytes, stream)
            events.append(self.event(stream))
        self.join(events)

    def _rows(self, first: int, end: int, to_host: bool, stream: Any) -> None:
        pitch = self.k.stride(0) * 2
        host_ids, ids = self.case.host_pages.tolist(), self.case.pages.tolist()
        for page, host_page in zip(ids, host_ids, strict=True):
            for half, pool in enumerate((self.k, self.v)):
                here = pool.data_ptr() + first * pitch + page * self.chunk_bytes
                there = self.host.data_ptr() + host_page * self.page_bytes
                there += (2 * first + half) * self.chunk_bytes
                width, height = self.chunk_bytes, end - first
                if to_host:
                    self.copies.rows(there, 2 * width, here, pitch, width, height, stream)
                else:
                    self.copies.rows(here, pitch, there, 2 * width, width, height, stream)

    def _chunks(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        layers = np.arange(first, end, dtype=np.uint64)[:, None]
        pages = self.case.pages.astype(np.uint64)[None] * np.uint64(self.chunk_bytes)
        host_pages = self.case.host_pages.astype(np.uint64)[None] * np.uint64(self.page_bytes)
        pitch = np.uint64(self.k.stride(0) * 2)
        here, there = [], []
        for half, pool in enumerate((self.k, self.v)):
            here.append(np.uint64(pool.data_ptr()) + layers * pitch + pages)
            offset = (layers * np.uint64(2) + np.uint64(half)) * np.uint64(self.chunk_bytes)
            there.append(np.uint64(self.host.data_ptr()) + host_pages + offset)
        return np.concatenate(here).ravel(), np.concatenate(there).ravel()


def ways_of(ways: Ways, only_few: bool) -> dict[str, Callable[[], None]]:
    """Return name → way; names of stores begin with "store"."""
    found: dict[str, Callable[[], None]] = {}

    def add(name: str, method: Callable[..., None], **how: Any) -> None:
        if name.startswith("store"):
            how["to_host"] = True
        found[name] = lambda: method(**how)

    direct, staged, straight = ways.direct, ways.staged, ways.straight
    page_pages = max(1, (32 << 20) // ways.page_bytes)
    add("load direct g1 p32", direct, group=1, programs=32)
    add("load direct g4 p32", direct, group=4, programs=32)
    add("load direct all p32", direct, group=ALL, programs=32)
    add("load direct all p64", direct, group=ALL, programs=64)
    add("load staged batch 32M", staged, round_pages=page_pages)
    add("load staged batch 64M", staged, round_pages=2 * page_pages)
    add("store direct p32", direct, group=ALL, programs=32)
    add("store staged batch 32M", staged, round_pages=page_pages)
    add("store direct p16", direct, group=ALL, programs=16)
    add("store direct p64", direct, group=ALL, programs=64)
    if only_few:
        return found
    for group in (1, 2, 4, 8):
        for programs in (24, 48, 64, 96, 132):
            add(f"load direct g{group} p{programs}", direct, group=group, programs=programs)
        add(f"load direct g{group} p32", direct, group=group, programs=32)
        add(f"load 2 streams g{group} p16", direct, group=group, programs=16, num_streams=2)
        add(f"load 2 streams g{group} p32", direct, group=group, programs=32, num_streams=2)
        add(f"load 2 streams g{group} p64", direct, group=group, programs=64, num_streams=2)
    for block, warps, programs in (
        (2048, 4, 64),
        (2048, 4, 132),
        (2048, 8, 264),
        (4096, 4, 64),
        (4096, 8, 132),
        (4096, 16, 64),
        (8192, 16, 64),
        (16384, 8, 32),
        (16384, 16, 32),
        (16384, 16, 64),
        (16384, 32, 32),
    ):
        shape = {"block": block, "warps": warps, "programs": programs}
        name = f"b{block} w{warps} p{programs}"
        add(f"load direct g1 {name}", direct, group=1, **shape)
        add(f"load direct all {name}", direct, group=ALL, **shape)
        add(f"store direct {name}", direct, group=ALL, **shape)
    add("load direct g1 p32 pdl", direct, group=1, programs=32, pdl=True)
    add("load direct g1 p64 pdl", direct, group=1, programs=64, pdl=True)
    add("load staged copy_ 32M", staged, round_pages=page_pages, by="copy")
    add("load staged batch 16M", staged, round_pages=max(1, page_pages // 2))
    add("load staged batch 128M", staged, round_pages=4 * page_pages)
    for group in (1, 2, 4, 8):
        add(f"load staged layers g{group}", staged, round_pages=0, layers_at_once=group)
    add("load straight batch all", straight, group=ALL)
    add("load straight batch g1", straight, group=1)
    add("load straight batch g8", straight, group=8)
    add("load straight rows all", straight, group=ALL, by="rows")
    add("load straight rows g8", straight, group=8, by="rows")
    add("store straight rows all", straight, group=ALL, by="rows")
    add("store straight batch all", straight, group=ALL)
    add("store staged copy_ 32M", staged, round_pages=page_pages, by="copy")
    add("store staged batch 64M", staged, round_pages=2 * page_pages)
    return found


def measure(
    case: Case, name: str, call: Callable[[], None], repeats: int, layout: str = "pages"
) -> dict[str, Any]:
    """Check a way, then time it in pairs with the block copy."""
    direction, device = name.split()[0], case.pools.device
    block = block_calls(case)[direction]
    # Contents that no way before has left: zeros where they are to arrive.
    ends = case.pools.host, case.pools.block
    source, target = ends if direction == "load" else ends[::-1]
    target.zero_()
    numbers = source.view(torch.int32).view(-1)
    numbers[:: 1 + len(numbers) // (8 << 20)].random_(0, 2**31 - 1)
    call()
    devices.synchronize(device)
    case.check_loaded(layout)
    call()
    devices.synchronize(device)
    rates, shares, launches = [], [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        block()
        devices.synchronize(device)
        middle = time.perf_counter()
        call()
        launched = time.perf_counter()
        devices.synchronize(device)
        end = time.perf_counter()
        rates.append(case.num_bytes / (end - middle) / 1e9)
        shares.append((middle - begin) / (end - middle))
        launches.append(launched - middle)
    middles = [statistics.median(values) for values in (rates, shares, launches)]
    return dict(zip(("GB/s", "share", "host s"), middles, strict=True))


def main() -> None:
    """Print a row a way, best last, and write the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pages", type=int, nargs="*", default=[256, 16])
    parser.add_argument("--page-sizes", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--few",
        action="store_true",
        help="the plausible ways only; else so for all cases but the first",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = devices.choose_device(options.device)
    is_cuda = device.type == "cuda"
    shape = SHAPES["llama-3.1-8b"] if is_cuda else (5, 2, 24)
    if not is_cuda:
        options.pages, options.page_sizes, options.repeats = [9], [4], 1
    most = max(options.pages) * max(options.page_sizes)
    pools = Pools(*shape, num_tokens=most + 2 * max(options.page_sizes), device=device)
    pools.block.view(torch.int32).random_(0, 2**31 - 1)
    pools.host.copy_(pools.block)
    streams = [torch.cuda.Stream(device) if is_cuda else NoStream() for _ in range(2)]
    page_bytes = [size * pools.token_bytes for size in options.page_sizes]
    whole = min(4 << 30, max(page_bytes) * max(options.pages))
    staging = torch.zeros(max(whole, 8 * max(page_bytes)), dtype=torch.uint8, device=device)
    copies = Copies(device)
    rows = []
    for page_size in options.page_sizes:
        for num_pages in options.pages:
            case = Case(pools, page_size, num_pages)
            ways = Ways(case, copies, streams, staging)
            print(f"{num_pages} pages of {page_size} tokens, {case.num_bytes / 1e6:.0f} MB")
            case_rows = []
            is_first = page_size == options.page_sizes[0] and num_pages == options.pages[0]
            calls = ways_of(ways, options.few or not is_first)
            layouts = dict.fromkeys(calls, "pages")
            if has_sgl(device):
                for name, (direction, layout, call) in sgl_calls(case).items():
                    calls[f"{direction} {name}"] = call
                    layouts[f"{direction} {name}"] = layout
            for name, call in calls.items():
                row = {"way": name, "pages": num_pages, "page_size": page_size} | guarded(
                    lambda n=name, c=call: measure(case, n, c, options.repeats, layouts[n])
                )
                case_rows.append(row)
                if "error" in row:
                    print(f"  {name:36} {row['error']}", flush=True)
            for row in sorted(case_rows, key=lambda row: row.get("share", 0)):
                if "error" not in row:
                    print(
                        f"  {row['way']:36} {row['GB/s']:6.1f} GB/s  {row['share']:.3f}  "
                        f"{row['host s'] * 1e3:.2f} ms to launch",
                        flush=True,
                    )
            rows += case_rows
    pools.memory.close()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
