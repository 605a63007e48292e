"""Steps of few tokens as recorded graphs: the host replays a whole forward with one call.

Such a step of a large model is hundreds of small launches; issued one by one they take longer than
the device needs for them. A recorded graph reads and writes the same memory each time, so the
step's arrays and the attention's plan are copied into place before it is replayed. A graph computes
a fixed number of tokens, whosever they are: decoding rows, small chunks of prompts, or both. There
is one for some numbers; a step runs in the fastest one that is large enough (not always the next
larger one: products of some sizes take longer than larger ones), and the tokens beyond its own are
rows of nobody, which write to the page that belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from radixrt.cache.transfer import Move
from radixrt.runtime.attention.base import AttentionBackend
from radixrt.runtime.batch import ForwardBatch, Int32
from radixrt.runtime.device import CapturedGraph, FixedUpload, copy_stream
from radixrt.runtime.forward.builder import (
    DeviceSampling,
    HostStep,
    StepArrays,
    device_batch,
    device_sampling,
)
from radixrt.runtime.model.decoder import Wanted
from radixrt.runtime.scheduling.slots import PLACEHOLDER

Trunk = Callable[[ForwardBatch, AttentionBackend], Wanted]
Head = Callable[[Wanted], torch.Tensor]
NUM_STEP_ARRAYS = len(StepArrays._fields)


class RecordedAttention(AttentionBackend, Protocol):
    """An attention backend whose ``run`` can be recorded; see ``TritonAttention``."""

    def num_partials(self, num_rows: int) -> list[int]: ...
    def room(self, num_rows: int, max_pages: int, num_pages: int) -> list[Int32]: ...
    def arrays(
        self, query_start: Int32, kv_lens: Int32, page_table: Int32, num_partials: list[int]
    ) -> list[Int32] | None: ...
    def bind(
        self, tensors: list[torch.Tensor], num_partials: list[int], positions: torch.Tensor
    ) -> None: ...


MAX_MIXED_TOKENS = 1024
"""Steps that mostly prefill are replayed up to this size: larger ones keep the device busy for
longer than their launches take, and prefill by the library's kernel is faster."""

MAX_HEAD_TOKENS = 64
"""Graphs of more tokens end behind the last layer's attention. The head, which is most of that
layer and the logits, has graphs of its own for numbers of wanted logits: of a step that prefills
they are few."""


