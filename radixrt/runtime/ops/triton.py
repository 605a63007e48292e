"""The operations in Triton; products of many rows go to torch (cuBLAS, hipBLAS)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from radixrt.runtime.device import dependent_launch
from radixrt.runtime.ops.few_rows import FewRows
from radixrt.runtime.ops.reference import ReferenceOps
from radixrt.runtime.ops.sampler import SamplingRows
from radixrt.runtime.ops.triton_linear import TritonFewRows
from radixrt.runtime.ops.triton_sampling import sample_rows


@triton.jit
def _rms_norm(
    x,
    residual,
    weight,
    out,
    x_stride,
    x_head_stride,
    heads,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD_ONE: tl.constexpr,
    ADD: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    at = x + (row // heads) * x_stride + (row % heads) * x_head_stride + columns
    values = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        other = residual + row * WIDTH + columns
        values += tl.load(other, mask=inside, other=0.0).to(tl.float32)
        # The sum continues as the residual in the model's dtype; norm what is stored there.
        values = values.to(residual.dtype.element_ty)
        tl.store(other, values, mask=inside)
        values = values.to(tl.float32)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD_ONE:
        scale += 1.0
    inverse = 1.0 / tl.sqrt(tl.sum(values * values) / WIDTH + eps)
    tl.store(
        out + row * WIDTH + columns, (values * inverse * scale).to(out.dtype.element_ty), inside
    )


@triton.jit
def _rope_kv_write(
    query,
    key,
    value,
    positions,
    cos_sin,
    k_cache,
    v_cache,
    slots,
    query_stride,
    key_stride,
    value_stride,
    page_stride,
    token_stride,
    PAGE_SIZE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    KV_HEADS_PAD: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    slot = tl.load(slots + token)
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < HALF
    cos = tl.load(cos_sin + position * 2 * HALF + column, mask=inside, other=0.0)
    sin = tl.load(cos_sin + position * 2 * HALF + HALF + column, mask=inside, other=0.0)

    head = tl.arange(0, HEADS_PAD)[:, None]
    live = (head < NUM_HEADS) & inside
    at = query + token * query_stride + head * 2 * HALF + column
    low = tl.load(at, mask=live, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=live, other=0.0).to(tl.float32)
    tl.store(at, (low * cos - high * sin).to(query.dtype.element_ty), mask=live)
    tl.store(at + HALF, (high * cos + low * sin).to(query.dtype.element_ty), mask=live)

    head = tl.arange(0, KV_HEADS_PAD)[:, None]
    live = (head < NUM_KV_HEADS) & inside
    offset = head * 2 * HALF + column
    target = slot // PAGE_SIZE * page_stride + slot % PAGE_SIZE * token_stride + offset
    at = key + token * key_stride + offset
    low = tl.load(at, mask=live, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=live, other=0.0).to(tl.float32)
    tl.store(k_cache + target, (low * cos - high * sin).to(k_cache.dtype.element_ty), mask=live)
    tl.store(
        k_cache + target + HALF, (high * cos + low * sin).to(k_cache.dtype.element_ty), mask=live
    )
    at = value + token * value_stride + offset
    tl.store(v_cache + target, tl.load(at, mask=live), mask=live)
    tl.store(v_cache + target + HALF, tl.load(at + HALF, mask=live), mask=live)


@triton.jit
def _copy_pages(
    k_cache,
    v_cache,
    sources,
    targets,
    lens,
    layer_stride,
    page_stride,
    token_stride,
    BLOCK: tl.constexpr,
):
    copy = tl.program_id(0)
    layer = tl.program_id(1).to(tl.int64) * layer_stride
    source = layer + tl.load(sources + copy).to(tl.int64) * page_stride
    target = layer + tl.load(targets + copy).to(tl.int64) * page_stride
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tl.load(lens + copy) * token_stride
    keys = tl.load(k_cache + source + at, mask=inside)
    values = tl.load(v_cache + source + at, mask=inside)
    tl.store(k_cache + target + at, keys, mask=inside)
    tl.store(v_cache + target + at, values, mask=inside)


@triton.jit
def _gated_act(
    gate_up,
    out,
    WIDTH: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + columns, mask=inside, other=0.0)
    if SILU:
        gate = gate / (1.0 + tl.exp(-gate))
    else:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        gate = gate / (1.0 + tl.exp(-2.0 * inner))
    result = gate.to(out.dtype.element_ty) * up
    tl.store(out + row * WIDTH + columns, result.to(out.dtype.element_ty), mask=inside)


MASK_WORDS, MASK_WARPS = 128, 4
"""Words of a mask for a program, and its warps. With 256 words rows that allow all take 1.8 instead
of 2.3 µs (64 of 131,072 tokens on an H200), rows that allow few 5.5 instead of 5.3."""


@triton.jit
def _both(left, right):
    return left & right


@triton.jit
def _apply_token_mask(
    logits,
    bitmask,
    vocab_size,
    mask_stride,
    logits_stride,
    WORDS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first_word = tl.program_id(1) * WORDS
    words = first_word + tl.arange(0, WORDS)
    mask_row = bitmask + row * mask_stride
    word = tl.load(mask_row + words, mask=words * 32 < vocab_size, other=-1)
    if tl.reduce(word, 0, _both) == -1:
        return  # as in all of a row without a constraint
    # Eight logits have one byte of the mask, and are one access of 16 bytes where rows are aligned:
    # read if some of them are kept, written if some are not.
    EIGHTS: tl.constexpr = 4 * WORDS
    eighth = first_word * 4 + tl.arange(0, EIGHTS)
    mask_bytes = mask_row.to(tl.pointer_type(tl.uint8))
    byte = tl.load(mask_bytes + eighth, mask=eighth * 8 < vocab_size, other=255)[:, None]
    bit = tl.arange(0, 8)[None, :]
    forbidden = ((byte >> bit) & 1) == 0
    columns = eighth[:, None] * 8 + bit
    at = logits + row * logits_stride + columns
    if ALIGNED:
        some = tl.broadcast_to((byte != 0) & (byte != 255), [EIGHTS, 8])
        kept = tl.load(at, mask=some, other=0.0)
        touched = tl.broadcast_to(byte != 255, [EIGHTS, 8])
        tl.store(at, tl.where(forbidden, float("-inf"), kept), mask=touched)
    else:
        tl.store(at, float("-inf"), mask=forbidden & (columns < vocab_size))


MAX_LIGHT_ROWS = 96
"""Products of up to so many rows go to cuBLASLt, which torch takes for those with a bias; it
chooses better kernels there than cuBLAS (a layer of an 8B model at 64 rows: 125 µs, not 132)."""

MIN_ADDED_ROWS = 2048
"""Products of so many rows or more add the residual themselves: with 8,192 a layer's products,
norms and gate take 1.1 to 1.4 % less on an H200, with 512 or 1,024 the same, with 128 1 % more."""


def _few_rows(device: torch.device) -> FewRows:
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9:
        from radixrt.runtime.ops.triton_hopper import HopperFewRows

        return HopperFewRows(device)
    return TritonFewRows(device)


class TritonOps(ReferenceOps):
    """The provider "triton": one launch an operation."""

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        self._launch = dependent_launch(device)
        self._few_rows = _few_rows(device)
        self._no_bias: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See ``Ops.linear``."""
        if self._few_rows.serves(x, weight):
            return self._few_rows(x, weight, bias)
        if bias is None and x.shape[0] <= MAX_LIGHT_ROWS:
            key = weight.shape[0], weight.dtype
            bias = self._no_bias.get(key)
            if bias is None:
                bias = self._no_bias[key] = weight.new_zeros(weight.shape[0])
        return super().linear(x, weight, bias)

    def gated_linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, act: str
    ) -> torch.Tensor:
        """See ``Ops.gated_linear``."""
        if self._few_rows.serves(x, weight, gated=True):
            return self._few_rows(x, weight, bias, act)
        return super().gated_linear(x, weight, bias, act)

    def linear_add_rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor,
        norm: torch.Tensor,
        eps: float,
        *,
        add_one: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Ops.linear_add_rms_norm``; the sum is stored in ``residual``'s memory."""
        if bias is None and x.shape[0] >= MIN_ADDED_ROWS:
            residual.addmm_(x, weight.T)
            return self.rms_norm(residual, norm, eps, add_one=add_one), residual
        return super().linear_add_rms_norm(x, weight, bias, residual, norm, eps, add_one=add_one)

    def rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, add_one: bool = False
    ) -> torch.Tensor:
        """See ``Ops.rms_norm``; x may be a strided view of [T, heads, head_dim]."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        heads = x.shape[1] if x.dim() == 3 else 1
        self._norm(x, out, out, weight, eps, heads, add_one=add_one, add=False)
        return out

    def add_rms_norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        *,
        add_one: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Ops.add_rms_norm``; the sum is stored in ``residual``'s memory."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        self._norm(x, residual, out, weight, eps, 1, add_one=add_one, add=True)
        return out, residual

    def _norm(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        out: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        heads: int,
        *,
        add_one: bool,
        add: bool,
    ) -> None:
        width = x.shape[-1]
        block = triton.next_power_of_2(width)
        _rms_norm[(out.numel() // width,)](
            x,
            residual,
            weight,
            out,
            x.stride(0),
            x.stride(1) if x.dim() == 3 else 0,
            heads,
            eps,
            WIDTH=width,
            BLOCK=block,
            ADD_ONE=add_one,
            ADD=add,
            **self._launch,
            num_warps=min(16, max(1, block // 512)),
        )

    def rope_kv_write(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cos_sin: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """See ``Ops.rope_kv_write``; heads of one token are contiguous, tokens may be strided."""
        half = query.shape[2] // 2
        _rope_kv_write[(query.shape[0],)](
            query,
            key,
            value,
            positions,
            cos_sin,
            k_cache,
            v_cache,
            slots,
            query.stride(0),
            key.stride(0),
            value.stride(0),
            k_cache.stride(0),
            k_cache.stride(1),
            PAGE_SIZE=k_cache.shape[1],
            NUM_HEADS=query.shape[1],
            NUM_KV_HEADS=key.shape[1],
            HALF=half,
            BLOCK=triton.next_power_of_2(half),
            HEADS_PAD=triton.next_power_of_2(query.shape[1]),
            KV_HEADS_PAD=triton.next_power_of_2(key.shape[1]),
            **self._launch,
            num_warps=4,
        )

    def copy_pages(
        self,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        sources: torch.Tensor,
        targets: torch.Tensor,
        lens: torch.Tensor,
    ) -> None:
        """See ``Ops.copy_pages``."""
        layer_stride, page_stride, token_stride, *_ = k_cache.stride()
        assert k_cache.stride() == v_cache.stride(), (k_cache.stride(), v_cache.stride())
        assert token_stride == k_cache.shape[3] * k_cache.shape[4], k_cache.stride()
        block = min(4096, triton.next_power_of_2(page_stride))
        grid = len(sources), k_cache.shape[0], triton.cdiv(k_cache.shape[2] * token_stride, block)
        _copy_pages[grid](
            k_cache,
            v_cache,
            sources,
            targets,
            lens,
            layer_stride,
            page_stride,
            token_stride,
            BLOCK=block,
            num_warps=4,
        )

    def gated_act(self, gate_up: torch.Tensor, act: str) -> torch.Tensor:
        """See ``Ops.gated_act``."""
        width = gate_up.shape[1] // 2
        out = torch.empty((gate_up.shape[0], width), dtype=gate_up.dtype, device=gate_up.device)
        block = min(1024, triton.next_power_of_2(width))
        _gated_act[(gate_up.shape[0], triton.cdiv(width, block))](
            gate_up, out, WIDTH=width, SILU=act == "silu", BLOCK=block, num_warps=4
        )
        return out

    def apply_token_mask(self, logits: torch.Tensor, bitmask: torch.Tensor) -> None:
        """See ``Ops.apply_token_mask``."""
        rows, vocab_size = logits.shape
        _apply_token_mask[(rows, triton.cdiv(vocab_size, 32 * MASK_WORDS))](
            logits,
            bitmask,
            vocab_size,
            bitmask.stride(0),
            logits.stride(0),
            WORDS=MASK_WORDS,
            ALIGNED=vocab_size % 8 == 0 and logits.stride(0) % 8 == 0,
            num_warps=MASK_WARPS,
        )

    def sample(self, logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
        """See ``Ops.sample``."""
        return sample_rows(logits, rows)
