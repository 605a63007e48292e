"""Logits and greedy tokens are transformers' on the same weights, for every family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from paged_runs import PagedRun, make_batch
from tiny_models import FAMILIES, VOCAB_SIZE, make_tiny, save_tiny

from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.model.loader import load_model
from radixrt.runtime.ops.reference import ReferenceOps

NUM_TOKENS = 64
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return load(save_tiny(tmp_path_factory.mktemp(family), family))


def load(path: Path, dtype: torch.dtype = torch.float32) -> CausalLM:
    return load_model(path, device=CPU, dtype=dtype, ops=ReferenceOps())


def prompt(length: int = 40, seed: int = 3) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def test_logits_and_greedy_tokens_are_those_of_transformers(family: str, model: CausalLM) -> None:
    tokens = PagedRun(model, seed=1).greedy(prompt(), NUM_TOKENS)
    whole = prompt() + tokens
    with torch.inference_mode():
        expected = make_tiny(family)(torch.tensor([whole])).logits[0]
    # Each token is the most likely one after those before it, so all 64 are transformers' own.
    assert tokens == expected[len(prompt()) - 1 : -1].argmax(-1).tolist()
    assert len(set(tokens)) > 8, "a model that repeats itself tests nothing"
    actual = PagedRun(model, seed=2).step({0: whole}, all_logits=True)
    assert relative_error(actual, expected) < 1e-3


@pytest.mark.parametrize("page_size", [1, 16])
def test_chunked_prefill_is_whole_prefill(model: CausalLM, page_size: int) -> None:
    whole = PagedRun(model, page_size=16).step({0: prompt()})
    run = PagedRun(model, page_size=page_size, seed=5)
    for begin, end in ((0, 1), (1, 14), (14, 15), (15, 33)):
        run.step({0: prompt()[begin:end]})
    torch.testing.assert_close(run.step({0: prompt()[33:]}), whole, rtol=1e-4, atol=1e-4)


def test_a_ragged_batch_gives_each_row_what_it_gets_alone(model: CausalLM) -> None:
    batched = PagedRun(model, num_rows=3, page_size=4, max_len=64, seed=9)
    first = {0: prompt(23, seed=0), 1: prompt(1, seed=1), 2: prompt(37, seed=2)}
    batched.step({row: ids[: len(ids) // 2 + 1] for row, ids in first.items() if row != 1})
    rest = {2: first[2][19:], 0: first[0][12:], 1: first[1]}
    logits = batched.step(rest)
    for index, row in enumerate(rest):
        alone = PagedRun(model).step({0: first[row]})
        torch.testing.assert_close(logits[index], alone[0], rtol=1e-4, atol=1e-4)


def test_bf16_weights_give_nearly_the_logits_of_f32(family: str, tmp_path: Path) -> None:
    path = save_tiny(tmp_path, family, dtype=torch.bfloat16)
    narrow, wide = load(path, torch.bfloat16), load(path)
    assert narrow.embed_tokens.dtype == torch.bfloat16
    logits = PagedRun(narrow).step({0: prompt()})
    assert logits.dtype == torch.float32
    assert relative_error(logits, PagedRun(wide).step({0: prompt()})) < 0.1


def test_no_wanted_logits_still_writes_keys_and_values(tmp_path: Path) -> None:
    model = load(save_tiny(tmp_path, "llama"))
    run, plain = PagedRun(model), PagedRun(model)
    plain.step({0: prompt()})
    run.tokens[0] += prompt()
    batch = make_batch(
        [len(prompt())], [len(prompt())], run.pages, 16, input_ids=prompt(), logits_rows=[]
    )
    run.attention.plan(batch)
    with torch.inference_mode():
        assert model.forward(batch, run.k, run.v, run.attention).shape == (0, VOCAB_SIZE)
    torch.testing.assert_close(run.k, plain.k, equal_nan=True)
    torch.testing.assert_close(run.v, plain.v, equal_nan=True)
