"""A batch of constrained JSON generations against the same batch unconstrained; jump-forward.

    python benchmarks/constrained_throughput.py MODEL_DIR [--batch 64] [--rounds 5]
    python benchmarks/constrained_throughput.py llama-3.1-8b --tokenizer TOKENIZER_JSON
    python benchmarks/constrained_throughput.py tiny --tokenizer TOKENIZER_JSON --rounds 1

``llama-3.1-8b`` is that model's shape with random weights and as many tokens as the tokenizer has
(benchmarks/tekken.py makes a tokenizer of 131,072); ``tiny`` a model of two small layers, to try
the script without a GPU. Before anything is timed every constrained text has to be valid JSON under
the schema; how many are the same with and without jump-forward is reported (in f32 all of them: in
bf16 the rounding of a logit depends on how many rows a step has, with or without a constraint).

``throughput``: the time of a batch without a constraint over that of the one under a constraint
just before it, whose texts had as many tokens each. ``start_ms`` passed before the first step was
taken in, ``end_ms`` after the last one. ``jump_forward``: five string fields with names of ten and
more characters, with and without. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from radixrt.bench.engine import EngineDriver
from radixrt.bench.models import SHAPES
from radixrt.config import RuntimeConfig
from radixrt.runtime.device import synchronize
from radixrt.runtime.grammar.validate import FinalValidator
from radixrt.runtime.wire import GrammarSpec, Run, TokenSampling, pack_ids

LLAMA_8B = SHAPES["llama-3.1-8b"]

TINY = {
    **LLAMA_8B,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "torch_dtype": "float32",
}

RECORD = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "summary": {"type": "string", "maxLength": 120},
        "rating": {"type": "integer", "minimum": 0, "maximum": 100},
        "is_public": {"type": "boolean"},
        "category": {"enum": ["book", "film", "music", "other"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
    },
    "required": ["title", "summary", "rating", "is_public", "category", "tags"],
    "additionalProperties": False,
}

FIXED_KEYS = {
    "type": "object",
    "properties": {
        name: {"type": "string", "maxLength": 24}
        for name in (
            *("customer_name", "delivery_address", "contact_number"),
            *("payment_method", "special_instructions"),
        )
    },
    "required": [
        *("customer_name", "delivery_address", "contact_number"),
        *("payment_method", "special_instructions"),
    ],
    "additionalProperties": False,
}


class Driver(EngineDriver):
    """Runs batches with and without a constraint."""

    def batch(
        self,
        prompts: list[list[int]],
        limits: list[int],
        grammar: GrammarSpec | None,
        end_ids: tuple[int, ...],
    ) -> tuple[list[list[int]], float, dict[str, Any]]:
        """Return the tokens of every prompt, the seconds it took, and the counters' increase."""
        before = self.stats()
        calls = range(self._next_id, self._next_id + len(prompts))
        self._next_id += len(prompts)
        self._outputs = {call: [] for call in calls}
        self._open = set(calls)
        runs = [
            Run(call, call, pack_ids(np.array(prompt, np.int32)), sampling(limit, end_ids), grammar)
            for call, prompt, limit in zip(calls, prompts, limits, strict=True)
        ]
        synchronize(self.loop.engine.device)  # a step that nobody waited for
        metrics, marks = self.loop.scheduler.metrics, []
        begin = time.perf_counter()
        self.channel.put(runs)
        while self._open:
            num_steps = metrics.steps
            self.loop.step()
            if metrics.steps != num_steps:
                marks.append(time.perf_counter())
        end = time.perf_counter()
        outputs = list(self._outputs.values())
        after = self.stats()
        names = ("steps", "grammar_mask_s")
        counters = {name: after[name] - before[name] for name in names}
        counters |= {"start_ms": (marks[0] - begin) * 1e3, "end_ms": (end - marks[-1]) * 1e3}
        return outputs, end - begin, counters


def sampling(max_tokens: int, end_ids: tuple[int, ...]) -> TokenSampling:
    """Return greedy sampling."""
    return TokenSampling(max_tokens, 0, 0.0, 1.0, 0, 0.0, 0.0, 0.0, 1.0, (), 0, end_ids)


def texts_of(outputs: list[list[int]], tokenizer: Tokenizer) -> list[str]:
    """Return texts without control tokens."""
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in outputs]


def check(texts: list[str], schema: dict[str, Any]) -> None:
    """Stop unless every text is valid."""
    validator = FinalValidator(schema)
    for text in texts:
        failure = validator.check(text)
        if failure is not None:
            raise SystemExit(f"not valid: {failure.message}: {text!r}")


