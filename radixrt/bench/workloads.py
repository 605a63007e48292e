"""Five workloads in token ids: no tokenizer, the same for every engine, fixed by their seed.

A workload is a function of ``generate(prompts, max_new) -> outputs``; conversations and trees feed
an engine its own output back. Each returns what it asked for, as counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Prompts = list[list[int]]
Generate = Callable[[Prompts, list[int]], Prompts]
Counts = dict[str, int]

FIRST_ID, END_ID = 10, 128_000
"""Token ids are drawn from this range."""


class Ids:
    """Random token ids from one generator; ``scale`` shortens everything for small machines."""

    def __init__(self, seed: int, vocab_size: int, scale: float) -> None:
        self.rng = np.random.default_rng(seed)
        self._end = min(END_ID, vocab_size)
        self._scale = scale

    def draw(self, length: int) -> list[int]:
        """Return ``length`` × scale ids, at least one."""
        num = max(1, round(int(length) * self._scale))
        ids: list[int] = self.rng.integers(FIRST_ID, self._end, num).tolist()
        return ids

    def length(self, num: int) -> int:
        """Return a number of tokens to generate, scaled."""
        return max(1, round(num * self._scale))


def single(generate: Generate, seed: int, vocab_size: int, scale: float = 1.0) -> Counts:
    """One request alone: 512 tokens in, 256 out."""
    ids = Ids(seed + 4, vocab_size, scale)
    prompt, out = ids.draw(512), ids.length(256)
    generate([prompt], [out])
    return {"requests": 1, "prompt_tokens": len(prompt), "output_tokens": out}


def batch(
    generate: Generate, seed: int, vocab_size: int, scale: float = 1.0, requests: int = 1000
) -> Counts:
    """Independent prompts with the lengths of ShareGPT's."""
    ids = Ids(seed, vocab_size, scale)
    prompt_lens = np.clip(ids.rng.lognormal(5.0, 1.0, requests), 8, 2048).astype(int)
    output_lens = np.clip(ids.rng.lognormal(5.0, 0.8, requests), 8, 1024).astype(int)
    prompts = [ids.draw(length) for length in prompt_lens]
    outputs = [ids.length(int(length)) for length in output_lens]
    generate(prompts, outputs)
    return {
        "requests": requests,
        "prompt_tokens": sum(map(len, prompts)),
        "output_tokens": sum(outputs),
    }


def few_shot(
    generate: Generate,
    seed: int,
    vocab_size: int,
    scale: float = 1.0,
    subjects: int = 57,
    questions: int = 24,
) -> Counts:
    """Five-shot multiple choice: a long prefix a subject, one token a question, shuffled."""
    ids = Ids(seed + 1, vocab_size, scale)
    prompts: Prompts = []
    for _ in range(subjects):
        prefix = ids.draw(int(ids.rng.integers(600, 1400)))
        prompts += [prefix + ids.draw(int(ids.rng.integers(50, 180))) for _ in range(questions)]
    ids.rng.shuffle(prompts)
    generate(prompts, [1] * len(prompts))
    return {
        "requests": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "output_tokens": len(prompts),
    }


def multi_turn(
    generate: Generate,
    seed: int,
    vocab_size: int,
    scale: float = 1.0,
    sessions: int = 64,
    turns: int = 6,
) -> Counts:
    """Chats behind one system prompt; a turn's prompt holds everything before it."""
    ids = Ids(seed + 2, vocab_size, scale)
    system, out = ids.draw(400), ids.length(128)
    chats = [list(system) for _ in range(sessions)]
    prompt_tokens = 0
    for _ in range(turns):
        chats = [chat + ids.draw(int(ids.rng.integers(60, 240))) for chat in chats]
        prompt_tokens += sum(map(len, chats))
        for chat, reply in zip(chats, generate(chats, [out] * sessions), strict=True):
            chat += reply
    return {
        "requests": sessions * turns,
        "prompt_tokens": prompt_tokens,
        "output_tokens": sessions * turns * out,
    }


def tree(
    generate: Generate,
    seed: int,
    vocab_size: int,
    scale: float = 1.0,
    problems: int = 40,
    width: int = 4,
    depth: int = 3,
) -> Counts:
    """Tree of thought: every node forks ``width`` ways over one few-shot prefix."""
    ids = Ids(seed + 3, vocab_size, scale)
    shots, out = ids.draw(1000), ids.length(64)
    nodes = [shots + ids.draw(100) for _ in range(problems)]
    requests = prompt_tokens = 0
    for _ in range(depth):
        prompts = [node + ids.draw(8) for node in nodes for _ in range(width)]
        outputs = generate(prompts, [out] * len(prompts))
        requests += len(prompts)
        prompt_tokens += sum(map(len, prompts))
        nodes = [p + reply for p, reply in zip(prompts, outputs, strict=True)][:640]
    return {
        "requests": requests,
        "prompt_tokens": prompt_tokens,
        "output_tokens": requests * out,
    }


WORKLOADS = {
    "single": single,
    "batch": batch,
    "few_shot": few_shot,
    "multi_turn": multi_turn,
    "tree": tree,
}
