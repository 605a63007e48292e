"""The state of the running requests as arrays, one row a slot."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

from radixrt.runtime.scheduling.request import Request

Int32 = NDArray[np.int32]

PLACEHOLDER = -1
"""A token that a step in flight is still sampling."""

NOT_CATCHING = -1
"""The token of a slot that others cannot wait for."""

MIN_SHARED_TOKENS = 8
"""Waiting for another request's prefix must save at least so many tokens: it costs a step."""


class SlotTable:
    """What a step reads of every running request, so that planning and batch building are a few
    array operations and Python touches only the requests that changed.

    ``tokens`` int32 [S, max_len + 1], ``pages`` int32 [S, max_pages] with zeros past
    ``num_pages``. Of each row: ``num_tokens`` known tokens (placeholders included),
    ``num_computed`` of them launched, ``num_committed`` of them read back. ``num_known`` is
    ``num_tokens`` at admission: until ``num_committed`` reaches it the slot is catching up and
    others may wait for its prefix (``note_missing``). ``max_compute`` bounds
    ``num_computed``. ``varies``: sampling parameters change from token to token. Rows are handed
    out by ``take`` and come back by ``give``.
    """

    def __init__(self, num_slots: int, max_len: int, page_size: int) -> None:
        self.num_slots = num_slots
        self.max_len = max_len
        self.page_size = page_size
        max_pages = -(-(max_len + 1) // page_size)
        self.tokens: Int32 = np.zeros((num_slots, max_len + 1), np.int32)
        self.pages: Int32 = np.zeros((num_slots, max_pages), np.int32)
        self.num_tokens: Int32 = np.zeros(num_slots, np.int32)
        self.num_computed: Int32 = np.zeros(num_slots, np.int32)
        self.num_committed: Int32 = np.zeros(num_slots, np.int32)
        self.num_known: Int32 = np.zeros(num_slots, np.int32)
        self.num_pages: Int32 = np.zeros(num_slots, np.int32)
        self.max_compute: Int32 = np.zeros(num_slots, np.int32)
        self.logits_from: Int32 = np.zeros(num_slots, np.int32)
        self.samples = np.zeros(num_slots, np.bool_)
        self.scores = np.zeros(num_slots, np.bool_)
        self.runnable = np.zeros(num_slots, np.bool_)

        self.temperature = np.zeros(num_slots, np.float32)
        self.top_p = np.ones(num_slots, np.float32)
        self.top_k: Int32 = np.zeros(num_slots, np.int32)
        self.min_p = np.zeros(num_slots, np.float32)
        self.seed = np.zeros(num_slots, np.uint64)
        self.edits_logits = np.zeros(num_slots, np.bool_)
        self.has_matcher = np.zeros(num_slots, np.bool_)
        self.wants_logprobs = np.zeros(num_slots, np.bool_)
        self.wants_marks = np.zeros(num_slots, np.bool_)
        self.varies = np.zeros(num_slots, np.bool_)

        self.requests: list[Request | None] = [None] * num_slots
        self.catching: Int32 = np.full(num_slots, NOT_CATCHING, np.int32)
        self.catching_at = np.zeros(num_slots, np.int64)
        self._ages: list[tuple[int, int]] = []
        self._active: Int32 | None = None
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def active(self) -> Int32:
        """The slots in use, oldest request first, int32 [n]; valid until the next change."""
        if self._active is None:
            self._active = np.array([slot for _, slot in self._ages], np.int32)
        return self._active

    @property
    def num_active(self) -> int:
        """Slots in use."""
        return len(self._ages)

    @property
    def num_free(self) -> int:
        """Slots that nobody has."""
        return len(self._free)

    def take(self, request: Request) -> int:
        """Move a waiting request into a slot and return it; its counts start at 0."""
        slot = self._free.pop()
        n = len(request.token_ids)
        sampling = request.sampling
        self.tokens[slot, :n] = request.token_ids
        self.num_tokens[slot] = self.num_known[slot] = n
        self.num_computed[slot] = self.num_committed[slot] = self.num_pages[slot] = 0
        self.max_compute[slot] = request.max_len - 1
        self.logits_from[slot] = request.logits_from
        self.samples[slot] = request.samples
        self.scores[slot] = request.scoring is not None
        self.runnable[slot] = True
        self.temperature[slot] = sampling.temperature
        self.top_p[slot] = sampling.top_p
        self.top_k[slot] = sampling.top_k
        self.min_p[slot] = sampling.min_p
        self.seed[slot] = sampling.seed & 0xFFFFFFFFFFFFFFFF
        self.edits_logits[slot] = (
            sampling.frequency_penalty != 0
            or sampling.presence_penalty != 0
            or sampling.repetition_penalty != 1
            or bool(sampling.logit_bias)
            or sampling.min_tokens > 0
        )
        self.wants_marks[slot] = self.varies[slot] = False
        self.has_matcher[slot] = False
        self.wants_logprobs[slot] = sampling.logprobs
        self.requests[slot] = request
        request.slot = slot
        self.note_session(request)
        insort(self._ages, (request.seq, slot))
        self._active = None
        return slot

    def note_missing(self, slot: int, start: int) -> None:
        """The slot catches up with its tokens from ``start`` on: those before are cached, for as
        long as it runs. Who waits for more of them has at least the first ``MIN_SHARED_TOKENS`` in
        common with it, so the last of those, ``catching`` at position ``catching_at``, tells most
        others apart."""
        at = start + MIN_SHARED_TOKENS - 1
        if at < self.num_known[slot]:
            self.catching[slot] = self.tokens[slot, at]
            self.catching_at[slot] = at

    def note_session(self, request: Request) -> None:
        """Take over what the request's constraint wants of the next token: a mask, marks, and the
        sampling of the field that is being written."""
        session, slot, sampling = request.session, request.slot, request.sampling
        if session is None:
            return
        self.has_matcher[slot] = session.needs_mask
        self.wants_marks[slot] = session.spec.marks
        if not session.spec.fields:
            return
        self.varies[slot] = True  # what was planned for the token in flight may be out of date
        own = session.field_params
        for name in ("temperature", "top_p", "top_k", "min_p"):
            value = getattr(own, name) if own is not None else None
            getattr(self, name)[slot] = getattr(sampling, name) if value is None else value

    def give(self, request: Request) -> None:
        """Free the request's slot; its pages were handed over before."""
        slot = request.slot
        self.pages[slot, : self.num_pages[slot]] = 0
        self.num_pages[slot] = 0
        self.runnable[slot] = False
        self.requests[slot] = None
        self.catching[slot] = NOT_CATCHING
        del self._ages[bisect_left(self._ages, (request.seq, slot))]
        self._active = None
        self._free.append(slot)
        request.slot = -1

    def known_tokens(self, slot: int) -> Int32:
        """Return the slot's tokens without placeholders, a view valid until the next change."""
        row = self.tokens[slot, : self.num_tokens[slot]]
        return row[:-1] if len(row) and row[-1] == PLACEHOLDER else row
