"""Scores a model folder on the held-out sets, through transformers; the JSON and tool tasks also on
the runtime, free and under constraints.

python -m tools.nano.evaluate radixrt/models/nano --count 60
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import radixrt as rt
from tools.nano import arithmetic, classify, extract, puzzle, react, route, structured
from tools.nano.heldout import CLASSES, held_out_sets
from tools.nano.sentences import DOMAINS
from tools.nano.world import CODE_WORDS

Item = dict[str, Any]


class Scorer:
    """Completion and option scoring in batches; prompts are padded on the left."""

    def __init__(self, folder: Path, device: str, batch: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.device, self.batch = device, batch
        self.stops = list(self.model.generation_config.eos_token_id)

    def token(self, text: str) -> int:
        (only,) = self.tokenizer(text, add_special_tokens=False).input_ids
        return int(only)

    @torch.inference_mode()
    def complete(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: str = "\n",
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Text generated after each prompt up to, not including, the token `stop` or a chat end."""
        torch.manual_seed(seed)
        stops = [*self.stops, *([self.token(stop)] if stop else [])]
        outputs: list[str] = []
        for start in range(0, len(prompts), self.batch):
            part = list(prompts[start : start + self.batch])
            inputs = self.tokenizer(
                part, return_tensors="pt", padding=True, add_special_tokens=False
            ).to(self.device)
            sampling: dict[str, Any] = {"do_sample": False}
            if temperature > 0:
                sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
            ids = self.model.generate(
                **inputs, max_new_tokens=max_new_tokens, eos_token_id=stops, **sampling
            )
            for row in ids[:, inputs.input_ids.shape[1] :].tolist():
                cut = next((i for i, token in enumerate(row) if token in stops), len(row))
                outputs.append(self.tokenizer.decode(row[:cut]))
        return outputs

    @torch.inference_mode()
    def option_scores(
        self, prompts: Sequence[str], options: Sequence[Sequence[str]]
    ) -> list[Tensor]:
        """Mean log-likelihood per token of each option after its prompt."""
        flat = [(p, o) for p, row in zip(prompts, options, strict=True) for o in row]
        scores: list[float] = []
        for start in range(0, len(flat), self.batch):
            part = flat[start : start + self.batch]
            heads = [self.tokenizer(p, add_special_tokens=False).input_ids for p, _ in part]
            tails = [self.tokenizer(o, add_special_tokens=False).input_ids for _, o in part]
            inputs = self.tokenizer.pad(
                {"input_ids": [h + t for h, t in zip(heads, tails, strict=True)]},
                return_tensors="pt",
            ).to(self.device)
            positions = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
            longest = max(map(len, tails))
            logits = self.model(**inputs, position_ids=positions, logits_to_keep=longest + 1).logits
            logprobs = logits.float().log_softmax(-1)
            for row, tail in enumerate(tails):
                span = logprobs[row, -len(tail) - 1 : -1]
                picked = span.gather(1, torch.tensor(tail, device=self.device)[:, None])
                scores.append(picked.mean().item())
        split = [len(row) for row in options]
        return list(torch.tensor(scores).split(split))


def share(correct: Sequence[bool]) -> float:
    return sum(correct) / len(correct)


def classification(
    scorer: Scorer, items: list[Item], shots: list[Item], domain: str, renamed: bool
) -> float:
    """20 shots in front of every item, scored on the generated label."""
    names = {str(row["label"]) for row in items}
    rng = random.Random(domain)
    words = rng.sample(CODE_WORDS, len(names)) if renamed else sorted(names)
    label = dict(zip(sorted(names), words, strict=True))
    kind = DOMAINS[domain]
    prefix = "".join(
        classify.shot({**row, "label": label[row["label"]]}, kind.inputs[0], kind.outputs[0])
        for row in shots[:20]
    )
    prompts = [f"{prefix}{kind.inputs[0]}: {row['text']}\n{kind.outputs[0]}:" for row in items]
    replies = scorer.complete(prompts, 5)
    return share([r == f" {label[i['label']]}" for r, i in zip(replies, items, strict=True)])


def sums(scorer: Scorer, items: list[Item]) -> float:
    replies = scorer.complete([arithmetic.prompt(item) for item in items], 8)
    return share([r == f" {item['answer']}" for r, item in zip(replies, items, strict=True)])


def word_problems(scorer: Scorer, items: list[Item], shots: str = "") -> float:
    """The whole loop: the model acts, the calculator answers, at most five rounds."""
    texts = [react.prompt(item, shots) for item in items]
    starts = [len(text) for text in texts]
    open_rows = list(range(len(items)))
    answers: dict[int, str] = {}
    for _ in range(5):
        replies = scorer.complete([texts[i] for i in open_rows], 44, stop="Observation")
        still_open = []
        for i, reply in zip(open_rows, replies, strict=True):
            texts[i] += reply
            if "Answer:" in reply:
                answers[i] = reply.split("Answer:")[1].split("\n")[0].strip()
            elif (result := react.run_action(texts[i][starts[i] :])) is not None:
                texts[i] += f"Observation: {result}\n"
                still_open.append(i)
        open_rows = still_open
        if not open_rows:
            break
    return share([answers.get(i) == str(item["answer"]) for i, item in enumerate(items)])


def extraction(scorer: Scorer, items: list[Item]) -> float:
    replies = scorer.complete([extract.prompt(item) for item in items], 110)
    return share([r == " " + json.dumps(i["record"]) for r, i in zip(replies, items, strict=True)])


