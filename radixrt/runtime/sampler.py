"""From logits to tokens, vectorised over rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.runtime.wire import TokenSampling

Float32 = NDArray[np.float32]

CANDIDATES = 1024
"""Tokens that a filter looks at before it sorts the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Parameters of the rows that sample, each [K]; ``uniform`` float32 in [0, 1)."""

    temperature: Float32
    top_p: Float32
    top_k: NDArray[np.int32]
    min_p: Float32
    uniform: Float32


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[Any]) -> Float32:
    """Return the random number of each (seed, position), float32 in [0, 1 - 2**-23].

    A function of the two alone (two rounds of the SplitMix64 mixer, Steele et al. 2014), so a
    request's randomness depends on neither its neighbours, nor chunking, nor retraction.
    """
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(seeds.astype(np.uint64)) ^ positions.astype(np.uint64))
    return ((mixed >> np.uint64(41)).astype(np.float64) * 2.0**-23).astype(np.float32)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Return the chosen token of each row, int64 [K]; logits f32 [K, V] are not modified.

    Temperature 0 is the most likely token. Else the inverse of the distribution function at
    ``uniform``, after, in this order: temperature; top-k; top-p over what top-k left; min-p
    relative to the most likely token.
    """
    is_random = rows.temperature > 0
    if not is_random.any():
        return logits.argmax(dim=-1)
    has_filter = (rows.top_k > 0) | (rows.top_p < 1) | (rows.min_p > 0)
    ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for chosen, choose in (
        (~is_random, _choose_greedy),
        (is_random & ~has_filter, _choose_plain),
        (is_random & has_filter, _choose_filtered),
    ):
        at = np.flatnonzero(chosen)
        if len(at) == len(logits):
            return choose(logits, rows)
        if len(at):
            index = torch.from_numpy(at).to(logits.device)
            ids[index] = choose(logits[index], _subset(rows, at))
    return ids


def _subset(rows: SamplingRows, at: NDArray[np.int64]) -> SamplingRows:
    return SamplingRows(
        rows.temperature[at], rows.top_p[at], rows.top_k[at], rows.min_p[at], rows.uniform[at]
    )


