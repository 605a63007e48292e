"""CPU speed of the engine on a random 0.5B model, beside llama.cpp and transformers.

Every engine is a process of its own with the model loaded; the workloads go round all of them, so
that what else the machine does hits them alike. Rates are medians over the rounds, ratios are
medians of the rounds' ratios.

    python benchmarks/cpu_engine.py                              # radixrt and transformers
    python benchmarks/cpu_engine.py --llama-python .venv-peers/bin/python

llama.cpp needs an environment of its own:
``python -m venv .venv-peers && .venv-peers/bin/pip install llama-cpp-python==0.3.36 gguf``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Job = dict[str, Any]

SHAPE = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
}


def workloads(args: argparse.Namespace) -> dict[str, Job]:
    """Return the measured workloads; a rate is ``tokens`` over the seconds."""
    subjects, questions, prefix = args.few_shot
    return {
        "prefill 1024": job("prefill", prompt=1024, new=1, tokens=1024),
        "decode": job("decode", prompt=32, new=65, tokens=64),
        "batch 16 x (64 + 32)": job("batch", prompt=64, new=32, rows=16, tokens=16 * 32),
        f"few-shot {subjects} x {questions}, prefix {prefix}": job(
            "few_shot", prompt=32, new=4, rows=questions, tokens=subjects * questions,
            subjects=subjects, prefix=prefix,
        ),
    }  # fmt: skip


def job(kind: str, *, prompt: int, new: int, tokens: int, rows: int = 1, **more: int) -> Job:
    """Return a workload: ``rows`` prompts of ``prompt`` tokens, ``new`` generated after each."""
    return {"kind": kind, "prompt": prompt, "new": new, "rows": rows, "tokens": tokens, **more}


def prompts_of(job: Job) -> list[list[int]]:
    """Return the workload's prompts, different ones for every round."""
    chooser = random.Random(str(job))

    def draw(n: int) -> list[int]:
        return [chooser.randrange(1000, 100_000) for _ in range(n)]

    if job["kind"] != "few_shot":
        return [draw(job["prompt"]) for _ in range(job["rows"])]
    prefixes = [draw(job["prefix"]) for _ in range(job["subjects"])]
    return [prefix + draw(job["prompt"]) for prefix in prefixes for _ in range(job["rows"])]


def make_model(directory: Path) -> None:
    """Write a Hugging Face directory of random bf16 weights, unless it is there."""
    import torch
    from safetensors.torch import save_file

    from radixrt.runtime.model.config import read_config
    from radixrt.runtime.model.decoder import weight_shapes

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(SHAPE, indent=1))
    target = directory / "model.safetensors"
    if target.exists():
        return
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in weight_shapes(read_config(directory)).items():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            weights[name] = (torch.randn(shape, generator=generator) * 0.02).bfloat16()
    partial = directory / "partial.safetensors"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.rename(target)


class RadixEngine:
    """The engine loop in this process, driven by messages."""

    def __init__(self, model: Path, threads: int) -> None:
        import torch

        from radixrt.config import RuntimeConfig
        from radixrt.runtime.engine.assemble import build_loop

        torch.set_num_threads(threads)
        self._inbox: list[Any] = []
        self._outbox: list[Any] = []
        config = RuntimeConfig(model=model, memory="6GiB", context_length=4096, max_running=64)
        self._loop = build_loop(config, self)
        info = self._outbox[-1].info
        self.title = f"radixrt {info['dtype']}, {info['ops']} ops"
        self._calls = 0

    def receive(self, timeout_s: float) -> list[Any]:
        """See ``EngineChannel``."""
        messages, self._inbox = self._inbox, []
        return messages

    def send(self, messages: Sequence[Any]) -> None:
        """See ``EngineChannel``."""
        self._outbox += messages

    def measure(self, job: Job) -> float:
        """Return the seconds of a workload; decode counts from the first token on."""
        import numpy as np

        from radixrt.runtime.wire import Done, EngineFailed, Run, Step, TokenSampling, pack_ids

        sampling = TokenSampling(
            max_tokens=job["new"], min_tokens=0, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0,
            frequency_penalty=0.0, presence_penalty=0.0, repetition_penalty=1.0, logit_bias=(),
            seed=0, stop_token_ids=(),
        )  # fmt: skip
        self._outbox.clear()
        for ids in prompts_of(job):
            self._calls += 1
            packed = pack_ids(np.array(ids, np.int32))
            self._inbox.append(Run(self._calls, self._calls, packed, sampling))
        wanted = len(self._inbox)
        begin = time.perf_counter()
        done = 0
        while done < wanted:
            self._loop.step()
            for message in self._outbox:
                assert not isinstance(message, EngineFailed), message
                done += isinstance(message, Done)
                if job["kind"] == "decode" and isinstance(message, Step) and job["new"]:
                    begin, job["new"] = time.perf_counter(), 0
            self._outbox.clear()
        return time.perf_counter() - begin


