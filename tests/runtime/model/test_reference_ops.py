"""The oracle of operations against their formulas, and the choice of providers."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixrt.errors import ConfigError
from radixrt.runtime.attention import choose_attention
from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.ops import choose_ops
from radixrt.runtime.ops.reference import ReferenceOps

CPU = torch.device("cpu")
OPS = ReferenceOps()
SPECS = [AttentionSpec(2, 1, 8, 0.3)]


def test_rms_norm_scales_to_unit_mean_square_times_the_weight() -> None:
    x, weight = torch.randn(5, 3, 8), torch.randn(8)
    out = OPS.rms_norm(x, weight, 0.0)
    torch.testing.assert_close((out / weight).square().mean(-1), torch.ones(5, 3))
    torch.testing.assert_close(OPS.rms_norm(x, weight - 1, 0.0, add_one=True), out)
    assert OPS.rms_norm(torch.zeros(1, 8), weight, 1e-6).isfinite().all()


def test_add_rms_norm_is_the_sum_and_its_norm() -> None:
    x, residual, weight = torch.randn(5, 8), torch.randn(5, 8), torch.randn(8)
    total = x + residual
    normed, kept = OPS.add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(kept, total)
    torch.testing.assert_close(normed, OPS.rms_norm(total, weight, 1e-5))


def test_rope_rotates_pairs_by_the_angle_of_their_position() -> None:
    angles = torch.tensor([[0.0, 0.0], [0.5, 0.1], [1.0, 0.2]])
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    heads = torch.randn(2, 3, 4)
    pairs = torch.complex(heads[..., :2], heads[..., 2:])
    turned = pairs * torch.exp(1j * angles[[2, 1]])[:, None]
    fused = torch.zeros(2, 5, 4)  # A slice of a fused projection, as the decoder passes it.
    query, key = fused[:, :3], fused[:, 3:4]
    query.copy_(heads)
    key.copy_(heads[:, :1])
    OPS.rope(query, key, torch.tensor([2, 1]), table)
    torch.testing.assert_close(query, torch.cat((turned.real, turned.imag), dim=-1))
    torch.testing.assert_close(key, query[:, :1])
    assert not fused[:, 4].any()


def test_gated_act_takes_the_gate_first() -> None:
    gate, up = torch.randn(3, 4), torch.randn(3, 4)
    fused = torch.cat((gate, up), dim=1)
    torch.testing.assert_close(OPS.gated_act(fused, "silu"), gate * gate.sigmoid() * up)
    tanh = (math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)).tanh()
    torch.testing.assert_close(OPS.gated_act(fused, "gelu_tanh"), 0.5 * gate * (1 + tanh) * up)


@settings(max_examples=30, deadline=None)
@given(page_size=st.integers(1, 9), num_tokens=st.integers(1, 12), seed=st.integers(0, 999))
def test_kv_write_puts_each_token_in_its_slot_only(
    page_size: int, num_tokens: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pools = torch.zeros(2, 14, page_size, 2, 4)
    slots = torch.randperm(14 * page_size, generator=generator)[:num_tokens]
    key, value = torch.randn((2, len(slots), 2, 4), generator=generator)
    OPS.kv_write(key, value, pools[0], pools[1], slots)
    flat = pools.flatten(1, 2)
    torch.testing.assert_close(flat[0, slots], key)
    torch.testing.assert_close(flat[1, slots], value)
    flat[:, slots] = 0
    assert not pools.any()


def test_copies_take_the_first_tokens_of_pages_in_every_layer() -> None:
    k, v = torch.randn(2, 3, 6, 5, 1, 2)
    expected = torch.stack((k, v))
    for source, target, num_tokens in (copies := [(1, 3, 2), (1, 0, 5), (2, 5, 0)]):
        expected[:, :, target, :num_tokens] = expected[:, :, source, :num_tokens]
    OPS.copy_pages(k, v, *torch.tensor(copies, dtype=torch.int32).T)
    assert torch.equal(torch.stack((k, v)), expected)


@settings(max_examples=30, deadline=None)
@given(vocab_size=st.integers(1, 100), seed=st.integers(0, 999))
def test_token_mask_keeps_exactly_the_tokens_with_a_bit(vocab_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand((3, vocab_size), generator=generator) < 0.5
    words = torch.zeros((3, -(-vocab_size // 32)), dtype=torch.int64)
    for token in range(vocab_size):
        words[:, token // 32] |= allowed[:, token].long() << (token % 32)
    logits = torch.randn((3, vocab_size), generator=generator)
    masked = logits.clone()
    OPS.apply_token_mask(masked, words.to(torch.int32))
    torch.testing.assert_close(masked, logits.where(allowed, torch.tensor(float("-inf"))))


def test_providers_are_chosen_by_name() -> None:
    ops, why = choose_ops(CPU, "reference")
    assert (ops.name, why) == ("reference", "asked for by ops=reference")
    attention, why = choose_attention("reference", SPECS, 16, CPU, torch.float32)
    assert (attention.name, why) == ("reference", "asked for by attention=reference")


@pytest.mark.parametrize("name", ["triton", "sgl", "fast"])
def test_ops_that_cannot_serve_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"ops={name}"):
        choose_ops(CPU, name)


@pytest.mark.parametrize("name", ["triton", "flashinfer", "fast"])
def test_attention_that_cannot_serve_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"attention={name}"):
        choose_attention(name, SPECS, 16, CPU, torch.float32)


def test_auto_falls_back_to_the_reference_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("ops.cpu", "attention.cpu"):
        monkeypatch.setitem(sys.modules, f"radixrt.runtime.{module}", None)
    ops, ops_why = choose_ops(CPU)
    attention, attention_why = choose_attention("auto", SPECS, 16, CPU, torch.float32)
    assert (ops.name, attention.name) == ("reference", "reference")
    assert "ops=cpu is not available" in ops_why
    assert "attention=cpu is not available" in attention_why
    assert "ops=cpu is not available" in caplog.text
    assert "attention=cpu is not available" in caplog.text
    with pytest.raises(ConfigError, match="ops=cpu is not available"):
        choose_ops(CPU, "cpu")
