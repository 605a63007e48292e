"""The native kernels against float64 oracles, in every variant this processor runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from radixrt.errors import InvalidArgument

native = pytest.importorskip("radixrt._native")

Kernels = native.Kernels
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


@pytest.fixture(
    params=[(v, n) for v in native.cpu_features() for n in (1, 2)],
    ids=lambda p: f"{p[0]}-{p[1]}t",
)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    variant, num_threads = request.param
    return Kernels(torch.Tensor, variant, num_threads)


@pytest.fixture
def draw() -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return normal


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Elementwise, relative to the size of the whole: sums cancel."""
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance * scale
    )


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("w_dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "depth", "rows"),
    [
        (1, 64, 64),
        (1, 37, 5),
        (2, 1, 1),
        (3, 100, 33),
        (5, 129, 66),
        (16, 896, 31),
        (70, 96, 40),
        (300, 48, 70),
    ],
)
def test_products_match_float64(
    kernels: Kernels, draw: Callable[..., torch.Tensor],
    tokens: int, depth: int, rows: int, x_dtype: torch.dtype, w_dtype: torch.dtype,
) -> None:  # fmt: skip
    x, weight, bias = (
        draw(tokens, depth, dtype=x_dtype),
        draw(rows, depth, dtype=w_dtype),
        draw(rows, dtype=w_dtype),
    )
    expected = x.double() @ weight.double().T
    for product in (kernels.linear, kernels.gemm):
        tolerance = TOLERANCE[x_dtype]
        assert_close(product(x, weight, bias), expected + bias.double(), tolerance)
        exact = product(x, weight, None, f32_out=True)
        assert exact.dtype == torch.float32
        # An f32 x that meets bf16 weights must not be rounded on the way.
        assert_close(exact, expected, 2e-5)
    assert kernels.linear(x, weight).dtype == x_dtype


