"""Speed of the prefix cache in a large tree.

python benchmarks/radix_tree.py                    # a million pages, 1e5 leaves
python benchmarks/radix_tree.py --pages 100000 --leaves 10000
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from radixrt.cache.eviction import Policy
from radixrt.cache.learned import learned_policy
from radixrt.cache.pages import PageAllocator
from radixrt.cache.radix import RadixCache

Int32 = NDArray[np.int32]
VOCABULARY = 150_000


def insert(cache: RadixCache, allocator: PageAllocator, tokens: Int32) -> None:
    """Do what a finished request does: acquire, compute what is missing, extend, release."""
    lease = cache.acquire("model", tokens)
    num_new = len(tokens) // cache.page_size - len(lease.pages)
    pages = np.concatenate([lease.pages, cache.take(num_new)])
    allocator.give(lease.extend(tokens, pages).duplicates)
    lease.release()


def build(
    page_size: int, num_pages: int, num_leaves: int, prompt_tokens: int, places: int
) -> list[Int32]:
    """Return sequences that make a tree of about ``num_pages`` pages and ``num_leaves`` leaves.

    Prompts of ``prompt_tokens`` share their first half in groups, as documents with questions do;
    the other leaves are short and branch off a prompt at one of ``places`` places, 16 tokens apart,
    so that a prompt is a path of about as many nodes.
    """
    rng = np.random.default_rng(0)
    num_long = max(8, num_pages * page_size // 2 // prompt_tokens)
    num_short = num_leaves - num_long
    heads = [rng.integers(0, VOCABULARY, prompt_tokens // 2) for _ in range(num_long // 4)]
    sequences = []
    for i in range(num_long):
        rest = rng.integers(0, VOCABULARY, prompt_tokens - prompt_tokens // 2)
        sequences.append(np.concatenate([heads[i % len(heads)], rest]).astype(np.int32))
    cached = len(heads) * (prompt_tokens // 2) + num_long * (prompt_tokens - prompt_tokens // 2)
    short_len = max(page_size, (num_pages * page_size - cached) // num_short)
    for _ in range(num_short):
        base = sequences[rng.integers(num_long)]
        cut = 16 * rng.integers(0, min(prompt_tokens // 16, places)) + 8
        length = rng.integers(max(page_size, short_len // 2), short_len * 3 // 2 + 1)
        tail = rng.integers(0, VOCABULARY, length)
        sequences.append(np.concatenate([base[:cut], tail]).astype(np.int32))
    return sequences


def measure(name: str, calls: int, call: Callable[[int], object]) -> None:
    """Print median, 99th percentile and worst of ``call(0) .. call(calls - 1)``."""
    samples = np.empty(calls)
    for i in range(calls):
        start = time.perf_counter_ns()
        call(i)
        samples[i] = time.perf_counter_ns() - start
    median, p99, worst = np.percentile(samples, [50, 99, 100]) / 1e3
    print(f"  {name:<58}{median:>10.1f}{p99:>10.1f}{worst:>10.1f}{calls:>8}")


def policy_of(eviction: str, allocator: PageAllocator) -> Policy | None:
    """Return what ``--eviction`` names; ``lru`` keeps no knowledge at all."""
    return learned_policy(allocator.num_usable) if eviction == "learned" else None


def spread(cache: RadixCache, sequences: list[Int32]) -> None:
    """Use some sequences again, idle, ended and leased, so that leaves are in many groups."""
    for i, tokens in enumerate(sequences):
        for _ in range(i % 7):
            lease = cache.acquire("model", tokens)
            lease.note_use()
            lease.release()
        lease = cache.acquire("model", tokens)
        lease.note_use()
        if i % 3 == 0:
            lease.park(0.0, pause_s=None if i % 2 else float(4 ** (i % 5)))
            if i % 5 == 0:
                lease.hold(1e6, i % 4)
        else:
            lease.release(ended=i % 3 == 1)


def large_tree(
    page_size: int,
    num_pages: int,
    num_leaves: int,
    prompt_tokens: int,
    places: int,
    eviction: str,
) -> None:
    """Match, insert and evict in one large tree."""
    sequences = build(page_size, num_pages, num_leaves, prompt_tokens, places)
    allocator = PageAllocator(num_pages * 5 // 4 + 2 * prompt_tokens // page_size)
    cache = RadixCache(allocator, page_size, policy=policy_of(eviction, allocator))
    start = time.perf_counter()
    for tokens in sequences:
        insert(cache, allocator, tokens)
    seconds = time.perf_counter() - start
    num_long = max(8, num_pages * page_size // 2 // prompt_tokens)
    prompts = sequences[:num_long]
    depth = np.median([num_nodes(cache, prompt) for prompt in prompts])
    print(
        f"page size {page_size}: {cache.num_cached} pages, {cache.num_leaves} leaves, "
        f"{depth:.0f} nodes on the path of a prompt, "
        f"built in {seconds:.1f} s ({seconds / len(sequences) * 1e6:.0f} us a sequence)"
    )
    rng = np.random.default_rng(1)
    k = prompt_tokens // 1024

    def acquire_release(tokens: Int32) -> None:
        cache.acquire("model", tokens).release()

    def use(tokens: Int32, first_page: int = 0) -> None:
        cache.use(cache.lookup("model", tokens), first_page)

    measure(
        f"peek, {k}k-token prompt, all cached",
        500,
        lambda i: cache.peek("model", prompts[i % num_long]),
    )
    measure(
        f"acquire + release, {k}k-token prompt, all cached",
        500,
        lambda i: acquire_release(prompts[i % num_long]),
    )
    measure(
        f"use of the last 1k tokens, {k}k-token prompt (as on the host)",
        500,
        lambda i: use(prompts[i % num_long], (k - 1) * 1024 // page_size),
    )
    changed = [prompt.copy() for prompt in prompts]
    for prompt in changed:
        prompt[rng.integers(prompt_tokens // 4, prompt_tokens) :] += 1
    measure(
        f"peek, {k}k-token prompt, diverges at a random token",
        500,
        lambda i: cache.peek("model", changed[i % num_long]),
    )
    measure(
        f"use, {k}k-token prompt, diverges",
        500,
        lambda i: use(changed[i % num_long]),
    )
    measure(
        f"acquire + release, {k}k-token prompt, diverges",
        500,
        lambda i: acquire_release(changed[i % num_long]),
    )
    two_tiers(cache, sequences, changed)
    fresh = [rng.integers(0, VOCABULARY, prompt_tokens).astype(np.int32) for _ in range(20)]
    measure(
        f"acquire, take, extend, release: new {k}k-token prompt",
        20,
        lambda i: insert(cache, allocator, fresh[i]),
    )
    grow_in_steps(cache, rng)
    short = sequences[num_long:]
    measure(
        "acquire + release, short sequence, all cached",
        5000,
        lambda i: acquire_release(short[i * 7 % len(short)]),
    )
    if eviction == "learned":
        spread(cache, sequences[num_long : num_long + 5000])
    measure("evict one page", min(20_000, cache.num_evictable // 8), lambda i: cache.evict(1))
    gc.collect()
    measure("evict 64 pages", min(1000, cache.num_evictable // 128), lambda i: cache.evict(64))
    allocator.take(allocator.num_free)
    calls = min(5000, cache.num_evictable)
    measure("take one page when none is free", calls, lambda i: cache.take(1))


def two_tiers(device: RadixCache, sequences: list[Int32], prompts: list[Int32]) -> None:
    """Match prompts that the device has in part and the host completely, as admission does."""
    size = device.page_size
    allocator = PageAllocator(sum(len(tokens) // size for tokens in [*sequences, *prompts]) + 1)
    host = RadixCache(allocator, size)
    for tokens in [*sequences, *prompts]:
        insert(host, allocator, tokens)
    gc.collect()

    def match(tokens: Int32) -> None:
        prompt = device.lookup("model", tokens)
        _, num_pages = host.use(prompt, prompt.num_tokens // size)
        assert num_pages == len(tokens) // size

    k = len(prompts[0]) // 1024
    for name in ("the first time", "again"):
        measure(
            f"match on device and host, {k}k-token prompt, {name}",
            len(prompts),
            lambda i: match(prompts[i]),
        )


def num_nodes(cache: RadixCache, tokens: Int32) -> int:
    """Return how many nodes the path of ``tokens`` has."""
    lease = cache.acquire("model", tokens)
    num = len(list(lease.path()))
    lease.release()
    return num


def grow_in_steps(cache: RadixCache, rng: np.random.Generator) -> None:
    """One long generation that gives each full page to the tree."""
    size = cache.page_size
    tokens = rng.integers(0, VOCABULARY, 1000 * size).astype(np.int32)
    lease = cache.acquire("model", tokens[:0])
    pages = cache.take(1000)

    def step(i: int) -> None:
        lease.extend(tokens[: (i + 1) * size], pages[: i + 1])

    measure("extend by one page, 1000 times", 1000, step)
    lease.release()


def conversation(page_size: int, turns: int, *, forked: bool) -> None:
    """A conversation of many turns; ``forked``: each turn has a branch that stays."""
    rng = np.random.default_rng(2)
    allocator = PageAllocator(turns * 200 // page_size + 1000)
    cache = RadixCache(allocator, page_size)
    tokens = np.zeros(0, np.int32)

    def turn(i: int) -> None:
        nonlocal tokens
        if forked:
            side = np.concatenate([tokens, rng.integers(0, VOCABULARY, 2 * page_size)])
            insert(cache, allocator, side.astype(np.int32))
        tokens = np.concatenate([tokens, rng.integers(0, VOCABULARY, 64)]).astype(np.int32)
        insert(cache, allocator, tokens)

    kind = "with a fork each" if forked else "alone"
    measure(f"one turn of 64 tokens, {turns} turns {kind}", turns, turn)
    measure(
        f"acquire + release after {turns} turns {kind}",
        300,
        lambda i: cache.acquire("model", tokens).release(),
    )
    measure(f"peek after {turns} turns {kind}", 300, lambda i: cache.peek("model", tokens))


def wide(page_size: int, num_children: int) -> None:
    """Many children of one node that differ in their first page only at its end."""
    rng = np.random.default_rng(3)
    allocator = PageAllocator(num_children * 2 + 1000)
    cache = RadixCache(allocator, page_size)
    prefix = rng.integers(0, VOCABULARY, 4 * page_size + page_size // 2).astype(np.int32)
    numbers = rng.permutation(num_children * 2)

    def sequence(number: int) -> Int32:
        return np.concatenate([prefix, np.full(page_size, number)]).astype(np.int32)

    measure(
        f"insert one of {num_children} children of one node",
        num_children,
        lambda i: insert(cache, allocator, sequence(numbers[i])),
    )
    gc.collect()
    measure(
        "acquire + release, known child",
        5000,
        lambda i: cache.acquire("model", sequence(numbers[i])).release(),
    )
    measure(
        "acquire + release, unknown child (tail page)",
        5000,
        lambda i: cache.acquire("model", sequence(numbers[-1 - i])).release(),
    )
    measure("evict one child", 20_000, lambda i: cache.evict(1))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=1_000_000)
    parser.add_argument("--leaves", type=int, default=100_000)
    parser.add_argument("--prompt-tokens", type=int, default=32_768)
    parser.add_argument("--places", type=int, default=256, help="nodes on the path of a prompt")
    parser.add_argument("--eviction", choices=["learned", "lru"], default="learned")
    parser.add_argument("--page-size", type=int, nargs="*", default=[16, 1])
    options = parser.parse_args()
    print(f"  {'microseconds':<58}{'median':>10}{'p99':>10}{'worst':>10}{'calls':>8}")
    for page_size in options.page_size:
        gc.collect()
        large_tree(
            page_size,
            options.pages,
            options.leaves,
            options.prompt_tokens,
            options.places,
            options.eviction,
        )
        gc.collect()
        for forked in (False, True):
            conversation(page_size, 500, forked=forked)
        gc.collect()
        wide(page_size, options.leaves)


if __name__ == "__main__":
    main()
