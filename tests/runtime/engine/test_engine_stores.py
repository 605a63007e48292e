"""Pages that come back from a store after a restart; and every way in which they may not."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from engine_harness import Runtime

from radixrt.cache.disk import DiskTier
from radixrt.cache.files import Files
from radixrt.cache.records import Layout
from radixrt.cache.tier_policy import TierPolicy
from radixrt.runtime.model.decoder import CausalLM
from radixrt.runtime.wire import Abort, Hold

PROMPT = list(range(3, 60))
EVERYTHING = TierPolicy(always_load=True, store_on="once", fetch_deadline_s=5.0)

Start = Callable[..., Runtime]


class FaultyFiles(Files):
    """Files that fail, or hang until they are released."""

    def __init__(self) -> None:
        self.read_error = self.write_error = 0
        self.stuck = threading.Event()
        self.stuck.set()
        self.num_reads = 0

    def read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.num_reads += 1
        self.stuck.wait(30)
        if self.read_error:
            raise OSError(self.read_error, os.strerror(self.read_error))
        return super().read(descriptor, buffers, offset)

    def write(self, descriptor: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        if self.write_error:
            raise OSError(self.write_error, os.strerror(self.write_error))
        return super().write(descriptor, buffers, offset)


@pytest.fixture
def start(model: CausalLM, tmp_path: Path) -> Iterator[Start]:
    """Start a runtime over the disk; the one before is stopped first, in an orderly way."""
    running: list[Runtime] = []

    def stop() -> None:
        while running:
            before = running.pop()
            assert before.tiers is not None
            assert before.tiers.fence(20)
            before.kv.check()
            before.loop.close()

    def start_one(
        *,
        files: Files | None = None,
        layout: bytes = b"0123456789abcdef",
        policy: TierPolicy = EVERYTHING,
        host_pages: int = 100,
    ) -> Runtime:
        stop()

        def stores(runtime: Runtime) -> Sequence[DiskTier]:
            assert runtime.host is not None
            data = runtime.host.data
            form = Layout(4, data.shape[1], layout)
            return [DiskTier(tmp_path / "pages", form, data, files=files, clock=runtime.clock)]

        runtime = Runtime(model, host_pages=host_pages, stores=stores, policy=policy)
        running.append(runtime)
        return runtime

    yield start_one
    stop()


def finish(runtime: Runtime) -> None:
    """Step until every call has ended; a fetch takes as many steps as it takes."""
    end = time.monotonic() + 20
    runtime.step()
    while len(runtime.calls):
        assert time.monotonic() < end, "a call hangs"
        runtime.step()


def ask(
    runtime: Runtime, prompt: Sequence[int] = PROMPT, **options: object
) -> tuple[list[int], int]:
    """Return the tokens of a call and how many of its prompt were cached."""
    call = runtime.run(prompt, **options)  # type: ignore[arg-type]
    finish(runtime)
    return runtime.tokens(call), runtime.end(call).usage.cached


def stored(runtime: Runtime) -> int:
    """Let every copy end; return the pages on disk."""
    assert runtime.tiers is not None
    assert runtime.tiers.fence(20)
    return runtime.tiers.stores[0].stats().ready


def test_a_restart_finds_every_token_that_was_saved(start: Start) -> None:
    first = start()
    expected, _ = ask(first)
    assert stored(first) == 16
    second = start()
    assert ask(second) == (expected, 56)
    request = second.metrics
    assert request.cached_tokens == 56
    # And what went on from there is kept as well.
    longer = PROMPT + expected[:3]
    more = ask(second, longer)
    stored(second)
    third = start()
    assert ask(third, longer)[0] == more[0]


def test_only_what_was_seen_twice_is_stored(start: Start) -> None:
    policy = TierPolicy(always_load=True, store_on="twice")
    runtime = start(policy=policy)
    ask(runtime)
    assert stored(runtime) == 0
    ask(runtime, [*PROMPT[:30], 100, 101, 102])
    assert stored(runtime) == 30 // 4
    ask(runtime)
    assert stored(runtime) == 56 // 4


def test_what_a_program_keeps_is_stored_at_once(start: Start) -> None:
    runtime = start(policy=TierPolicy(always_load=True, store_on="keep"))
    ask(runtime)
    ask(runtime)
    assert stored(runtime) == 0
    import numpy as np

    assert runtime.tiers is not None
    runtime.tiers.keep("", np.array(PROMPT, np.int32))
    assert stored(runtime) == 57 // 4


def test_requests_for_the_same_pages_share_one_fetch(start: Start) -> None:
    first = start()
    expected, _ = ask(first)
    others = [PROMPT[:40] + [100 + i] * 5 for i in range(4)]
    wanted = [ask(first, other)[0] for other in others]
    stored(first)
    files = FaultyFiles()
    second = start(files=files)
    files.stuck.clear()
    calls = [second.run(PROMPT)] + [second.run(other) for other in others]
    for _ in range(5):
        second.step()
    files.stuck.set()
    finish(second)
    assert [second.tokens(call) for call in calls] == [expected, *wanted]
    assert second.tiers is not None
    assert second.tiers.counters.fetches <= 5
    assert second.tiers.counters.coalesced_fetches >= 4
    assert second.tiers.counters.fetched <= 16 + 4 * 4, "no page was read twice"


def test_a_request_waits_for_a_stalled_disk_until_its_deadline_and_is_computed(
    start: Start,
) -> None:
    first = start()
    expected, _ = ask(first)
    stored(first)
    files = FaultyFiles()
    second = start(files=files)
    files.stuck.clear()
    call = second.run(PROMPT)
    for _ in range(5):
        second.step()
    assert not second.ends(call)
    second.clock.now += 6
    finish(second)
    assert second.tokens(call) == expected
    assert second.end(call).usage.cached == 0
    assert second.tiers is not None
    assert second.tiers.counters.late_fetches == 1
    assert ask(second, PROMPT[:20])[1] == 19, "others are served meanwhile"
    files.stuck.set()
    stored(second)
    second.kv.check()


def test_a_request_that_is_cancelled_while_its_pages_come(start: Start) -> None:
    first = start()
    expected, _ = ask(first)
    stored(first)
    files = FaultyFiles()
    second = start(files=files)
    files.stuck.clear()
    call = second.run(PROMPT)
    second.step()
    second.put(Abort(call))
    finish(second)
    assert second.end(call).reason == "abort"
    files.stuck.set()
    stored(second)
    assert ask(second) == (expected, 56), "the pages came all the same"


@pytest.mark.parametrize("kind", ["payload", "header", "short", "empty", "eio"])
def test_a_bad_record_is_computed_again_and_rewritten(
    start: Start, tmp_path: Path, kind: str
) -> None:
    first = start()
    expected, _ = ask(first)
    stored(first)
    files = FaultyFiles()
    second = start(files=files)
    (path,) = (tmp_path / "pages").glob("*.seg")
    data = bytearray(path.read_bytes())
    record = (len(data) - 64) // 16
    third = 64 + 2 * record
    if kind == "payload":
        data[third + record - 70] ^= 1
    elif kind == "header":
        data[third + 50] ^= 1
    elif kind == "short":
        del data[third + 100 :]
    elif kind == "empty":
        del data[third:]
    else:
        files.read_error = errno.EIO
    path.write_bytes(data)
    tokens, cached = ask(second)
    assert tokens == expected
    assert cached == (0 if kind == "eio" else 8)
    assert second.tiers is not None
    assert second.tiers.counters.failed_fetches == 1
    files.read_error = 0
    stored(second)
    third_runtime = start()
    assert ask(third_runtime) == (expected, 56), "the keys can be written again"


def test_a_full_disk_costs_the_cache_not_the_request(start: Start) -> None:
    files = FaultyFiles()
    runtime = start(files=files)
    files.write_error = errno.ENOSPC
    expected, _ = ask(runtime)
    assert stored(runtime) == 0
    assert runtime.tiers is not None
    assert runtime.tiers.counters.failed_stores >= 1
    files.write_error = 0
    runtime.clock.now += 60
    assert ask(runtime)[0] == expected
    assert stored(runtime) == 16


@pytest.mark.parametrize("other", ["tenant", "layout"])
def test_pages_of_another_tenant_or_form_are_never_used(start: Start, other: str) -> None:
    first = start()
    expected, _ = ask(first)
    stored(first)
    if other == "tenant":
        assert ask(start(), namespace="tenant=b") == (expected, 0)
    else:
        assert ask(start(layout=b"fedcba9876543210")) == (expected, 0)


def test_a_host_without_room_for_what_the_disk_has(start: Start) -> None:
    first = start()
    expected, _ = ask(first)
    stored(first)
    tokens, cached = ask(start(host_pages=7))
    assert tokens == expected
    assert cached == 24, "as much as there is room for"


def test_what_a_branch_leases_is_stored_at_once(start: Start) -> None:
    runtime = start(policy=TierPolicy(always_load=True, store_on="keep"))
    ask(runtime, branch=7)
    assert stored(runtime) == 0
    runtime.put(Hold(7, 60.0))
    runtime.step()
    assert stored(runtime) == 16


def test_pages_of_a_branch_that_is_about_to_go_on_are_fetched_ahead(start: Start) -> None:
    runtime = start(host_pages=40)
    call = runtime.run(PROMPT, branch=7, pause_s=30.0)
    finish(runtime)
    expected = runtime.tokens(call)
    stored(runtime)
    assert runtime.tiers is not None
    runtime.cache.clear()
    runtime.tiers.clear()
    runtime.step()
    assert runtime.tiers.counters.fetches == 0
    runtime.clock.now += 29.5
    runtime.step()
    assert runtime.tiers.counters.fetches == 1
    stored(runtime)
    call = runtime.run([*PROMPT, *expected], branch=7)
    finish(runtime)
    assert runtime.end(call).usage.cached == 64
    assert runtime.tiers.counters.fetches == 1, "the host had it all"
