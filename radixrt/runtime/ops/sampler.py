"""From logits to tokens, vectorised over rows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.runtime.wire import TokenSampling

Float32 = NDArray[np.float32]

CANDIDATES = 1024
"""Tokens that a filter looks at before it sorts the whole vocabulary."""


ROWS_AT_ONCE = 256
"""Rows whose logprobs are taken at once; bounds the memory of their f32 copies."""


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Parameters of the rows that sample, tensors [K] on the device of the logits: f32, ``top_k``
    int32; ``uniform`` in [0, 1).

    ``is_random`` and ``has_filter`` say on the host whether any row has a temperature, and whether
    any of those has a top-k, top-p or min-p.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    min_p: torch.Tensor
    uniform: torch.Tensor
    is_random: bool = True
    has_filter: bool = True


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
    """Return the chosen token of each row, int64 [K]; logits [K, V] are not modified.

    Temperature 0 is the most likely token. Else the inverse of the distribution function, in the
    order of token ids, at ``uniform``; before that, in this order: temperature; top-k; top-p over
    what top-k left; min-p relative to the most likely token. Tokens as likely as the last one that
    a filter leaves stay as well. In plain torch; ``Ops.sample`` may do the same in a kernel.
    """
    best = logits.argmax(dim=-1)
    if not rows.is_random:
        return best
    at = (rows.temperature > 0).nonzero().squeeze(1)
    ids = best.clone()
    ids[at] = _choose(logits[at], _subset(rows, at))
    return ids


def _subset(rows: SamplingRows, at: torch.Tensor) -> SamplingRows:
    return dataclasses.replace(
        rows,
        temperature=rows.temperature[at],
        top_p=rows.top_p[at],
        top_k=rows.top_k[at],
        min_p=rows.min_p[at],
        uniform=rows.uniform[at],
    )


def _choose(logits: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    logits = logits.float()
    # The maximum is taken off first, so that a tiny temperature cannot overflow.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / rows.temperature[:, None]
    if rows.has_filter:
        scaled = scaled.masked_fill(scaled < _least_kept(scaled, rows), -torch.inf)
    through = scaled.softmax(dim=-1).cumsum(dim=-1)
    target = rows.uniform[:, None] * through[:, -1:]
    return torch.searchsorted(through, target, right=True).squeeze(1)


def _least_kept(scaled: torch.Tensor, rows: SamplingRows) -> torch.Tensor:
    """Return the smallest value of each row that its filters leave, [K, 1]."""
    vocab_size = scaled.shape[1]
    log_total = scaled.logsumexp(dim=-1, keepdim=True)
    width = min(vocab_size, max(CANDIDATES, int(rows.top_k.max())))
    values = scaled.topk(width, dim=-1).values
    keep, is_enough = _filter(values, log_total, rows)
    if width < vocab_size and not is_enough:
        values = scaled.sort(dim=-1, descending=True).values
        keep, _ = _filter(values, log_total, rows)
    return values.gather(1, keep.sum(dim=-1, keepdim=True) - 1)


def _filter(
    values: torch.Tensor, log_total: torch.Tensor, rows: SamplingRows
) -> tuple[torch.Tensor, bool]:
    """Return which of the sorted candidates stay, the first ones of each row, and whether no token
    that is not a candidate could stay."""
    top_k, top_p, min_p = rows.top_k[:, None], rows.top_p[:, None], rows.min_p[:, None]
    probs = (values - log_total).exp()
    has_top_k = top_k > 0
    kept = probs * (~has_top_k | (torch.arange(values.shape[1], device=values.device) < top_k))
    # Without top-k the mass is 1 by definition, whatever the number of candidates looked at.
    mass = torch.where(has_top_k, kept.sum(dim=-1, keepdim=True), 1.0)
    through = kept.cumsum(dim=-1)
    in_top_p = (through - kept < top_p * mass) | (top_p >= 1)
    keep = (kept > 0) & in_top_p & (probs >= min_p * probs[:, :1])
    keep[:, 0] = True
    return keep, bool((has_top_k | ~keep[:, -1:]).all())


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """Changes of single logits, arrays [E], at most one a (row, token): the value is divided or,
    below 0, multiplied by ``factor``, then ``minus`` is taken off. ``minus`` may be infinite."""

    rows: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    factor: Float32
    minus: Float32


def edits_of(
    row: int,
    sampling: TokenSampling,
    token_ids: NDArray[np.int32],
    prompt_len: int,
    *,
    keep_stops: bool,
) -> LogitEdits:
    """Return what penalties, bias and min_tokens change in one row of logits.

    ``token_ids`` are the prompt (the first ``prompt_len``) and what was generated. The repetition
    penalty (Keskar et al. 2019) counts both, the others what was generated. ``keep_stops`` leaves
    stop tokens alone, for constraints that decide on the end themselves.
    """
    generated = token_ids[prompt_len:]
    counted = sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    seen = token_ids if sampling.repetition_penalty != 1 else generated[: len(generated) * counted]
    bias_ids = np.array([token for token, _ in sampling.logit_bias], np.int64)
    stop_ids = np.zeros(0, np.int64)
    if len(generated) < sampling.min_tokens and not keep_stops:
        stop_ids = np.array(sampling.stop_token_ids, np.int64)
    ids = np.unique(np.concatenate((seen, bias_ids, stop_ids)).astype(np.int64))
    factor = np.ones(len(ids), np.float32)
    minus = np.zeros(len(ids), np.float32)
    if sampling.repetition_penalty != 1:
        factor[np.searchsorted(ids, np.unique(token_ids))] = sampling.repetition_penalty
    if counted:
        unique, counts = np.unique(generated, return_counts=True)
        penalty = counts * sampling.frequency_penalty + sampling.presence_penalty
        minus[np.searchsorted(ids, unique)] += penalty.astype(np.float32)
    np.subtract.at(
        minus,
        np.searchsorted(ids, bias_ids),
        np.array([bias for _, bias in sampling.logit_bias], np.float32),
    )
    minus[np.searchsorted(ids, stop_ids)] = np.inf
    return LogitEdits(np.full(len(ids), row, np.int64), ids, factor, minus)


def concatenate_edits(edits: list[LogitEdits]) -> LogitEdits:
    """Return the edits of several rows as one."""
    return LogitEdits(
        np.concatenate([e.rows for e in edits]),
        np.concatenate([e.token_ids for e in edits]),
        np.concatenate([e.factor for e in edits]),
        np.concatenate([e.minus for e in edits]),
    )


def apply_edits(
    logits: torch.Tensor,
    rows: torch.Tensor,
    token_ids: torch.Tensor,
    factor: torch.Tensor,
    minus: torch.Tensor,
) -> None:
    """Apply ``LogitEdits``, as tensors on the device of the logits, in place."""
    values = logits[rows, token_ids].float()
    values = torch.where(values > 0, values / factor, values * factor) - minus
    logits[rows, token_ids] = values.to(logits.dtype)


def logprobs_of(
    logits: torch.Tensor, token_ids: torch.Tensor, top_n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the log probability of one token a row and of the ``top_n`` most likely tokens.

    logits [N, V], token_ids int64 [N]; results f32 [N], int64 [N, top_n], f32 [N, top_n].
    """
    parts = []
    for some, tokens in zip(
        torch.split(logits, ROWS_AT_ONCE), torch.split(token_ids, ROWS_AT_ONCE), strict=True
    ):
        wide = some.float()
        log_total = wide.logsumexp(dim=-1)
        values, ids = wide.topk(top_n, dim=-1)
        chosen = wide.gather(1, tokens[:, None]).squeeze(1)
        parts.append((chosen - log_total, ids, values - log_total[:, None]))
    chosen, ids, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return chosen, ids, values


def marks_of(
    logits: torch.Tensor, unmasked: torch.Tensor, token_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probability that a mask took away and one token's log probability under it, f32
    [N] each; masked logits [N, V], ``unmasked`` their logsumexp before, token_ids int64 [N]."""
    logits = logits.float()
    log_total = logits.logsumexp(dim=-1)
    removed = (1 - (log_total - unmasked).exp()).clamp(0, 1)
    return removed, logits.gather(1, token_ids[:, None]).squeeze(1) - log_total
