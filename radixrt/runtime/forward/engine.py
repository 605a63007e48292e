"""The model, its KV pool and the device: launches steps and reads them back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from radixrt.cache.host import HostTier
from radixrt.cache.transfer import Move
from radixrt.runtime.attention.arriving import ArrivingPages
from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.batch import ForwardBatch
from radixrt.runtime.device import AheadUpload, Readback, one_thread_if_small, upload
from radixrt.runtime.forward.builder import (
    DeviceSampling,
    SamplingArrays,
    device_batch,
    device_sampling,
    host_step,
)
from radixrt.runtime.forward.graph import StepGraphs
from radixrt.runtime.ops.base import Ops
from radixrt.runtime.ops.sampler import (
    LogitEdits,
    apply_edits,
    concatenate_edits,
    edits_of,
    logprobs_of,
    marks_of,
)
from radixrt.runtime.scheduling.kv import KvPool
from radixrt.runtime.scheduling.masks import Masks
from radixrt.runtime.scheduling.plan import (
    PageCopy,
    Plan,
    ScoreRows,
    StepResult,
    copied_at_once,
)
from radixrt.runtime.scheduling.slots import SlotTable
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
        """Return logits [R, vocab_size] of the batch's wanted rows, f32 or the model's dtype."""
        ...


@dataclass(slots=True)
class StepInFlight:
    """A launched step: results are on the device until ``Engine.read``. ``launched`` is a time of
    ``time.perf_counter``.

    ``logprobs`` holds, for the sampling rows ``logprob_rows``, what ``logprobs_of`` returned;
    ``marks``, for ``mark_rows``, what ``marks_of`` returned.
    """

    plan: Plan
    logits: torch.Tensor
    sampling: DeviceSampling
    launched: float
    token_ids: Readback | None = None
    logprob_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    logprobs: Readback | None = None
    mark_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    marks: Readback | None = None
    scored: Scored | None = None


class Engine:
    """Runs plans. Device work is queued in the order of the calls; ``read`` alone waits for it.

    ``last_ids`` int64 [num_slots] is the memory for what each slot sampled last, which recorded
    graphs read.
    """

    def __init__(
        self,
        model: Model,
        pool: KvPool,
        attention: AttentionBackend,
        ops: Ops,
        slots: SlotTable,
        device: torch.device,
        graphs: StepGraphs | None = None,
        last_ids: torch.Tensor | None = None,
        host: HostTier | None = None,
    ) -> None:
        self.model = model
        self.pool = pool
        self.attention = attention
        self.ops = ops
        self.slots = slots
        self.device = device
        self.graphs = graphs
        if last_ids is None:
            last_ids = torch.zeros(slots.num_slots, dtype=torch.int64, device=device)
        self._last_ids = last_ids
        self.host = host
        self._masks = AheadUpload(device)

    @torch.inference_mode()
    def launch(self, plan: Plan) -> StepInFlight:
        """Copy the plan's pages and start its forward, which waits for pages that come from the
        host: layer by layer, or a recorded one for all of them."""
        launched = time.perf_counter()
        self.copy_pages(plan.copies)
        move = self._start_loads(plan)
        host = host_step(plan, self.slots)
        replayed = self.graphs.run(host, move) if self.graphs else None
        if replayed is not None:
            return StepInFlight(plan, *replayed, launched)
        tensors = upload(host.arrays, self.device)
        batch = device_batch(host, tensors, self._last_ids)
        self.attention.plan(batch)
        attention = self.attention if move is None else ArrivingPages(self.attention, move)
        logits = self.model.forward(batch, self.pool.k, self.pool.v, attention)
        if move is not None:
            move.wait_all()  # not every forward asks for its last layer
        return StepInFlight(plan, logits, device_sampling(host, tensors), launched)

    def _start_loads(self, plan: Plan) -> Move | None:
        if not plan.loads:
            return None
        assert self.host is not None, "a plan with loads and no host tier"
        return self.host.start(plan.loads)

    def copy_pages(self, copies: list[PageCopy]) -> None:
        """Copy pages of the pool, as if in this order."""
        for run in copied_at_once(copies):
            columns = list(np.array(run, np.int32).T)
            self.ops.copy_pages(self.pool.k, self.pool.v, *upload(columns, self.device))

    def mask_room(self, shape: tuple[int, int]) -> NDArray[np.int32]:
        """Return an array for the masks of a step, to be filled until ``sample``."""
        return self._masks.room(shape)

    @torch.inference_mode()
    def sample(self, step: StepInFlight, masks: Masks | None) -> None:
        """Choose the step's tokens, after the forward and with the host's masks."""
        with one_thread_if_small(step.logits):
            self._sample(step, masks)

    def _sample(self, step: StepInFlight, masks: Masks | None) -> None:
        plan, slots = step.plan, self.slots
        if plan.scores:
            step.scored = self._score(step.logits, plan.scores)
        if len(plan.sample_rows) == 0:
            return
        chosen = plan.slots[plan.sample_rows]
        logits = step.logits
        if step.sampling.logits is not None:
            logits = logits[step.sampling.logits]
        step.logprob_rows = np.flatnonzero(slots.wants_logprobs[chosen])
        at = self._index(step.logprob_rows) if len(step.logprob_rows) else None
        unmodified = logits if at is None else logits[at]
        logits = self._edit(logits, plan, chosen)
        step.mark_rows = np.flatnonzero(slots.wants_marks[chosen])
        marked = self._index(step.mark_rows) if len(step.mark_rows) else None
        unmasked = None if marked is None else logits[marked].float().logsumexp(dim=-1)
        if masks is not None:
            self._mask(logits, masks)
        rows = step.sampling.rows
        if slots.varies[chosen].any():  # by what was read back since the launch
            positions = plan.ends[plan.sample_rows]
            rows = SamplingArrays.of(slots, chosen, positions).upload(self.device)
        ids = self.ops.sample(logits, rows)
        if marked is not None and unmasked is not None:
            step.marks = Readback(*marks_of(logits[marked], unmasked, ids[marked]))
        self._last_ids[step.sampling.slots] = ids
        step.token_ids = Readback(ids)
        if at is not None:
            top_n = max(
                plan.requests[plan.sample_rows[row]].sampling.top_logprobs_num
                for row in step.logprob_rows.tolist()
            )
            step.logprobs = Readback(*logprobs_of(unmodified, ids[at], top_n))

    def read(self, step: StepInFlight) -> StepResult:
        """Wait for a sampled step and return its results."""
        token_ids = [] if step.token_ids is None else step.token_ids.wait()[0].tolist()
        logprobs: dict[int, SampledLogprob] = {}
        if step.logprobs is not None:
            chosen, ids, values = (tensor.tolist() for tensor in step.logprobs.wait())
            for index, row in enumerate(step.logprob_rows.tolist()):
                top_n = step.plan.requests[step.plan.sample_rows[row]].sampling.top_logprobs_num
                logprobs[row] = SampledLogprob(
                    chosen[index], tuple(ids[index][:top_n]), tuple(values[index][:top_n])
                )
        result = StepResult(token_ids, logprobs, [], [])
        if step.marks is not None:
            removed, under_mask = (tensor.tolist() for tensor in step.marks.wait())
            for index, row in enumerate(step.mark_rows.tolist()):
                result.marks[row] = removed[index], under_mask[index]
        if step.scored is not None:
            step.scored.read(step.plan.scores, result)
        return result

    def _edit(self, logits: torch.Tensor, plan: Plan, chosen: NDArray[np.int32]) -> torch.Tensor:
        """Return the logits with penalties and biases applied, in f32 where there are any."""
        edits: list[LogitEdits] = []
        for index in np.flatnonzero(self.slots.edits_logits[chosen]).tolist():
            row = int(plan.sample_rows[index])
            request = plan.requests[row]
            if request.reason is None:
                edits.append(
                    edits_of(
                        index,
                        request.sampling,
                        self.slots.tokens[request.slot, : plan.ends[row]],
                        request.prompt_len,
                        keep_stops=request.session is not None and request.session.needs_mask,
                    )
                )
        if not edits:
            return logits
        logits = logits.float()
        all_edits = concatenate_edits(edits)
        apply_edits(
            logits,
            *upload(
                [all_edits.rows, all_edits.token_ids, all_edits.factor, all_edits.minus],
                self.device,
            ),
        )
        return logits

    def _mask(self, logits: torch.Tensor, masks: Masks) -> None:
        bitmask = self._masks.upload(masks.bitmask)
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
        logits = logits.float()
        log_total = logits.logsumexp(dim=-1)
        at, of_ids = upload([np.array(rows_of, np.int64), np.array(ids, np.int64)], self.device)
        values = logits[at, of_ids] - log_total[at]
        tops: dict[int, Readback] = {}
        for index, rows in enumerate(scores):
            top_n = rows.request.scoring.top_n if rows.request.scoring else 0
            if top_n:
                own = slice(rows.first_row, rows.first_row + rows.num_rows)
                top_values, top_ids = logits[own].topk(top_n, dim=-1)
                tops[index] = Readback(top_ids, top_values - log_total[own, None])
        return Scored(Readback(values), tops)


class Scored(NamedTuple):
    """Logprobs of a step's targets, f32 [N]; and by index of ``plan.scores`` the most likely tokens
    of each row, (ids, logprobs)."""

    values: Readback
    tops: dict[int, Readback]

    def read(self, scores: list[ScoreRows], result: StepResult) -> None:
        """Wait, and add to the result what belongs to each of ``scores``."""
        flat = iter(self.values.wait()[0].tolist())
        for index, rows in enumerate(scores):
            result.found.append([[next(flat) for _ in targets] for targets in _targets(rows)])
            if index not in self.tops:
                result.tops.append([])
                continue
            ids, logprobs = (tensor.tolist() for tensor in self.tops[index].wait())
            result.tops.append([(tuple(i), tuple(p)) for i, p in zip(ids, logprobs, strict=True)])


def _targets(rows: ScoreRows) -> list[tuple[int, ...]]:
    scoring = rows.request.scoring
    assert scoring is not None
    first = rows.position - scoring.start
    return scoring.targets[first : first + rows.num_rows]