def graph_sizes(max_tokens: int) -> list[int]:
    """Return the numbers of tokens that get a graph, ascending, about an eighth apart: close
    together where a token costs most of a step, few where a step is long."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < max_tokens:
        step = max(8, 1 << (sizes[-1].bit_length() - 4))
        sizes.append(sizes[-1] + step)
    return [size for size in sizes if size < max_tokens] + [max_tokens]


CLEARLY = 0.95
"""A larger graph is taken if it takes this share of the time at most: times vary by some per cent,
and the rows of nobody cost more in a real step, where the others have something to read."""

MAX_TIMED_TOKENS = 1024
"""Larger graphs are not timed: with them it took 4.0 of the 13.8 s of an 8B model's start, and the
more tiles a product has the less a larger one can be faster."""


def fastest(seconds: list[float]) -> list[int]:
    """Return of each graph, in the order of their sizes, which one at least as large to run: itself
    or one that is clearly faster."""
    best = []
    for index, own in enumerate(seconds):
        least = min(seconds[index:])
        best.append(seconds.index(least, index) if least < CLEARLY * own else index)
    return best


class StepGraphs:
    """Graphs for steps of up to ``max_tokens`` tokens, their rows of up to ``max_pages`` pages.

    ``trunk`` runs the model over a KV pool of ``num_pages`` up to its ``head``, which makes logits
    of what that returns; ``last_ids`` holds what each slot sampled last.
    """

    def __init__(
        self,
        trunk: Trunk,
        head: Head,
        attention: RecordedAttention,
        max_tokens: int,
        max_pages: int,
        num_pages: int,
        last_ids: torch.Tensor,
        sizes: list[int] | None = None,
    ) -> None:
        self._trunk = trunk
        self._head = head
        self._attention = attention
        self._sizes = np.array(sizes or graph_sizes(max_tokens))
        self._max_pages = max_pages
        self._num_pages = num_pages
        self._last_ids = last_ids
        self._stream = copy_stream(last_ids.device)
        self._uploads: dict[int, FixedUpload] = {}
        self._graphs: dict[int, CapturedGraph] = {}
        self._heads: dict[int, CapturedGraph] = {}
        self._wanted: Wanted | None = None
        for size in reversed(self._sizes.tolist()):  # the largest first: the others fit its memory
            self._record(size)
        for size in reversed(self._sizes[self._sizes > MAX_HEAD_TOKENS].tolist()):
            self._record_head(size)
        timed = [size for size in self._sizes.tolist() if size <= MAX_TIMED_TOKENS]
        self._fastest = fastest([self._seconds(size) for size in timed])
        self._fastest += range(len(timed), len(self._sizes))

    def _record(self, size: int) -> None:
        blank = _blank(size)
        room = self._attention.room(size, self._max_pages, self._num_pages)
        uploads = FixedUpload([*blank.arrays, *room], self._stream, self._last_ids.device)
        tensors = uploads.tensors

        def launch() -> torch.Tensor:
            batch = device_batch(blank, tensors, self._last_ids)
            plans, partials = tensors[NUM_STEP_ARRAYS:], self._attention.num_partials(size)
            self._attention.bind(plans, partials, batch.positions)
            wanted = self._trunk(batch, self._attention)
            if size <= MAX_HEAD_TOKENS:
                return self._head(wanted)
            if self._wanted is None:  # once, before anything is recorded
                self._wanted = Wanted(*map(torch.empty_like, wanted))
            for kept, rows in zip(self._wanted, wanted, strict=True):
                kept[:size].copy_(rows)
            return self._wanted.residual

        self._graphs[size] = CapturedGraph(launch, self._pool)
        self._uploads[size] = uploads

    def _record_head(self, size: int) -> None:
        assert self._wanted is not None
        wanted = Wanted(*(rows[:size] for rows in self._wanted))
        self._heads[size] = CapturedGraph(lambda: self._head(wanted), self._pool)

    def _seconds(self, size: int) -> float:
        """Return how long a step takes, of a graph without head with that of few logits."""
        head = self._heads[min(self._heads)].seconds() if size > MAX_HEAD_TOKENS else 0.0
        return self._graphs[size].seconds() + head

    @property
    def _pool(self) -> Any:
        return next((graph.pool for graph in self._graphs.values()), None)

    def run(
        self, host: HostStep, move: Move | None = None
    ) -> tuple[torch.Tensor, DeviceSampling] | None:
        """Return the logits [R, vocab_size] of a step and how it samples, both valid until the next
        call; None for one that is too large, or whose sharing is too fine.

        The step waits for all pages of ``move``. Launched, it could wait for each layer's, but
        launching takes longer than replaying, and replaying is all that waiting can cost.
        """
        num_tokens = len(host.arrays.input_ids)
        most = self._sizes[-1] if host.mostly_decodes else min(self._sizes[-1], MAX_MIXED_TOKENS)
        if num_tokens > most:
            return None
        size = int(self._sizes[self._fastest[np.searchsorted(self._sizes, num_tokens)]])
        padded = pad(host, size)
        arrays = padded.arrays
        plans = self._attention.arrays(
            arrays.query_start,
            arrays.kv_lens,
            padded.page_table,
            self._attention.num_partials(size),
        )
        if plans is None or not self._uploads[size].refill([*arrays, *plans]):
            return None
        if move is not None:
            move.wait_all()
        num_logits = len(host.arrays.logits_rows)
        logits = self._graphs[size].replay()
        if size > MAX_HEAD_TOKENS:
            least = max(num_logits, MAX_HEAD_TOKENS + 1)
            logits = self._heads[int(self._sizes[np.searchsorted(self._sizes, least)])].replay()
        return logits[:num_logits], device_sampling(host, self._uploads[size].tensors)


def _blank(rows: int) -> HostStep:
    """Return a step of rows with one token each, all of them in the page of nobody."""
    zeros = np.zeros(rows, np.int64)
    floats = np.zeros(rows, np.float32)
    return HostStep(
        StepArrays(
            input_ids=np.full(rows, PLACEHOLDER, np.int64),
            token_slots=zeros,
            positions=zeros,
            kv_slots=zeros,
            query_start=np.arange(rows + 1, dtype=np.int32),
            kv_lens=np.ones(rows, np.int32),
            logits_rows=np.arange(rows, dtype=np.int64),
            sample_slots=zeros,
            sample_logits=zeros,
            temperature=floats,
            top_p=floats,
            top_k=np.zeros(rows, np.int32),
            min_p=floats,
            uniform=floats,
        ),
        page_table=np.zeros((rows, 1), np.int32),
        is_random=False,
        has_filter=False,
    )


def pad(host: HostStep, size: int) -> HostStep:
    """Return the step with rows of nobody behind it, which see no keys: ``size`` tokens and as many
    wanted logits."""
    arrays = host.arrays
    missing = size - len(arrays.input_ids)
    unwanted = size - len(arrays.logits_rows)
    if not missing and not unwanted:
        return host
    more_rows = np.arange(1, missing + 1, dtype=np.int32) + arrays.query_start[-1]
    return HostStep(
        arrays._replace(
            input_ids=np.pad(arrays.input_ids, (0, missing)),
            token_slots=np.pad(arrays.token_slots, (0, missing)),
            positions=np.pad(arrays.positions, (0, missing)),
            kv_slots=np.pad(arrays.kv_slots, (0, missing)),
            query_start=np.concatenate((arrays.query_start, more_rows)),
            kv_lens=np.pad(arrays.kv_lens, (0, missing)),
            logits_rows=np.pad(arrays.logits_rows, (0, unwanted)),
        ),
        page_table=np.pad(host.page_table, ((0, missing), (0, 0))),
        is_random=host.is_random,
        has_filter=host.has_filter,
    )
