"""The engine on a CUDA device: nothing is waited for in secret, and the tokens are the CPU's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from radixrt.config import DEFAULT_MODEL, RuntimeConfig
from radixrt.runtime.channel import LocalEngineChannel
from radixrt.runtime.device import HostStream
from radixrt.runtime.engine.assemble import build_loop
from radixrt.runtime.engine.loop import EngineLoop
from radixrt.runtime.model.loader import load_model
from radixrt.runtime.ops.reference import ReferenceOps
from radixrt.runtime.wire import (
    Done,
    EngineFailed,
    FromEngine,
    Ready,
    Run,
    Step,
    TokenSampling,
    pack_ids,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GREEDY = TokenSampling(64, 0, 0.0, 1.0, 0, 0.0, 0.0, 0.0, 1.0, (), 0, ())
BF16_RESOLUTION = 2.0**-8


class Harness:
    """An engine loop of the shipped model, driven by hand.

    Its attention is Triton's unless it is named: FlashInfer compiles for a minute at first.
    """

    def __init__(self, **options: Any) -> None:
        options = {"memory": "4GiB", "host_memory": "0"} | options
        if options["device"] == "cuda":
            options.setdefault("attention", "triton")
        self.outputs: dict[int, list[int]] = {}
        self.open: set[int] = set()
        self.info: dict[str, Any] = {}
        self.channel = LocalEngineChannel(self._take)
        self.loop: EngineLoop = build_loop(RuntimeConfig(**options), self.channel)

    def _take(self, messages: list[FromEngine]) -> None:
        for message in messages:
            match message:
                case Step(sampled=sampled):
                    for item in sampled:
                        self.outputs[item.id] += item.token_ids
                case Done(id=call):
                    self.open.discard(call)
                case Ready(info=info):
                    self.info = info
                case EngineFailed():
                    raise AssertionError(message)

    def submit(self, prompts: list[list[int]], sampling: list[TokenSampling]) -> range:
        calls = range(len(self.outputs), len(self.outputs) + len(prompts))
        self.outputs |= {call: [] for call in calls}
        self.open |= set(calls)
        self.channel.put(
            [
                Run(call, call, pack_ids(np.array(prompt, np.int32)), one)
                for call, prompt, one in zip(calls, prompts, sampling, strict=True)
            ]
        )
        return calls

    def finish(self) -> None:
        while self.open:
            self.loop.step()

    def generate(self, prompts: list[list[int]], sampling: list[TokenSampling]) -> list[list[int]]:
        calls = self.submit(prompts, sampling)
        self.finish()
        return [self.outputs[call] for call in calls]


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of 8 to 200 tokens, a third of which begin alike."""
    rng = np.random.default_rng(seed)
    common = rng.integers(10, 4000, 60).tolist()
    made = []
    for index in range(count):
        own = rng.integers(10, 4000, int(rng.integers(8, 140))).tolist()
        made.append(common + own if index % 3 == 0 else own)
    return made


def varied(count: int) -> list[TokenSampling]:
    """Sampling with every option that is applied on the device."""
    fields = {name: getattr(GREEDY, name) for name in GREEDY.__struct_fields__}
    options: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "seed": 3},
        {"temperature": 1.0, "top_p": 0.9, "seed": 4},
        {"temperature": 1.0, "top_k": 20, "min_p": 0.05, "seed": 5},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
        {"logit_bias": ((17, 4.0), (30, -100.0)), "min_tokens": 9, "stop_token_ids": (1,)},
        {"logprobs": True, "top_logprobs_num": 3},
    ]
    return [
        TokenSampling(**(fields | {"max_tokens": 24} | options[index % len(options)]))
        for index in range(count)
    ]


def test_no_step_waits_for_the_device_but_to_read_back() -> None:
    """Everything a step launches is queued without a synchronisation, under CUDA's own watch."""
    harness = Harness(device="cuda")
    harness.generate(prompts(14), varied(14))
    harness.submit(prompts(14, seed=1), varied(14))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        harness.finish()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_requests_tokens_do_not_depend_on_its_neighbours() -> None:
    harness = Harness(device="cuda", dtype="float32", cache=False)
    asked, sampling = prompts(14), varied(14)
    together = harness.generate(asked, sampling)
    alone = [
        harness.generate([prompt], [one])[0] for prompt, one in zip(asked, sampling, strict=True)
    ]
    assert together == alone


@pytest.mark.parametrize("attention", ["auto", "triton", "flashinfer", "reference"])
def test_greedy_tokens_are_the_cpus_up_to_near_ties(attention: str) -> None:
    """64 tokens on 100 prompts in bf16: the first difference of a text is a place where the two
    most likely tokens are closer than bf16 tells apart."""
    asked = prompts(100)
    on_gpu = Harness(device="cuda", attention=attention).generate(asked, [GREEDY] * 100)
    on_cpu = Harness(device="cpu", dtype="bfloat16").generate(asked, [GREEDY] * 100)
    oracle = load_model(
        DEFAULT_MODEL, device=torch.device("cpu"), dtype=torch.float32, ops=ReferenceOps()
    )
    for prompt, ours, theirs in zip(asked, on_gpu, on_cpu, strict=True):
        differs = [i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
        if not differs:
            continue
        first = differs[0]
        logits = logits_after(oracle, prompt + ours[:first])
        candidates = logits[[ours[first], theirs[first]]]
        gap = float(candidates.max() - candidates.min())
        # A few roundings of a value of this size: both backends round in every layer.
        assert gap <= 4 * BF16_RESOLUTION * float(logits.abs().max()), (first, gap)
        assert float(logits.max() - candidates.min()) <= 8 * BF16_RESOLUTION * float(
            logits.abs().max()
        )


def logits_after(model: Any, token_ids: list[int]) -> torch.Tensor:
    """Return the f32 logits [V] after the tokens."""
    from paged_runs import PagedRun

    run = PagedRun(model, max_len=len(token_ids))
    with torch.inference_mode():
        return run.step({0: token_ids})[0]


def test_weights_arrive_as_they_are_in_the_file() -> None:
    stream = HostStream(num_bytes=1 << 12)
    for shape, dtype in (((700, 33), torch.bfloat16), ((5,), torch.float32), ((0, 4), torch.int64)):
        source = (torch.randn(shape) * 100).to(dtype)
        out = torch.empty(shape, dtype=dtype, device="cuda")
        stream.copy(source, out)
        assert torch.equal(out.cpu(), source)


def test_memory_stays_within_the_plan_at_the_largest_load() -> None:
    """After READY no step takes more than was measured, with prompts, decodes and logprobs."""
    harness = Harness(device="cuda", max_running=128)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    asked, sampling = prompts(400, seed=2), varied(400)
    with_scores = [
        TokenSampling(**{n: getattr(s, n) for n in s.__struct_fields__} | {"logprobs": True})
        for s in sampling
    ]
    harness.generate(asked, with_scores)
    grown = torch.cuda.max_memory_allocated() - before
    assert grown <= harness.info["memory_plan"]["step"]