def chat_facts(scorer: Scorer, items: list[Item]) -> float:
    """Every turn of every conversation, over the model's own earlier replies."""
    histories: list[list[dict[str, str]]] = [
        [m for m in item["messages"] if m["role"] == "system"] for item in items
    ]
    asked = [[m for m in item["messages"] if m["role"] == "user"] for item in items]
    correct: list[bool] = []
    for turn in range(max(map(len, asked))):
        rows = [i for i in range(len(items)) if turn < len(asked[i])]
        prompts = []
        for i in rows:
            histories[i].append(asked[i][turn])
            prompts.append(
                scorer.tokenizer.apply_chat_template(
                    histories[i], tokenize=False, add_generation_prompt=True
                )
            )
        for i, reply in zip(rows, scorer.complete(prompts, 90, stop=""), strict=True):
            histories[i].append({"role": "assistant", "content": reply})
            correct.append(items[i]["must"][turn].lower() in reply.lower())
    return share(correct)


def routing(scorer: Scorer, items: list[Item]) -> float:
    options = [[f" {name}" for name in item["options"]] for item in items]
    scores = scorer.option_scores([route.prompt(item) for item in items], options)
    return share(
        [i["options"][int(s.argmax())] == i["label"] for s, i in zip(scores, items, strict=True)]
    )


def puzzle_greedy(scorer: Scorer, items: list[Item], temperature: float = 0.0) -> float:
    texts = [puzzle.prompt(item) for item in items]
    left: list[tuple[int, ...] | None] = [tuple(item["numbers"]) for item in items]
    for _ in range(len(items[0]["numbers"]) - 1):
        replies = scorer.complete([t + "Step:" for t in texts], 24, temperature=temperature)
        for i, reply in enumerate(replies):
            texts[i] += f"Step:{reply}\n"
            numbers = left[i]
            left[i] = None if numbers is None else puzzle.legal_step(reply, numbers)
    return share([left[i] == (item["target"],) for i, item in enumerate(items)])


def puzzle_tree(scorer: Scorer, items: list[Item], width: int) -> float:
    """Before every step `width` proposals are sampled and judged; the most hopeful is taken."""
    texts = [puzzle.prompt(item) for item in items]
    left: list[tuple[int, ...]] = [tuple(item["numbers"]) for item in items]
    verdicts = [f" {v}" for v in (puzzle.SURE, puzzle.MAYBE, puzzle.IMPOSSIBLE)]
    for depth in range(len(items[0]["numbers"]) - 1):
        prompts = [text + "Step:" for text in texts for _ in range(width)]
        replies = scorer.complete(prompts, 24, temperature=0.8, seed=depth)
        judged = [f"{p}{r}\nJudge:" for p, r in zip(prompts, replies, strict=True)]
        scores = scorer.option_scores(judged, [verdicts] * len(judged))
        for i in range(len(items)):
            best, best_score = -1, -1.0
            for k in range(i * width, (i + 1) * width):
                chances = scores[k].softmax(-1)
                hope = float(chances[0] + 0.5 * chances[1])
                if hope > best_score and puzzle.legal_step(replies[k], left[i]) is not None:
                    best, best_score = k, hope
            if best < 0:
                left[i] = ()
                continue
            left[i] = puzzle.legal_step(replies[best], left[i]) or ()
            texts[i] = judged[best] + verdicts[int(scores[best].argmax())] + "\n"
    return share([left[i] == (item["target"],) for i, item in enumerate(items)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scores", type=Path, help="also write the table as JSON")
    args = parser.parse_args()
    scorer = Scorer(args.folder, args.device, args.batch)
    sets = held_out_sets(args.count)
    shots = "".join(str(row["text"]) for row in sets["word_problem_shots"][:2])
    tasks: dict[str, Callable[[], float]] = {}
    for domain in CLASSES:
        for renamed in (False, True):
            name = f"{domain}, 20 shots" + (", arbitrary labels" if renamed else "")
            tasks[name] = lambda d=domain, r=renamed: classification(
                scorer, sets[d], sets[f"{d}_shots"], d, r
            )
    tasks["arithmetic"] = lambda: sums(scorer, sets["arithmetic"])
    tasks["word problems with the calculator"] = lambda: word_problems(
        scorer, sets["word_problems"]
    )
    tasks["word problems, 2 shots"] = lambda: word_problems(scorer, sets["word_problems"], shots)
    tasks["extraction, exact JSON"] = lambda: extraction(scorer, sets["extraction"])
    tasks["chat facts, per turn"] = lambda: chat_facts(scorer, sets["chat"])
    tasks["routing by select"] = lambda: routing(scorer, sets["routing"])
    tasks["puzzle, greedy"] = lambda: puzzle_greedy(scorer, sets["puzzles"])
    tasks["puzzle, one sample at 0.8"] = lambda: puzzle_greedy(scorer, sets["puzzles"], 0.8)
    tasks["puzzle, fork 4 and vote"] = lambda: puzzle_tree(scorer, sets["puzzles"], 4)
    tasks["puzzle, fork 8 and vote"] = lambda: puzzle_tree(scorer, sets["puzzles"], 8)
    table: dict[str, float] = {}
    print("| task | score |\n|---|---|")
    for name, run in tasks.items():
        start = time.monotonic()
        table[name] = run()
        print(f"| {name} | {table[name]:.3f} | {time.monotonic() - start:.1f} s", flush=True)
        if args.scores:
            args.scores.write_text(json.dumps(table, indent=2) + "\n")
    with rt.Runtime(args.folder) as backend:
        print(f"\n{structured.table(structured.evaluate(backend, args.count))}")


if __name__ == "__main__":
    main()
