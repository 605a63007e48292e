"""Two backends for one batch compute what one does for all of it."""

from __future__ import annotations

import pytest
import torch
from shared_prefix_batches import random_inputs, shared_prefix_batch

from radixrt.runtime.attention.base import AttentionSpec
from radixrt.runtime.attention.reference import ReferenceAttention
from radixrt.runtime.attention.split import SplitAttention
from radixrt.runtime.batch import ForwardBatch


class Recording(ReferenceAttention):
    """The reference, remembering what it was given."""

    def __init__(self, specs: list[AttentionSpec], page_size: int) -> None:
        super().__init__(specs, page_size)
        self.rows = 0

    def plan(self, batch: ForwardBatch) -> None:
        self.rows = batch.num_rows
        super().plan(batch)


@pytest.mark.parametrize(
    ("few", "group", "groups", "prefills", "decoding", "prefilling"),
    [
        (False, 0, 4, (17, 40), 12, 2),
        (False, 0, 2, (), 6, 0),
        (False, 0, 0, (5, 33), 0, 2),
        (False, 0, 4, (3, 4), 12, 2),
        (True, 0, 4, (3, 4), 14, 0),  # 12 tokens of decodes, 7 of prompts
        (True, 0, 4, (17, 40), 12, 2),
        (True, 4, 4, (17, 40), 14, 0),  # chunks that leave the prefill's tiles mostly empty
        (True, 4, 0, (5, 33), 2, 0),
        (True, 4, 4, (17, 40, 400), 12, 3),  # most of the work is a long one's
        (True, 4, 0, (100, 128), 0, 2),
    ],
)
def test_decoding_rows_and_prefilling_rows_each_go_to_their_backend(
    few: bool,
    group: int,
    groups: int,
    prefills: tuple[int, ...],
    decoding: int,
    prefilling: int,
) -> None:
    layer = AttentionSpec(8, 2, 64, 0.125)
    batch, num_pages = shared_prefix_batch(16, groups=groups, prefills=prefills)
    inputs = random_inputs(layer, batch, num_pages, 16)
    whole = ReferenceAttention([layer], 16)
    whole.plan(batch)
    decode, prefill = Recording([layer], 16), Recording([layer], 16)
    split = SplitAttention(decode, prefill, few=few, group=group)
    split.plan(batch)
    torch.testing.assert_close(split.run(0, *inputs), whole.run(0, *inputs))
    assert (decode.rows, prefill.rows) == (decoding, prefilling)
