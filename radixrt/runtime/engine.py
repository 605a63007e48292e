"""The model, its KV pool and the device: launches steps and reads them back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.batch import ForwardBatch
from radixrt.runtime.builder import device_batch, host_batch
from radixrt.runtime.device import Readback, upload
from radixrt.runtime.grammar.masks import Masks
from radixrt.runtime.graph import DecodeGraphs
from radixrt.runtime.kv import KvPool
from radixrt.runtime.ops.base import Ops
from radixrt.runtime.plan import PageCopy, Plan, ScoreRows, StepResult
from radixrt.runtime.sampler import SamplingRows, edit_row, logprobs_of, marks_of, sample, uniforms
from radixrt.runtime.slots import SlotTable
from radixrt.runtime.wire import SampledLogprob


class Model(Protocol):
    """What the engine needs of a model."""

    def forward(
        self,
        batch: ForwardBatch,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        attention: AttentionBackend,
    ) -> torch.Tensor:
        """Return f32 logits [R, vocab_size] of the batch's wanted rows."""
        ...


@dataclass(slots=True)
class StepInFlight:
    """A launched step: results are on the device until ``Engine.read``.

    ``logprobs`` holds, for the sampling rows ``logprob_rows``, what ``logprobs_of`` returned;
    ``marks``, for ``mark_rows``, what ``marks_of`` returned.
    """

    plan: Plan
    logits: torch.Tensor
    token_ids: Readback | None = None
    logprob_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    logprobs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    mark_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    marks: tuple[torch.Tensor, torch.Tensor] | None = None
    scored: Scored | None = None