def throughput(
    driver: Driver, tokenizer: Tokenizer, prompts: list[list[int]], rounds: int, end: int
) -> dict[str, Any]:
    """Compare a constrained batch with the same unconstrained one, rounds in turn."""
    schema = json.dumps(RECORD)
    plain = GrammarSpec("json_schema", schema, finish="valid", jump_forward=False)
    jumping = GrammarSpec("json_schema", schema, finish="valid")
    limits = [400] * len(prompts)
    outputs, _, _ = driver.batch(prompts, limits, plain, (end,))
    check(texts_of(outputs, tokenizer), RECORD)
    jumped, _, _ = driver.batch(prompts, limits, jumping, (end,))
    same = sum(a == b for a, b in zip(outputs, jumped, strict=True))
    names = ("constrained", "free", "jump_forward", "free_as_long")
    times: dict[str, list[float]] = {name: [] for name in names}
    counters: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for name, free, grammar in ((*names[:2], plain), (*names[2:], jumping)):
            driver.flush()
            outputs, seconds, counters[name] = driver.batch(prompts, limits, grammar, (end,))
            times[name].append(seconds)
            counts = [len(tokens) for tokens in outputs]  # in bf16 not the same in every round
            driver.flush()
            _, seconds, counters[free] = driver.batch(prompts, counts, None, ())
            times[free].append(seconds)
    medians = {name: statistics.median(found) for name, found in times.items()}
    ratios = {
        name: statistics.median(
            free / mine for free, mine in zip(times[other], times[name], strict=True)
        )
        for name, other in (names[:2], names[2:])
    }
    return {
        "batch": len(prompts),
        "tokens": sum(map(len, outputs)),
        "same_with_jump_forward": f"{same}/{len(prompts)}",
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "steps": {name: found["steps"] for name, found in counters.items()},
        "waited_for_masks_s": {
            name: round(found["grammar_mask_s"], 4) for name, found in counters.items()
        },
        **{
            part: {name: round(found[part], 2) for name, found in counters.items()}
            for part in ("start_ms", "end_ms")
        },
        "constrained_over_free": round(ratios["constrained"], 4),
        "jump_forward_over_free": round(ratios["jump_forward"], 4),
    }


def jump_forward(
    driver: Driver, tokenizer: Tokenizer, prompts: list[list[int]], rounds: int, end: int
) -> dict[str, Any]:
    """Generate one at a time, with and without jump-forward."""
    schema = json.dumps(FIXED_KEYS)
    found: dict[str, Any] = {}
    outputs: dict[str, list[list[int]]] = {}
    for name, jumps in (("with", True), ("without", False)):
        spec = GrammarSpec("json_schema", schema, finish="valid", jump_forward=jumps)
        driver.batch(prompts[:1], [400], spec, (end,))  # compiled
        seconds, steps = [], 0
        outputs[name] = []
        for prompt in prompts[: max(rounds, 4)]:
            driver.flush()
            tokens, took, counters = driver.batch([prompt], [400], spec, (end,))
            seconds.append(took)
            steps += counters["steps"]
            outputs[name] += tokens
        check(texts_of(outputs[name], tokenizer), FIXED_KEYS)
        found[name] = {"steps": steps, "seconds": round(sum(seconds), 4)}
    texts = {name: texts_of(tokens, tokenizer) for name, tokens in outputs.items()}
    same = sum(a == b for a, b in zip(texts["with"], texts["without"], strict=True))
    found["same_text"] = f"{same}/{len(texts['with'])}"
    found["fewer_steps"] = round(1 - found["with"]["steps"] / found["without"]["steps"], 4)
    found["latency_ratio"] = round(found["with"]["seconds"] / found["without"]["seconds"], 4)
    return found


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--end-id", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--overlap", type=int)
    parser.add_argument("--dtype", default="auto", help="float32 compares texts token by token")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"device": arguments.device, "dtype": arguments.dtype}
        if arguments.overlap is not None:
            options["overlap"] = arguments.overlap
        shapes = {"llama-3.1-8b": LLAMA_8B, "tiny": TINY}
        end = arguments.end_id
        if arguments.model in shapes:
            if arguments.tokenizer is None:
                parser.error("--tokenizer is needed with a model of random weights")
            tokenizer_file = Path(folder, "tokenizer.json")
            shutil.copy(arguments.tokenizer, tokenizer_file)
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
            config = {
                **shapes[arguments.model],
                "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True),
                "eos_token_id": end,
                "bos_token_id": 1,
            }
            Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
            options |= {"model": Path(folder), "load_format": "dummy"}
        else:
            options["model"] = Path(arguments.model)
            tokenizer = Tokenizer.from_file(str(options["model"] / "tokenizer.json"))
            model_config = json.loads((options["model"] / "config.json").read_text())
            end = model_config["eos_token_id"]
            end = end[0] if isinstance(end, list) else end
        driver = Driver(RuntimeConfig(**options))
        rng = np.random.default_rng(0)
        subjects = [
            f"Item {i}: write a record about {i * 7} things.\n" for i in range(arguments.batch)
        ]
        prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in subjects]
        filler = rng.integers(300, min(driver.vocab_size, 2000), 40).tolist()
        prompts = [prompt + filler for prompt in prompts]
        found = {
            "device": driver.info["device"],
            "model": arguments.model,
            "vocabulary": driver.vocab_size,
            "overlap": driver.info["overlap"],
            "throughput": throughput(driver, tokenizer, prompts, arguments.rounds, end),
            "jump_forward": jump_forward(driver, tokenizer, prompts, arguments.rounds, end),
        }
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