@pytest.mark.parametrize("multiply", ["linear", "gemm"])
def test_products_take_strided_rows(
    kernels: Kernels, draw: Callable[..., torch.Tensor], multiply: str
) -> None:
    x, weight = draw(9, 80)[:, 16:], draw(40, 100)[:, 3:67]
    assert_close(getattr(kernels, multiply)(x, weight), x.double() @ weight.double().T, 2e-5)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, add_one: bool) -> torch.Tensor:
    x = x.double()
    scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return scaled * (weight.double() + (1 if add_one else 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("add_one", [False, True])
@pytest.mark.parametrize("hidden", [1, 8, 67, 896, 20000])
def test_rms_norm_matches_float64(
    kernels: Kernels,
    draw: Callable[..., torch.Tensor],
    hidden: int,
    add_one: bool,
    dtype: torch.dtype,
) -> None:
    x, weight = draw(5, hidden, dtype=dtype), draw(hidden, dtype=dtype)
    expected = rms_norm(x, weight, 1e-6, add_one)
    assert_close(kernels.rms_norm(x, weight, 1e-6, add_one), expected, TOLERANCE[dtype])
    wide = draw(5, 3, 2 * hidden, dtype=dtype)[:, 1:, hidden:]
    expected = rms_norm(wide, weight, 1e-6, add_one)
    assert_close(kernels.rms_norm(wide, weight, 1e-6, add_one), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [8, 67, 896])
def test_add_rms_norm_returns_the_norm_of_the_rounded_sum_and_the_sum(
    kernels: Kernels, draw: Callable[..., torch.Tensor], hidden: int, dtype: torch.dtype
) -> None:
    x, residual, weight = (
        draw(7, hidden, dtype=dtype),
        draw(7, hidden, dtype=dtype),
        draw(hidden, dtype=dtype),
    )
    total = x + residual
    for argument in (x.clone(), torch.cat([x, x], 1)[:, :hidden]):
        normed, new_residual = kernels.add_rms_norm(argument, residual.clone(), weight, 1e-6)
        assert torch.equal(new_residual, total)
        assert_close(normed, rms_norm(total, weight, 1e-6, False), TOLERANCE[dtype])


def test_add_rms_norm_of_a_tensor_with_itself_keeps_both_results(
    kernels: Kernels, draw: Callable[..., torch.Tensor]
) -> None:
    x, weight = draw(3, 40), draw(40)
    doubled = x + x
    normed, total = kernels.add_rms_norm(x, x, weight, 1e-6)
    assert torch.equal(total, doubled)
    assert_close(normed, rms_norm(doubled, weight, 1e-6, False), 2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 20, 64, 128])
def test_rope_rotates_halves_in_place_through_strided_views(
    kernels: Kernels, draw: Callable[..., torch.Tensor], dim: int, dtype: torch.dtype
) -> None:
    fused = draw(40, 5 * dim, dtype=dtype)
    query = fused[:, : 3 * dim].unflatten(1, (3, dim))
    key = fused[:, 3 * dim : 4 * dim].unflatten(1, (1, dim))
    value = fused[:, 4 * dim :].clone()
    positions = torch.randint(0, 99, (40,))
    cos_sin = draw(99, dim)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        a, b = x.double().chunk(2, -1)
        cos, sin = cos_sin.double()[positions][:, None].chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    expected_query, expected_key = rotated(query), rotated(key)
    kernels.rope(query, key, positions, cos_sin)
    assert_close(query, expected_query, TOLERANCE[dtype])
    assert_close(key, expected_key, TOLERANCE[dtype])
    assert torch.equal(fused[:, 4 * dim :], value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [1, 30, 4864, 5000])
def test_gated_act_matches_float64(
    kernels: Kernels, draw: Callable[..., torch.Tensor], width: int, act: str, dtype: torch.dtype
) -> None:
    gate_up = (draw(6, 2 * width) * 6).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    activate = torch.nn.functional.silu if act == "silu" else _gelu
    expected = activate(gate) * up
    assert_close(kernels.gated_act(gate_up, act), expected, TOLERANCE[dtype])


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def test_gated_act_saturates_without_nan(kernels: Kernels) -> None:
    gate = torch.tensor([[-1e4, -100.0, -88.5, 0.0, 88.5, 100.0, 1e4, 3.0]])
    up = torch.ones_like(gate)
    for act, activate in (("silu", torch.nn.functional.silu), ("gelu_tanh", _gelu)):
        result = kernels.gated_act(torch.cat([gate, up], 1), act)
        torch.testing.assert_close(result, activate(gate), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_kv_write_touches_the_slots_alone(
    kernels: Kernels, draw: Callable[..., torch.Tensor], page_size: int, dtype: torch.dtype
) -> None:
    pool = draw(2, 3, 32, page_size, 2, 24, dtype=dtype)
    k_cache, v_cache = pool[0, 1], pool[1, 1]
    fused = draw(20, 6 * 24, dtype=dtype)
    key = fused[:, 48:96].unflatten(1, (2, 24))
    value = fused[:, 96:].unflatten(1, (2, 24))
    slots = torch.randperm(32 * page_size)[:20]
    expected = pool.clone()
    expected[0, 1].view(-1, 2, 24)[slots] = key
    expected[1, 1].view(-1, 2, 24)[slots] = value
    kernels.kv_write(key, value, k_cache, v_cache, slots)
    assert torch.equal(pool, expected)


def test_copy_page_copies_the_first_tokens_of_every_layer(
    kernels: Kernels, draw: Callable[..., torch.Tensor]
) -> None:
    k_cache, v_cache = draw(3, 5, 16, 2, 8), draw(3, 5, 16, 2, 8)
    expected_k, expected_v = k_cache.clone(), v_cache.clone()
    for cache in (expected_k, expected_v):
        cache[:, 3, :11] = cache[:, 1, :11]
    kernels.copy_page(k_cache, v_cache, 1, 3, 11)
    assert torch.equal(k_cache, expected_k)
    assert torch.equal(v_cache, expected_v)


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1000, 40000])
def test_token_mask_forbids_exactly_the_zero_bits(
    kernels: Kernels, draw: Callable[..., torch.Tensor], vocab: int
) -> None:
    logits = draw(3, vocab)
    words = (vocab + 31) // 32
    bitmask = torch.randint(-(2**31), 2**31, (3, words)).int()
    bitmask[1, : words // 2] = -1
    bits = (bitmask[:, :, None] >> torch.arange(32)) & 1
    allowed = bits.flatten(1)[:, :vocab].bool()
    expected = logits.masked_fill(~allowed, float("-inf"))
    kernels.apply_token_mask(logits, bitmask)
    assert torch.equal(logits, expected)


def test_calls_from_several_threads_do_not_mix(draw: Callable[..., torch.Tensor]) -> None:
    kernels = Kernels(torch.Tensor, "best", 2)
    weight = draw(1500, 256)  # large enough that the interpreter lock is released
    inputs = [draw(40, 256) for _ in range(4)]
    expected = [x.double() @ weight.double().T for x in inputs]

    def compute(index: int) -> None:
        for _ in range(10):
            assert_close(kernels.gemm(inputs[index], weight), expected[index], 2e-5)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(compute, range(4)))


