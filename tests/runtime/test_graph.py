"""Recorded decode steps equal steps that are launched one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from radixrt.config import RuntimeConfig
from radixrt.runtime.channel import LocalEngineChannel
from radixrt.runtime.device import FixedUpload, copy_stream
from radixrt.runtime.engine.assemble import build_loop
from radixrt.runtime.forward.graph import CLEARLY, _blank, fastest, graph_sizes, pad
from radixrt.runtime.wire import Done, FromEngine, Run, Step, TokenSampling, pack_ids


@pytest.mark.parametrize("most", [1, 3, 8, 100, 256, 1000])
def test_every_batch_size_has_a_graph_that_is_not_much_larger(most: int) -> None:
    sizes = graph_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    for rows in range(1, most + 1):
        size = next(size for size in sizes if size >= rows)
        assert size - rows <= max(8, rows // 4)


@given(st.lists(st.floats(1.0, 1.3), min_size=1, max_size=12))
def test_a_step_runs_in_its_own_graph_or_in_a_larger_one_that_is_clearly_faster(
    seconds: list[float],
) -> None:
    for index, chosen in enumerate(fastest(seconds)):
        least = min(seconds[index:])
        if least < CLEARLY * seconds[index]:
            assert chosen > index
            assert seconds[chosen] == least
        else:
            assert chosen == index


def test_rows_beyond_the_batch_write_to_the_page_of_nobody_and_read_nothing() -> None:
    blank = _blank(3)
    host = dataclasses.replace(
        blank,
        arrays=blank.arrays._replace(
            input_ids=np.array([7, 8, 9]),
            positions=np.array([4, 5, 6]),
            kv_slots=np.array([20, 37, 54]),
            kv_lens=np.array([5, 6, 7], np.int32),
        ),
        page_table=np.array([[1, 0], [2, 0], [3, 0]], np.int32),
    )
    padded = pad(host, 8)
    assert len(padded.arrays.input_ids) == len(padded.arrays.logits_rows) == 8
    assert len(padded.arrays.kv_lens) == 8
    assert padded.arrays.query_start.tolist() == list(range(9))
    assert padded.arrays.kv_slots.tolist() == [20, 37, 54, 0, 0, 0, 0, 0]
    assert padded.arrays.kv_lens.tolist() == [5, 6, 7, 0, 0, 0, 0, 0]
    assert padded.page_table[:3].tolist() == host.page_table.tolist()
    assert not padded.page_table[3:].any()
    assert len(padded.arrays.sample_slots) == 3  # nobody's rows do not sample


@pytest.mark.parametrize(
    ("starts", "mostly"),
    [([0, 1, 2, 3], True), ([0, 1, 2, 4], False), ([0, 1, 2, 3, 5], True), ([0, 5], False)],
)
def test_a_step_mostly_decodes_by_its_tokens(starts: list[int], mostly: bool) -> None:
    blank = _blank(starts[-1])
    arrays = blank.arrays._replace(query_start=np.array(starts, np.int32))
    assert dataclasses.replace(blank, arrays=arrays).mostly_decodes is mostly


def test_a_chunk_of_a_prompt_is_followed_by_rows_of_nobody() -> None:
    blank = _blank(5)
    host = dataclasses.replace(
        blank,
        arrays=blank.arrays._replace(
            query_start=np.array([0, 1, 5], np.int32),
            kv_lens=np.array([7, 9], np.int32),
            logits_rows=np.array([0, 4]),
        ),
        page_table=np.array([[1, 2], [3, 4]], np.int32),
    )
    padded = pad(host, 8)
    assert padded.arrays.query_start.tolist() == [0, 1, 5, 6, 7, 8]
    assert padded.arrays.kv_lens.tolist() == [7, 9, 0, 0, 0]
    assert padded.page_table.tolist() == [[1, 2], [3, 4], [0, 0], [0, 0], [0, 0]]
    assert padded.arrays.logits_rows.tolist() == [0, 4, 0, 0, 0, 0, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_contents_change_in_place_and_what_does_not_fit_changes_nothing() -> None:
    device = torch.device("cuda")
    first = [np.arange(6, dtype=np.int64), np.arange(12, dtype=np.int32).reshape(4, 3)]
    upload = FixedUpload([array.copy() for array in first], copy_stream(device), device)
    seen = upload.tensors
    assert [tensor.tolist() for tensor in seen] == [array.tolist() for array in first]
    assert upload.refill([np.array([9, 8]), np.full((2, 3), 5, np.int32)])
    assert seen[0][:2].tolist() == [9, 8]
    assert seen[1][:2].tolist() == [[5, 5, 5], [5, 5, 5]]
    assert not upload.refill([np.arange(7), np.zeros((1, 3), np.int32)])
    assert seen[0][:2].tolist() == [9, 8]


def generate(graphs: bool, count: int) -> dict[int, list[int]]:
    """Return what so many requests of the shipped model generate on the GPU."""
    outputs: dict[int, list[int]] = {call: [] for call in range(count)}
    unfinished = set(outputs)

    def take(messages: list[FromEngine]) -> None:
        for message in messages:
            if isinstance(message, Step):
                for sampled in message.sampled:
                    outputs[sampled.id] += sampled.token_ids
            elif isinstance(message, Done):
                unfinished.discard(message.id)

    channel = LocalEngineChannel(take)
    config = RuntimeConfig(device="cuda", dtype="float32", memory="4GiB", graphs=graphs)
    loop = build_loop(config, channel)
    assert (loop.engine.graphs is not None) is graphs
    sampling = TokenSampling(32, 0, 0.0, 1.0, 0, 0.0, 0.0, 0.0, 1.0, (), 0, ())
    common = list(range(100, 180))
    prompts = [np.array([*common, 200 + call], np.int32) for call in outputs]
    channel.put([Run(call, call, pack_ids(prompts[call]), sampling) for call in outputs])
    while unfinished:
        loop.step()
    loop.close()
    return outputs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("count", [1, 20, 150])
def test_replayed_steps_generate_what_launched_steps_generate(count: int) -> None:
    """Prompts of one request are replayed as well; of 150 the rows are a queue, and their head is a
    graph of its own."""
    assert generate(graphs=True, count=count) == generate(graphs=False, count=count)