class Transformers:
    """``generate`` in bf16, or in f32 where that is faster on this processor."""

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        probes = {"bf16": torch.bfloat16, "f32": torch.float32}
        if dtype == "auto":
            dtype = min(probes, key=lambda name: _probe(probes[name]))
        transformers.logging.set_verbosity_error()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=probes[dtype])
        self._model.eval()
        self.title = f"transformers {transformers.__version__} {dtype}"

    def measure(self, job: Job) -> float:
        """Return the seconds of a workload; decode counts from the first token on."""
        prompts = prompts_of(job)
        if job["kind"] != "decode":
            begin = time.perf_counter()
            for first in range(0, len(prompts), 16):
                self._generate(prompts[first : first + 16], job["new"])
            return time.perf_counter() - begin
        begin = time.perf_counter()
        self._generate(prompts, 1)
        middle = time.perf_counter()
        self._generate(prompts, job["new"])
        return (time.perf_counter() - middle) - (middle - begin)

    def _generate(self, prompts: list[list[int]], new: int) -> None:
        import torch

        ids = torch.tensor(prompts)
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )


def _probe(dtype: Any) -> float:
    """Return the seconds of a product of the model's shape."""
    import torch

    x, weight = torch.ones(64, 896, dtype=dtype), torch.ones(4864, 896, dtype=dtype)
    torch.nn.functional.linear(x, weight)
    begin = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    return time.perf_counter() - begin


def serve(engine: RadixEngine | Transformers) -> None:
    """Measure a workload per line of input."""
    print(json.dumps({"ready": engine.title}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": engine.measure(json.loads(line))}), flush=True)


class Worker:
    """An engine's process."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.title = str(self._read()["ready"])

    def measure(self, job: Job) -> float:
        """Return the seconds of a workload."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit("an engine ended early; its error is above")


def compare(args: argparse.Namespace) -> None:
    """Measure every engine in turn and print one table."""
    make_model(args.model)
    this = [sys.executable, __file__, "--model", str(args.model), "--threads", str(args.threads)]
    workers = {"radixrt": Worker([*this, "--worker", "radixrt"])}
    if args.llama_python:
        script = Path(__file__).with_name("cpu_engine_llama.py")
        command = [args.llama_python, str(script), str(args.model), str(args.threads)]
        workers["llama.cpp"] = Worker(command)
    if args.transformers != "none":
        dtype = ["--transformers", args.transformers]
        workers["transformers"] = Worker([*this, *dtype, "--worker", "transformers"])
    for worker in workers.values():
        print(worker.title, file=sys.stderr)

    rates: dict[str, dict[str, list[float]]] = {}
    for name, work in workloads(args).items():
        if args.only and work["kind"] not in args.only:
            continue
        rates[name] = {engine: [] for engine in workers}
        for round_ in range(args.rounds + 1):  # the first warms up
            for engine, worker in workers.items():
                is_slow = engine == "transformers" or work["kind"] == "few_shot"
                if work["kind"] == "few_shot" and engine == "llama.cpp":
                    continue
                if is_slow and round_ == 0:
                    continue
                if is_slow and round_ > args.slow_rounds:
                    continue
                seconds = worker.measure({**work, "round": round_})
                if round_:
                    rates[name][engine].append(work["tokens"] / seconds)
                    print(f"  {name}: {engine} {rates[name][engine][-1]:.1f}/s", file=sys.stderr)
    for worker in workers.values():
        worker.close()
    report(rates, args)


def report(rates: dict[str, dict[str, list[float]]], args: argparse.Namespace) -> None:
    """Print medians and ratios, and write all rates as JSON."""
    print(f"\n{'workload':34}{'engine':15}{'rate':>10}   radixrt is")
    for name, engines in rates.items():
        ours = engines["radixrt"]
        unit = "questions/s" if name.startswith("few") else "tok/s"
        for engine, theirs in engines.items():
            if not theirs:
                continue
            pairs = zip(ours, theirs, strict=False)
            ratio = statistics.median(a / b for a, b in pairs)
            times = "" if engine == "radixrt" else f"{ratio:8.2f} x"
            rate = f"{statistics.median(theirs):10.2f} {unit}"
            print(f"{name if engine == 'radixrt' else '':34}{engine:15}{rate:24}{times}")
    if args.json:
        args.json.write_text(json.dumps(rates, indent=1))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("build/cpu_engine/model"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slow-rounds", type=int, default=1, help="of transformers and few-shot")
    parser.add_argument("--llama-python", help="python of an environment with llama-cpp-python")
    parser.add_argument("--transformers", choices=["auto", "bf16", "f32", "none"], default="auto")
    parser.add_argument("--only", nargs="*", help="prefill, decode, batch, few_shot")
    parser.add_argument(
        "--few-shot", type=int, nargs=3, default=[4, 8, 600],
        metavar=("SUBJECTS", "QUESTIONS", "PREFIX"),
    )  # fmt: skip
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=["radixrt", "transformers"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker == "radixrt":
        serve(RadixEngine(args.model, args.threads))
    elif args.worker == "transformers":
        serve(Transformers(args.model, args.threads, args.transformers))
    else:
        compare(args)


if __name__ == "__main__":
    main()
