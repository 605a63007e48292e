"""Every mover moves what the reference moves, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from radixrt.cache.costs import Costs
from radixrt.cache.host import HostTier
from radixrt.errors import InvalidArgument
from radixrt.runtime import device as devices
from radixrt.runtime.engine.tiers import calibrate
from radixrt.runtime.transfer.reference import FinishedMove, ReferenceMover

Int32 = NDArray[np.int32]
CPU = torch.device("cpu")
NO_KERNELS = "the native kernels are not built: a GPU's machine may do without"
SHAPES = [
    (3, 12, 4, 2, 16),  # layers, pages, page_size, heads, dim
    (2, 9, 16, 8, 128),
    (1, 5, 1, 1, 3),
    (4, 300, 16, 2, 64),  # large enough for copies that pass the caches by
]


@pytest.fixture
def make_case() -> Iterator[Callable[..., Case]]:
    """Makes cases whose memory is given up when the last copy is done."""
    made: list[Case] = []

    def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
        made.append(Case(shape, dtype, device))
        return made[-1]

    yield make
    for case in made:
        devices.synchronize(case.keys.device)


class Case:
    """Pools with contents, twice: one pair for the reference, one for the mover under test."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        host = (shape[1] + 3, shape[0], 2, *shape[2:])

        def draw(size: tuple[int, ...], where: torch.device) -> torch.Tensor:
            return torch.randn(size, generator=generator).to(dtype).to(where)

        self.keys, self.values = draw(shape, device), draw(shape, device)
        self.host = devices.transfer_zeros(host, dtype, device).copy_(draw(host, CPU))
        self.expected = [t.clone() for t in (self.keys, self.values, self.host)]
        rng = np.random.default_rng(1)
        count = shape[1] * 2 // 3
        self.pages: Int32 = rng.permutation(shape[1])[:count].astype(np.int32)
        self.host_pages: Int32 = rng.permutation(host[0])[:count].astype(np.int32)
        self.reference = ReferenceMover(*self.expected)

    def check(self) -> None:
        actual = (self.keys, self.values, self.host)
        for name, tensor, expected in zip("kvh", actual, self.expected, strict=True):
            assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_mover_moves_what_the_reference_moves(
    make_case: Callable[..., Case], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    case = make_case(shape, dtype, CPU)
    native = pytest.importorskip("radixrt.runtime.transfer.cpu", reason=NO_KERNELS)
    mover = native.CpuMover(case.keys, case.values, case.host)
    case.reference.load(case.pages, case.host_pages)
    move = mover.load(case.pages, case.host_pages)
    for layer in range(shape[0]):
        move.wait_layer(layer)
        assert torch.equal(case.keys[layer], case.expected[0][layer])
    assert move.is_done
    case.check()
    case.reference.store(case.pages, case.host_pages[::-1].copy())
    mover.store(case.pages, case.host_pages[::-1]).finish()
    case.check()
    mover.close()


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"pages": [12]}, "pages"),
        ({"pages": [-1]}, "pages"),
        ({"host_pages": [15]}, "host_pages"),
        ({"host_pages": [1, 2]}, "host_pages"),
        ({"last_layer": 4}, "first_layer, last_layer"),
        ({"first_layer": 2, "last_layer": 1}, "first_layer, last_layer"),
        ({"host": torch.zeros(15, 3, 2, 4, 2, 8)}, "host"),
        ({"host": torch.zeros(15, 3, 2, 4, 2, 16, dtype=torch.bfloat16)}, "host"),
        ({"v_cache": torch.zeros(3, 11, 4, 2, 16)}, "v_cache"),
        ({"k_cache": torch.zeros(3, 12, 4, 2, 32)[..., ::2]}, "k_cache"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], argument: str) -> None:
    native = pytest.importorskip("radixrt._native", reason=NO_KERNELS)
    arguments: dict[str, Any] = {
        "k_cache": torch.zeros(3, 12, 4, 2, 16),
        "v_cache": torch.zeros(3, 12, 4, 2, 16),
        "host": torch.zeros(15, 3, 2, 4, 2, 16),
        "pages": [1],
        "host_pages": [1],
        "first_layer": 0,
        "last_layer": 3,
        "to_host": True,
    } | changes
    for name in ("pages", "host_pages"):
        arguments[name] = torch.tensor(arguments[name], dtype=torch.int32)
    with pytest.raises(InvalidArgument) as caught:
        native.Kernels(torch.Tensor).move_pages(**arguments)
    assert caught.value.argument == argument


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_triton_kernel_moves_what_the_reference_moves(
    make_case: Callable[..., Case], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """On a GPU, else in Triton's interpreter."""
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="triton is not installed")
    if not has_gpu and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("Triton's interpreter does not work with numpy 2.4")
    from radixrt.runtime.transfer.triton import TritonMover

    device = torch.device("cuda" if has_gpu else "cpu")
    case = make_case(shape, dtype, device)
    mover = TritonMover(case.keys, case.values, case.host)
    pages = torch.from_numpy(case.pages).to(device)
    host_pages = torch.from_numpy(case.host_pages).to(device)
    case.reference.load(case.pages, case.host_pages)
    mover.launch(case.host, pages, host_pages, 0, 1, False, 3)
    mover.launch(case.host, pages, host_pages, 1, shape[0], False, 4)
    devices.synchronize(device)
    case.check()
    case.reference.store(case.pages, case.host_pages[::-1].copy())
    mover.launch(case.host, pages, host_pages.flip(0), 0, shape[0], True, 5)
    devices.synchronize(device)
    case.check()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("way", ["direct", "staged"])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_ways_of_a_gpu_move_what_the_reference_moves(
    make_case: Callable[..., Case],
    shape: tuple[int, ...],
    way: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from radixrt.runtime.transfer import copy_engine, triton_staging
    from radixrt.runtime.transfer.triton import TritonMover

    if way == "staged" and copy_engine.CopyEngine.find() is None:
        pytest.skip("CUDA has no batches of copies before 13")
    # Both halves of the buffer are used many times.
    monkeypatch.setattr(triton_staging, "HALF_BYTES", 1 << 16)
    case = make_case(shape, torch.bfloat16, torch.device("cuda"))
    pools = case.keys, case.values, case.host
    mover = TritonMover(*pools, load_by=way, min_staged_bytes=0, num_programs=7)
    case.reference.load(case.pages, case.host_pages)
    mover.load(case.pages, case.host_pages).finish()
    case.check()
    case.reference.store(case.pages, case.host_pages[::-1].copy())
    mover.store(case.pages, case.host_pages[::-1].copy()).finish()
    case.check()


@pytest.mark.parametrize("version", [None, "12.8", "13.0"])
def test_where_the_runtime_has_no_batches_there_is_no_copy_engine(
    version: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from radixrt.runtime.transfer import copy_engine

    (tmp_path / "maps").write_text("7f00-7f01 r-xp 00000000 00:00 1 /lib/libcudart.so.of.a.dream\n")
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(copy_engine, "PROC_MAPS", tmp_path / "maps")
    assert copy_engine.CopyEngine.find() is None


class SlowAtFirst(ReferenceMover):
    """A mover that prepares something when it first sees a number of pages."""

    known: set[int]

    def load(self, pages: Int32, host_pages: Int32) -> FinishedMove:
        is_known = len(pages) in self.known
        self.known.add(len(pages))
        return FinishedMove(len(pages), 0.001 * len(pages) if is_known else 5.0)


def test_what_a_first_load_prepares_is_not_taken_for_what_loads_take(
    make_case: Callable[..., Case],
) -> None:
    case = make_case((2, 90, 4, 1, 8), torch.float32, CPU)
    mover = SlowAtFirst(case.keys, case.values, case.host)
    mover.known = set()
    host, costs = HostTier(case.host.flatten(1).view(torch.uint8).numpy(), 4, mover), Costs()
    calibrate(host, costs, 89)
    assert costs.tier("host").predict(50) == pytest.approx(0.05)