def test_variants_end_with_generic_and_unknown_ones_are_refused() -> None:
    assert native.cpu_features()[-1] == "generic"
    assert Kernels(torch.Tensor, "generic").variant == "generic"
    with pytest.raises(InvalidArgument, match=r"variant='sse9'.*generic"):
        Kernels(torch.Tensor, "sse9")
    with pytest.raises(InvalidArgument, match="num_threads"):
        Kernels(torch.Tensor, "best", -1)
    with pytest.raises(InvalidArgument, match=r"torch\.Tensor"):
        Kernels(int)


def _refusals() -> list[tuple[str, Callable[[Kernels], object]]]:
    x, w = torch.zeros(2, 8), torch.zeros(4, 8)
    heads, cache = torch.zeros(2, 2, 8), torch.zeros(4, 4, 2, 8)
    slots = torch.zeros(2, dtype=torch.int64)
    table = torch.zeros(8, 8)
    return [
        ("weight", lambda k: k.linear(x, w[:, :4])),
        ("x", lambda k: k.linear(x[0], w)),
        ("x", lambda k: k.linear(x.half(), w)),
        ("x", lambda k: k.linear([1.0], w)),
        ("x", lambda k: k.gemm(x.T, torch.zeros(4, 2))),
        ("bias", lambda k: k.linear(x, w, torch.zeros(3))),
        ("weight", lambda k: k.rms_norm(x, torch.zeros(7), 1e-6)),
        ("residual", lambda k: k.add_rms_norm(x, x.bfloat16(), torch.zeros(8), 1e-6)),
        ("positions", lambda k: k.rope(heads, heads, slots.int(), table)),
        ("positions", lambda k: k.rope(heads, heads, slots + 8, table)),
        ("positions", lambda k: k.rope(heads, heads, slots - 1, table)),
        ("cos_sin", lambda k: k.rope(heads, heads, slots, table[:, :4])),
        ("key", lambda k: k.rope(heads, heads[:1], slots, table)),
        ("gate_up", lambda k: k.gated_act(torch.zeros(2, 3), "silu")),
        ("act", lambda k: k.gated_act(x, "relu")),
        ("slots", lambda k: k.kv_write(heads, heads, cache, cache, slots + 16)),
        ("slots", lambda k: k.kv_write(heads, heads, cache, cache, slots[:1])),
        ("k_cache", lambda k: k.kv_write(heads, heads, cache.bfloat16(), cache, slots)),
        ("v_cache", lambda k: k.kv_write(heads, heads, cache, cache[..., :4], slots)),
        ("source", lambda k: k.copy_page(cache[None], cache[None], 4, 0, 1)),
        ("target", lambda k: k.copy_page(cache[None], cache[None], 0, -1, 1)),
        ("num_tokens", lambda k: k.copy_page(cache[None], cache[None], 0, 1, 5)),
        ("bitmask", lambda k: k.apply_token_mask(x, torch.zeros(2, 2, dtype=torch.int32))),
        ("logits", lambda k: k.apply_token_mask(x.bfloat16(), torch.zeros(2, 1).int())),
    ]  # fmt: skip


@pytest.mark.parametrize("case", range(len(_refusals())))
def test_bad_arguments_are_refused_by_name(case: int) -> None:
    argument, call = _refusals()[case]
    with pytest.raises(InvalidArgument) as caught:
        call(Kernels(torch.Tensor))
    assert caught.value.argument == argument