class Engine:
    """Runs plans. Device work is queued in the order of the calls; ``read`` alone waits for it."""

    def __init__(
        self,
        model: Model,
        pool: KvPool,
        attention: AttentionBackend,
        ops: Ops,
        slots: SlotTable,
        device: torch.device,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self.model = model
        self.pool = pool
        self.attention = attention
        self.ops = ops
        self.slots = slots
        self.device = device
        self.graphs = graphs
        self._last_ids = torch.zeros(slots.num_slots, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def launch(self, plan: Plan) -> StepInFlight:
        """Copy the plan's pages and start its forward."""
        self.copy_pages(plan.copies)
        host = host_batch(plan, self.slots)
        logits = self.graphs.run(host, self._last_ids) if self.graphs else None
        if logits is None:
            batch = device_batch(host, upload(host, self.device), self._last_ids)
            self.attention.plan(batch)
            logits = self.model.forward(batch, self.pool.k, self.pool.v, self.attention)
        return StepInFlight(plan, logits)

    def copy_pages(self, copies: list[PageCopy]) -> None:
        """Copy pages of the pool, in order."""
        for copy in copies:
            self.ops.copy_page(self.pool.k, self.pool.v, copy.source, copy.target, copy.num_tokens)

    @torch.inference_mode()
    def sample(self, step: StepInFlight, masks: Masks | None) -> None:
        """Choose the step's tokens, after the forward and with the host's masks."""
        plan, slots = step.plan, self.slots
        if plan.scores:
            step.scored = self._score(step.logits, plan.scores)
        if len(plan.sample_rows) == 0:
            return
        chosen = plan.slots[plan.sample_rows]
        positions = plan.ends[plan.sample_rows]
        logits = step.logits
        if len(plan.sample_logits) != len(logits):
            logits = logits[self._index(plan.sample_logits)]
        step.logprob_rows = np.flatnonzero(slots.wants_logprobs[chosen])
        unmodified = logits
        if len(step.logprob_rows):
            unmodified = logits[self._index(step.logprob_rows)]
        self._edit(logits, plan, chosen)
        step.mark_rows = np.flatnonzero(slots.wants_marks[chosen])
        marked = self._index(step.mark_rows) if len(step.mark_rows) else None
        unmasked = None if marked is None else logits[marked].logsumexp(dim=-1)
        if masks is not None:
            self._mask(logits, masks)
        ids = sample(
            logits,
            SamplingRows(
                temperature=slots.temperature[chosen],
                top_p=slots.top_p[chosen],
                top_k=slots.top_k[chosen],
                min_p=slots.min_p[chosen],
                uniform=uniforms(slots.seed[chosen], positions),
            ),
        )
        if marked is not None and unmasked is not None:
            step.marks = marks_of(logits[marked], unmasked, ids[marked])
        self._last_ids[self._index(chosen.astype(np.int64))] = ids
        step.token_ids = Readback(ids)
        if len(step.logprob_rows):
            top_n = max(
                plan.requests[plan.sample_rows[row]].sampling.top_logprobs_num
                for row in step.logprob_rows.tolist()
            )
            picked = ids[self._index(step.logprob_rows)]
            step.logprobs = logprobs_of(unmodified, picked, top_n)

    def read(self, step: StepInFlight) -> StepResult:
        """Wait for a sampled step and return its results."""
        token_ids = [] if step.token_ids is None else step.token_ids.wait().tolist()
        logprobs: dict[int, SampledLogprob] = {}
        if step.logprobs is not None:
            chosen, ids, values = (tensor.tolist() for tensor in step.logprobs)
            for index, row in enumerate(step.logprob_rows.tolist()):
                top_n = step.plan.requests[step.plan.sample_rows[row]].sampling.top_logprobs_num
                logprobs[row] = SampledLogprob(
                    chosen[index], tuple(ids[index][:top_n]), tuple(values[index][:top_n])
                )
        result = StepResult(token_ids, logprobs, [], [])
        if step.marks is not None:
            removed, under_mask = (tensor.tolist() for tensor in step.marks)
            for index, row in enumerate(step.mark_rows.tolist()):
                result.marks[row] = removed[index], under_mask[index]
        if step.scored is not None:
            step.scored.read(step.plan.scores, result)
        return result

    def _edit(self, logits: torch.Tensor, plan: Plan, chosen: NDArray[np.int32]) -> None:
        for index in np.flatnonzero(self.slots.edits_logits[chosen]).tolist():
            row = int(plan.sample_rows[index])
            request = plan.requests[row]
            if request.reason is None:
                edit_row(
                    logits[index],
                    request.sampling,
                    self.slots.tokens[request.slot, : plan.ends[row]],
                    request.prompt_len,
                    keep_stops=request.session is not None and request.session.needs_mask,
                )

    def _mask(self, logits: torch.Tensor, masks: Masks) -> None:
        (bitmask,) = upload([masks.bitmask], self.device)
        if len(masks.rows) == len(logits):
            self.ops.apply_token_mask(logits, bitmask)
            return
        index = self._index(masks.rows)
        masked = logits[index]
        self.ops.apply_token_mask(masked, bitmask)
        logits[index] = masked

    def _index(self, rows: NDArray[np.int64]) -> torch.Tensor:
        (index,) = upload([rows], self.device)
        return index

    def _score(self, logits: torch.Tensor, scores: list[ScoreRows]) -> Scored:
        """Return the logprobs of all targets of all rows, flat, and what was asked of the top."""
        rows_of: list[int] = []
        ids: list[int] = []
        for rows in scores:
            for index, targets in enumerate(_targets(rows)):
                rows_of += [rows.first_row + index] * len(targets)
                ids += targets
        log_total = logits.logsumexp(dim=-1)
        at, of_ids = upload([np.array(rows_of, np.int64), np.array(ids, np.int64)], self.device)
        values = logits[at, of_ids] - log_total[at]
        tops: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for index, rows in enumerate(scores):
            top_n = rows.request.scoring.top_n if rows.request.scoring else 0
            if top_n:
                own = slice(rows.first_row, rows.first_row + rows.num_rows)
                top_values, top_ids = logits[own].topk(top_n, dim=-1)
                tops[index] = top_ids, top_values - log_total[own, None]
        return Scored(values, tops)


class Scored(NamedTuple):
    """Logprobs of a step's targets, f32 [N]; and by index of ``plan.scores`` the most likely tokens
    of each row, (ids, logprobs)."""

    values: torch.Tensor
    tops: dict[int, tuple[torch.Tensor, torch.Tensor]]

    def read(self, scores: list[ScoreRows], result: StepResult) -> None:
        """Wait, and add to the result what belongs to each of ``scores``."""
        flat = iter(self.values.tolist())
        for index, rows in enumerate(scores):
            result.found.append([[next(flat) for _ in targets] for targets in _targets(rows)])
            if index not in self.tops:
                result.tops.append([])
                continue
            ids, logprobs = (tensor.tolist() for tensor in self.tops[index])
            result.tops.append([(tuple(i), tuple(p)) for i, p in zip(ids, logprobs, strict=True)])


def _targets(rows: ScoreRows) -> list[tuple[int, ...]]:
    scoring = rows.request.scoring
    assert scoring is not None
    first = rows.position - scoring.start
    return scoring.targets[first : first + rows.num_rows]
