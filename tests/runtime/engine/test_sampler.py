"""The sampler against an oracle written token by token, and its randomness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engine_harness import params
from hypothesis import given, settings
from hypothesis import strategies as st

from radixrt.runtime.ops import sampler
from radixrt.runtime.ops.sampler import (
    SamplingRows,
    apply_edits,
    edits_of,
    logprobs_of,
    sample,
    uniforms,
)


def rows(count: int, **changes: Any) -> SamplingRows:
    values: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "uniform": 0.5,
    }
    values |= changes
    types = {"top_k": np.int32}
    return SamplingRows(
        **{
            name: torch.from_numpy(
                np.broadcast_to(np.array(value, types.get(name, np.float32)), (count,)).copy()
            )
            for name, value in values.items()
        }
    )


def oracle(logits: Any, temperature: float, top_k: int, top_p: float, min_p: float) -> Any:
    """Return the probabilities of a row after all filters, f64 [V]."""
    scaled = np.asarray(logits, np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    kept = order[:top_k] if top_k else order
    mass = probs[kept].sum()
    nucleus, through = [], 0.0
    for token in kept:
        if through >= top_p * mass and top_p < 1:
            break
        nucleus.append(token)
        through += probs[token]
    final = [token for token in nucleus if probs[token] >= min_p * probs[order[0]]]
    out = np.zeros_like(probs)
    out[final] = probs[final]
    return out / out.sum()


@pytest.mark.parametrize("candidates", [4, 1024])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 11, 40]),
    top_p=st.sampled_from([0.05, 0.4, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.7]),
)
def test_the_chance_of_each_token_is_the_oracles(
    candidates: int, seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, 40).astype(np.float32))
    probs = oracle(logits.numpy(), temperature, top_k, top_p, min_p)
    grid = (np.arange(400) + 0.5) / 400
    before = sampler.CANDIDATES
    try:
        sampler.CANDIDATES = candidates
        chosen = sample(
            logits.expand(400, -1),
            rows(400, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, uniform=grid),
        )
    finally:
        sampler.CANDIDATES = before
    counts = np.bincount(chosen.numpy(), minlength=40)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(probs))
    np.testing.assert_allclose(counts / 400, probs, atol=1.01 / 400)


def test_temperature_zero_is_argmax_beside_random_rows() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    mixed = rows(
        6, temperature=[0, 1, 0, 1, 0, 1], top_k=[0, 0, 0, 5, 2, 0], uniform=np.linspace(0, 0.99, 6)
    )
    chosen = sample(logits, mixed)
    assert chosen[[0, 2, 4]].tolist() == logits[[0, 2, 4]].argmax(-1).tolist()
    for row in (1, 3, 5):
        single = SamplingRows(
            *(
                getattr(mixed, name)[row : row + 1]
                for name in ("temperature", "top_p", "top_k", "min_p", "uniform")
            )
        )
        assert sample(logits[row : row + 1], single).item() == chosen[row].item()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-23])
def test_the_extremes_of_the_random_number_hit_possible_tokens(uniform: float) -> None:
    logits = torch.full((3, 1000), -torch.inf)
    logits[:, 400:403] = torch.tensor([0.1, 0.2, 0.3])
    for changes in ({}, {"top_p": 0.99}, {"temperature": 1e-6}, {"temperature": 1e6}):
        chosen = sample(logits, rows(3, uniform=uniform, **changes))
        assert set(chosen.tolist()) <= {400, 401, 402}


def test_random_numbers_depend_on_seed_and_position_alone() -> None:
    seeds = np.arange(1000, dtype=np.uint64)
    numbers = uniforms(seeds, np.full(1000, 7, np.int32))
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers[500:], uniforms(seeds[500:], np.full(500, 7)))
    assert 0 <= numbers.min() < 0.01 < 0.99 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.03
    along = uniforms(np.full(1000, 3, np.uint64), np.arange(1000))
    assert len(np.unique(along)) > 990
    assert abs(np.corrcoef(along[1:], along[:-1])[0, 1]) < 0.1


def edited(logits: torch.Tensor, sampling: Any, token_ids: Any) -> torch.Tensor:
    """Return the one row of logits after its edits; the first two tokens are the prompt."""
    found = edits_of(0, sampling, token_ids, 2, keep_stops=False)
    row = logits.clone()[None]
    arrays = (found.rows, found.token_ids, found.factor, found.minus)
    apply_edits(row, *(torch.from_numpy(array) for array in arrays))
    return row[0]


def test_penalties_bias_and_min_tokens_edit_the_row() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0, 3.0, 0.0])
    tokens = np.array([0, 1, 3, 3, 2], np.int32)  # prompt 0 1, generated 3 3 2
    row = edited(
        logits,
        params(
            repetition_penalty=2.0,
            frequency_penalty=0.25,
            presence_penalty=0.5,
            logit_bias=((5, 4.0), (0, -1.0)),
            min_tokens=4,
            stop_token_ids=(4,),
        ),
        tokens,
    )
    expected = [2 / 2 - 1, -1 * 2, 0.5 / 2 - 0.25 - 0.5, 1 / 2 - 2 * 0.25 - 0.5, -np.inf, 4.0]
    np.testing.assert_allclose(row.numpy(), expected)
    row = edited(logits, params(min_tokens=3, stop_token_ids=(4,)), tokens)
    np.testing.assert_array_equal(row.numpy(), logits.numpy())


def test_a_certain_token_has_logprob_zero() -> None:
    logits = torch.full((1, 9), -1e9)
    logits[0, 4] = 50.0
    chosen, ids, values = logprobs_of(logits, torch.tensor([4]), 2)
    assert chosen.tolist() == [0.0]
    assert ids[0, 0] == 4
    assert values[0, 0] == 0.0


def test_logits_are_left_as_they_were() -> None:
    logits = torch.randn(4, 30)
    before = logits.clone()
    sample(logits, rows(4, temperature=[0, 0.5, 1, 2], top_k=[0, 3, 0, 2]))
    assert torch.equal(logits, before)
