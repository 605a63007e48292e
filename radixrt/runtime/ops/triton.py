"""The element-wise operations in Triton; matrix products go to torch (cuBLAS, hipBLAS)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from radixrt.runtime.ops.reference import ReferenceOps


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
):
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
def _rope(
    query,
    key,
    positions,
    cos_sin,
    query_stride,
    key_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS_PAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    column = tl.arange(0, BLOCK)
    inside = column < HALF
    cos = tl.load(cos_sin + position * 2 * HALF + column, mask=inside, other=0.0)[None, :]
    sin = tl.load(cos_sin + position * 2 * HALF + HALF + column, mask=inside, other=0.0)[None, :]
    head = tl.arange(0, HEADS_PAD)[:, None]
    at = head * 2 * HALF + column[None, :]
    for is_key in tl.static_range(2):
        if is_key:
            base = key + token * key_stride + at
            live = (head < NUM_KV_HEADS) & inside[None, :]
        else:
            base = query + token * query_stride + at
            live = (head < NUM_HEADS) & inside[None, :]
        low = tl.load(base, mask=live, other=0.0).to(tl.float32)
        high = tl.load(base + HALF, mask=live, other=0.0).to(tl.float32)
        tl.store(base, (low * cos - high * sin).to(query.dtype.element_ty), mask=live)
        tl.store(base + HALF, (high * cos + low * sin).to(query.dtype.element_ty), mask=live)


@triton.jit
def _gated_act(gate_up, out, WIDTH: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr):
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


@triton.jit
def _kv_write(
    key,
    value,
    k_cache,
    v_cache,
    slots,
    key_stride,
    value_stride,
    page_stride,
    token_stride,
    PAGE_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    target = slot // PAGE_SIZE * page_stride + slot % PAGE_SIZE * token_stride + columns
    tl.store(k_cache + target, tl.load(key + token * key_stride + columns, mask=inside), inside)
    tl.store(v_cache + target, tl.load(value + token * value_stride + columns, mask=inside), inside)


@triton.jit
def _apply_token_mask(logits, bitmask, vocab_size, mask_stride, logits_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab_size
    word = tl.load(bitmask + row * mask_stride + columns // 32, mask=inside, other=0)
    forbidden = ((word >> (columns % 32)) & 1) == 0
    tl.store(logits + row * logits_stride + columns, float("-inf"), mask=inside & forbidden)


class TritonOps(ReferenceOps):
    """The provider "triton": one launch an operation."""

    name = "triton"

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

    @staticmethod
    def _norm(
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
            num_warps=min(16, max(1, block // 512)),
        )

    def rope(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
    ) -> None:
        """See ``Ops.rope``; heads of one token are contiguous, tokens may be strided."""
        half = query.shape[2] // 2
        _rope[(query.shape[0],)](
            query,
            key,
            positions,
            cos_sin,
            query.stride(0),
            key.stride(0),
            NUM_HEADS=query.shape[1],
            NUM_KV_HEADS=key.shape[1],
            HALF=half,
            BLOCK=triton.next_power_of_2(half),
            HEADS_PAD=triton.next_power_of_2(max(query.shape[1], key.shape[1])),
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

    def kv_write(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        """See ``Ops.kv_write``."""
        width = key.shape[1] * key.shape[2]
        _kv_write[(key.shape[0],)](
            key,
            value,
            k_cache,
            v_cache,
            slots,
            key.stride(0),
            value.stride(0),
            k_cache.stride(0),
            k_cache.stride(1),
            PAGE_SIZE=k_cache.shape[1],
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            num_warps=4,
        )

    def apply_token_mask(self, logits: torch.Tensor, bitmask: torch.Tensor) -> None:
        """See ``Ops.apply_token_mask``."""
        rows, vocab_size = logits.shape
        _apply_token_mask[(rows, triton.cdiv(vocab_size, 4096))](
            logits,
            bitmask,
            vocab_size,
            bitmask.stride(0),
            logits.stride(0),
            BLOCK=4096,
            num_warps=8,
        )
