"""A device's memory, and the choice of device and dtype."""

from __future__ import annotations

import pytest
import torch

from radixrt.errors import ConfigError
from radixrt.runtime.device import (
    AheadUpload,
    choose_device,
    choose_dtype,
    memory_info,
    transfer_zeros,
)

CPU = torch.device("cpu")


def test_the_cpus_memory_is_positive_here() -> None:
    found = memory_info(CPU)
    assert 0 < found.available <= found.total


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device={name}"):
        choose_device(name)


def test_devices_and_dtypes_that_are_there() -> None:
    assert choose_device("cpu") == CPU
    assert choose_dtype("auto", "bfloat16", CPU) is torch.bfloat16
    assert choose_dtype("float32", "bfloat16", CPU) is torch.float32
    assert choose_dtype("auto", "float16", CPU) is torch.bfloat16
    assert choose_dtype("auto", "float16", torch.device("cuda")) is torch.float16
    with pytest.raises(ConfigError, match="float16"):
        choose_dtype("float16", "float32", CPU)
    with pytest.raises(ConfigError, match="int4"):
        choose_dtype("int4", "float32", CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_was_uploaded_stays_while_later_uploads_are_filled() -> None:
    """Under work that keeps the device busy, so that copies and their memory's reuse overlap."""
    device = torch.device("cuda")
    ahead, busy = AheadUpload(device), torch.ones(2048, 2048, device=device)
    sums = []
    for number in range(200):
        room = ahead.room((64, 4096))
        room.fill(number)
        tensor = ahead.upload(room)
        del room
        busy = busy @ busy / 2048
        sums.append((tensor == number).all())
        del tensor
    assert all(bool(each) for each in sums)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_that_nobody_holds_is_no_longer_pinned() -> None:
    """Else its addresses could neither be pinned again nor be the device's memory."""
    device = torch.device("cuda")
    for _ in range(4):
        pinned = transfer_zeros((64, 1 << 20), torch.uint8, device)
        assert pinned.is_pinned()
        del pinned
        on_device = torch.zeros(1 << 30, dtype=torch.uint8, device=device)
        assert int(on_device[-1]) == 0
        del on_device
        torch.cuda.empty_cache()