def _choose_greedy(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    return logits.argmax(dim=-1)


def _choose_plain(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    return _invert(_scaled(logits, rows).softmax(dim=-1), rows)


def _choose_filtered(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    scaled = _scaled(logits, rows)
    vocab_size = scaled.shape[1]
    log_total = scaled.logsumexp(dim=-1, keepdim=True)
    width = min(vocab_size, max(CANDIDATES, int(rows.top_k.max())))
    values, ids = _largest(scaled, width)
    probs, keep, is_enough = _filter(values, log_total, rows)
    if width < vocab_size and not is_enough:
        values, ids = _largest(scaled, vocab_size)
        probs, keep, _ = _filter(values, log_total, rows)
    rank = _invert(probs.masked_fill(~keep, 0.0), rows)
    return ids.gather(1, rank[:, None]).squeeze(1)


def _filter(
    values: torch.Tensor, log_total: torch.Tensor, rows: SamplingRows
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Return probabilities of the sorted candidates, which of them stay, and whether no token that
    is not a candidate could stay."""
    column = _columns(values.device, rows)
    probs = (values - log_total).exp()
    rank = torch.arange(values.shape[1], device=values.device)
    has_top_k = column.top_k > 0
    in_top_k = ~has_top_k | (rank < column.top_k)
    kept = probs * in_top_k
    # Without top-k the mass is 1 by definition, whatever the number of candidates looked at.
    mass = torch.where(has_top_k, kept.sum(dim=-1, keepdim=True), 1.0)
    through = kept.cumsum(dim=-1)
    in_top_p = (through - kept < column.top_p * mass) | (column.top_p >= 1)
    in_min_p = probs >= column.min_p * probs[:, :1]
    keep = in_top_k & in_top_p & in_min_p
    keep[:, 0] = True
    is_enough = bool((has_top_k | ~keep[:, -1:]).all())
    return probs, keep, is_enough


@dataclass(frozen=True, slots=True)
class _Columns:
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor


def _columns(device: torch.device, rows: SamplingRows) -> _Columns:
    return _Columns(
        torch.from_numpy(rows.top_k)[:, None].to(device),
        torch.from_numpy(rows.top_p)[:, None].to(device),
        torch.from_numpy(rows.min_p)[:, None].to(device),
    )


def _largest(scaled: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    if width == scaled.shape[1]:
        values, ids = scaled.sort(dim=-1, descending=True, stable=True)
    else:
        values, ids = scaled.topk(width, dim=-1)
    return values, ids


def _scaled(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    shifted = logits - logits.amax(
        dim=-1, keepdim=True
    )  # so that a tiny temperature cannot overflow
    return shifted / torch.from_numpy(rows.temperature)[:, None].to(logits.device)


def _invert(probs: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Return the first index whose cumulative probability exceeds ``uniform`` times the total."""
    through = probs.cumsum(dim=-1)
    uniform = torch.from_numpy(rows.uniform)[:, None].to(probs.device)
    return torch.searchsorted(through, uniform * through[:, -1:], right=True).squeeze(1)


def edit_row(
    logits: torch.Tensor,
    sampling: TokenSampling,
    token_ids: NDArray[np.int32],
    prompt_len: int,
    *,
    keep_stops: bool,
) -> None:
    """Apply penalties, bias and min_tokens to one row of logits, f32 [V], in place.

    ``token_ids`` are the prompt (the first ``prompt_len``) and what was generated. The repetition
    penalty (Keskar et al. 2019) counts both, the others what was generated. ``keep_stops`` leaves
    stop tokens alone, for constraints that decide on the end themselves.
    """
    if sampling.repetition_penalty != 1:
        seen = torch.from_numpy(np.unique(token_ids).astype(np.int64)).to(logits.device)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    generated = token_ids[prompt_len:]
    if len(generated) and (sampling.frequency_penalty or sampling.presence_penalty):
        unique, counts = np.unique(generated, return_counts=True)
        minus = counts * sampling.frequency_penalty + sampling.presence_penalty
        at = torch.from_numpy(unique.astype(np.int64)).to(logits.device)
        logits[at] -= torch.from_numpy(minus.astype(np.float32)).to(logits.device)
    if sampling.logit_bias:
        at = torch.tensor([token for token, _ in sampling.logit_bias], device=logits.device)
        bias = torch.tensor([bias for _, bias in sampling.logit_bias], device=logits.device)
        logits.index_add_(0, at, bias.to(logits.dtype))
    if len(generated) < sampling.min_tokens and sampling.stop_token_ids and not keep_stops:
        logits[torch.tensor(sampling.stop_token_ids, device=logits.device)] = -torch.inf


def logprobs_of(
    logits: torch.Tensor, token_ids: torch.Tensor, top_n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the log probability of one token a row and of the ``top_n`` most likely tokens.

    logits f32 [N, V], token_ids int64 [N]; results f32 [N], int64 [N, top_n], f32 [N, top_n].
    """
    log_total = logits.logsumexp(dim=-1)
    chosen = logits.gather(1, token_ids[:, None]).squeeze(1) - log_total
    values, ids = logits.topk(top_n, dim=-1)
    return chosen, ids, values - log_total[:, None]


def marks_of(
    logits: torch.Tensor, unmasked: torch.Tensor, token_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probability that a mask took away and one token's log probability under it, f32
    [N] each; masked logits f32 [N, V], ``unmasked`` their logsumexp before, token_ids int64 [N]."""
    log_total = logits.logsumexp(dim=-1)
    removed = (1 - (log_total - unmasked).exp()).clamp(0, 1)
    return removed, logits.gather(1, token_ids[:, None]).squeeze(1) - log_total
