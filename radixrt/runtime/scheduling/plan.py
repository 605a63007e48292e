"""What one step computes and what comes of it, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.host import PageLoad
from radixrt.runtime.scheduling.request import Request
from radixrt.runtime.wire import SampledLogprob

Int32 = NDArray[np.int32]


class PageCopy(NamedTuple):
    """The first ``num_tokens`` tokens of page ``source`` go to page ``target``."""

    source: int
    target: int
    num_tokens: int


def copied_at_once(copies: Sequence[PageCopy]) -> Iterator[list[PageCopy]]:
    """Yield the copies in their order, in runs (usually one) whose copies can be made in any: none
    of a run writes what another one reads or writes."""
    run: list[PageCopy] = []
    sources: set[int] = set()
    targets: set[int] = set()
    for copy in copies:
        if copy.source in targets or copy.target in targets or copy.target in sources:
            yield run
            run, sources, targets = [], set(), set()
        run.append(copy)
        sources.add(copy.source)
        targets.add(copy.target)
    if run:
        yield run


class ScoreRows(NamedTuple):
    """Logits that score known tokens: ``num_rows`` rows from ``first_row`` (of the step's wanted
    logits) belong to the request's positions from ``position`` on."""

    request: Request
    position: int
    first_row: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows of a step, decodes first, then chunks.

    * ``requests``, ``slots`` int32 [B]: who
    * ``starts``, ``ends`` int32 [B]: the row computes the request's tokens ``[starts, ends)``
    * ``logits_at`` int64 [R]: wanted logits, as indices into the step's tokens
    * ``sample_rows`` int32 [K]: rows (of B) that sample a token at position ``ends``
    * ``sample_logits`` int64 [K]: where in R their logits are
    * ``scores``: known tokens that are scored
    * ``copies``: page copies to be made before the forward, in this order
    * ``loads``: pages that come from the host, needed by the forward layer by layer
    """

    requests: list[Request]
    slots: Int32
    starts: Int32
    ends: Int32
    logits_at: NDArray[np.int64]
    sample_rows: Int32
    sample_logits: NDArray[np.int64]
    scores: list[ScoreRows]
    copies: list[PageCopy]
    loads: list[PageLoad] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Rows of the step; 0 is a step without work."""
        return len(self.requests)

    @property
    def num_tokens(self) -> int:
        """New tokens of all rows."""
        return int((self.ends - self.starts).sum())


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step read back from the device.

    ``token_ids`` belong to ``plan.sample_rows``; ``logprobs`` to those of them, by index, that
    asked; ``found[i][j]`` and ``tops[i][j]`` to position j of ``plan.scores[i]``. ``marks``, by
    index: the probability that a mask took away, and the token's logprob under it.
    """

    token_ids: list[int]
    logprobs: dict[int, SampledLogprob]
    found: list[list[list[float]]]
    tops: list[list[tuple[tuple[int, ...], tuple[float, ...]]]]
    marks: dict[int, tuple[float, float]] = field(default_factory=dict)
