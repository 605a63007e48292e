"""The disk tier keeps what it said it keeps, and never returns what it should not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tier_harness import LAYOUT, PAGE_BYTES, PAGE_SIZE, Pool, get, put, run_of, wait

from radixrt.cache import disk as disk_module
from radixrt.cache.disk import DiskTier
from radixrt.cache.files import Files
from radixrt.cache.record_store import RecordStore
from radixrt.cache.records import Layout
from radixrt.cache.segments import HEAD_BYTES
from radixrt.cache.tier import PageRun
from radixrt.errors import ConfigError

Open = Callable[..., DiskTier]


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def open_tier(tmp_path: Path, pool: Pool) -> Iterator[Open]:
    opened: list[DiskTier] = []

    def open_one(**options: object) -> DiskTier:
        folder = options.pop("folder", tmp_path / "pages")
        layout = options.pop("layout", LAYOUT)
        tier = DiskTier(folder, layout, pool.data, **options)  # type: ignore[arg-type]
        opened.append(tier)
        return tier

    yield open_one
    for tier in opened:
        tier.close()


def test_what_was_put_is_found_and_read(open_tier: Open, pool: Pool) -> None:
    tier, run = open_tier(), run_of(1, 10)
    assert tier.probe(run) == 0
    assert put(tier, pool, run).num_pages == 10
    assert tier.probe(run) == 10
    assert tier.probe(run.part(4, 10)) == 6
    longer = run_of(1, 10)
    tokens = np.concatenate([longer.token_ids, np.arange(8, dtype=np.int32)])
    assert tier.probe(PageRun("model", tokens, PAGE_SIZE, 0, 12)) == 10
    ended = get(tier, pool, run.part(2, 9))
    assert (ended.outcome, ended.num_pages) == ("ok", 7)


def test_a_get_of_more_than_there_is_returns_the_leading_pages(open_tier: Open, pool: Pool) -> None:
    tier, run = open_tier(), run_of(1, 10)
    put(tier, pool, run.part(0, 6))
    ended = get(tier, pool, run)
    assert (ended.outcome, ended.num_pages) == ("missing", 6)


def test_puts_and_drops_are_idempotent(open_tier: Open, pool: Pool) -> None:
    tier, run = open_tier(), run_of(1, 5)
    for _ in range(3):
        assert put(tier, pool, run).num_pages == 5
    assert tier.stats().written == 5
    tier.drop(run.part(3, 5))
    tier.drop(run.part(3, 5))
    assert tier.probe(run) == 3
    assert put(tier, pool, run).num_pages == 5
    assert get(tier, pool, run).num_pages == 5


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("records", [1, 3, 100])
def test_a_restart_finds_everything(
    open_tier: Open, pool: Pool, tmp_path: Path, records: int, is_closed: bool
) -> None:
    """After ``close`` from the indexes, after a crash from the records' headers."""
    tier = open_tier(segment_bytes=records * LAYOUT.record_bytes)
    runs = [run_of(seed, 7) for seed in range(5)]
    for run in runs:
        put(tier, pool, run)
    if is_closed:
        tier.close()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (tmp_path / "pages").glob("*.seg"):
        (copy / path.name).write_bytes(path.read_bytes())
    again = open_tier(folder=copy, segment_bytes=records * LAYOUT.record_bytes)
    for run in runs:
        assert again.probe(run) == 7
        assert get(again, pool, run).outcome == "ok"
    more = run_of(99, 9)
    put(again, pool, more)
    again.close()
    third = open_tier(folder=copy)
    assert all(get(third, pool, run).outcome == "ok" for run in [*runs, more])


def test_records_alone_rebuild_the_sequences(open_tier: Open, pool: Pool) -> None:
    tier = open_tier()
    runs = {seed: run_of(seed, 6) for seed in range(3)}
    for run in runs.values():
        put(tier, pool, run)
    tier.close()
    found = list(open_tier().identities())
    by_key = {whose.key: whose for whose in found}
    assert len(by_key) == 18
    parents = {whose.parent for whose in found}
    sequences = set()
    for leaf in (whose for whose in found if whose.key not in parents):
        tokens: list[int] = []
        step = leaf
        while True:
            tokens = step.token_ids().tolist() + tokens
            if step.parent not in by_key:
                break
            step = by_key[step.parent]
        sequences.add(tuple(tokens))
    assert sequences == {tuple(run.token_ids.tolist()) for run in runs.values()}


def test_another_process_cannot_open_the_directory(open_tier: Open) -> None:
    open_tier()
    with pytest.raises(ConfigError, match="in use"):
        open_tier()


def test_a_read_only_tier_needs_no_lock_and_writes_nothing(open_tier: Open, pool: Pool) -> None:
    tier, run = open_tier(), run_of(1, 5)
    put(tier, pool, run)
    reader = open_tier(read_only=True)
    assert get(reader, pool, run).outcome == "ok"
    assert put(reader, pool, run_of(2, 3)).outcome == "full"


# ---------------------------------------------------------------- damage


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


HEADER = LAYOUT.header_bytes
THIRD = HEAD_BYTES + 2 * LAYOUT.record_bytes


@pytest.mark.parametrize(
    ("name", "offset", "data"),
    [
        ("magic", THIRD, b"NOPE"),
        ("version", THIRD + 4, b"\xff"),
        ("tokens", THIRD + 84, b"\xff\xff"),
        ("key", THIRD + 36, b"\xff\xff"),
        ("checksum of the header", THIRD + 96, b"\xff\xff\xff\xff"),
        ("payload", THIRD + HEADER + 17, b"\xfe"),
        ("everything", THIRD, b"\0" * LAYOUT.record_bytes),
    ],
)
@pytest.mark.parametrize("restarts", [False, True])
def test_a_damaged_record_is_a_miss_that_can_be_written_again(
    open_tier: Open, pool: Pool, name: str, offset: int, data: bytes, restarts: bool
) -> None:
    tier, run = open_tier(), run_of(1, 6)
    put(tier, pool, run)
    if restarts:
        tier.close()
    (path,) = tier.folder.glob("*.seg")
    damage(path, offset, data)
    if restarts:
        tier = open_tier()
    ended = get(tier, pool, run)
    assert ended.num_pages == 2
    assert ended.outcome == "corrupt"
    assert tier.stats().corrupt == 1
    assert tier.probe(run) == 2, "the damaged page is forgotten, those behind it are not"
    assert put(tier, pool, run).num_pages == 6
    assert get(tier, pool, run).outcome == "ok"
    tier.close()
    assert get(open_tier(), pool, run).outcome == "ok", "the new record is the one that counts"


@pytest.mark.parametrize("size", [0, 10, HEAD_BYTES, HEAD_BYTES + 1, THIRD - 1, THIRD, THIRD + 70])
def test_a_file_cut_anywhere_keeps_what_is_whole(open_tier: Open, pool: Pool, size: int) -> None:
    tier, run = open_tier(), run_of(1, 6)
    put(tier, pool, run)
    tier.close()
    (path,) = tier.folder.glob("*.seg")
    os.truncate(path, size)
    tier = open_tier()
    assert get(tier, pool, run).num_pages == max(0, size - HEAD_BYTES) // LAYOUT.record_bytes
    assert put(tier, pool, run).num_pages == 6
    assert get(tier, pool, run).outcome == "ok"
    tier.close()
    assert get(open_tier(), pool, run).outcome == "ok"


def test_a_file_that_shrinks_under_the_reader_is_a_short_record(
    open_tier: Open, pool: Pool
) -> None:
    tier, run = open_tier(), run_of(1, 6)
    put(tier, pool, run)
    (path,) = tier.folder.glob("*.seg")
    os.truncate(path, THIRD + 20)
    ended = get(tier, pool, run)
    assert (ended.outcome, ended.num_pages) == ("corrupt", 2)


def test_random_damage_never_returns_wrong_bytes(open_tier: Open, pool: Pool) -> None:
    rng = np.random.default_rng(0)
    runs = [run_of(seed, 5) for seed in range(8)]
    tier = open_tier(segment_bytes=9 * LAYOUT.record_bytes)
    for _ in range(25):
        for run in runs:
            put(tier, pool, run)
        tier.close()
        for path in tier.folder.glob("*.seg"):
            data = bytearray(path.read_bytes())
            for _ in range(int(rng.integers(0, 3))):
                at = int(rng.integers(len(data)))
                data[at] ^= 1 << int(rng.integers(8))
            if rng.random() < 0.2:
                del data[int(rng.integers(len(data))) :]
            path.write_bytes(data)
        tier = open_tier(segment_bytes=9 * LAYOUT.record_bytes)
        for run in runs:
            get(tier, pool, run)  # compares the bytes


@pytest.mark.parametrize(
    "layout",
    [
        Layout(PAGE_SIZE, PAGE_BYTES, b"another dtype..."),
        Layout(PAGE_SIZE, PAGE_BYTES + 64, LAYOUT.name),
        Layout(PAGE_SIZE * 2, PAGE_BYTES, LAYOUT.name),
    ],
)
def test_records_of_another_layout_are_never_read(
    open_tier: Open, pool: Pool, layout: Layout
) -> None:
    tier, run = open_tier(), run_of(1, 4)
    put(tier, pool, run)
    tier.close()
    other = open_tier(layout=layout)
    assert other.stats().ready == 0


@pytest.mark.parametrize("namespace", ["other weights", "model tenant", ""])
def test_another_namespace_never_hits(open_tier: Open, pool: Pool, namespace: str) -> None:
    tier = open_tier()
    put(tier, pool, run_of(1, 4))
    assert tier.probe(run_of(1, 4, namespace=namespace)) == 0
    assert get(tier, pool, run_of(1, 4, namespace=namespace)).num_pages == 0


# ---------------------------------------------------------------- the quota


def test_the_quota_holds_and_what_is_used_stays(
    open_tier: Open, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(disk_module.time, "time", lambda: now[0])
    quota = 40 * LAYOUT.record_bytes + 5 * HEAD_BYTES
    tier = open_tier(quota=quota, segment_bytes=8 * LAYOUT.record_bytes)
    hot = run_of(1000, 4)
    put(tier, pool, hot)
    for seed in range(60):
        now[0] += 1
        put(tier, pool, run_of(seed, 4))
        assert get(tier, pool, hot).outcome == "ok", f"the hot run went at {seed}"
        on_disk = sum(path.stat().st_size for path in tier.folder.glob("*.seg"))
        assert on_disk <= quota + 40 * LAYOUT.record_bytes // 8
    assert tier.num_bytes <= quota
    assert tier.stats().evicted > 100
    recent = sum(tier.probe(run_of(seed, 4)) for seed in range(54, 60))
    assert recent == 24
    tier.close()
    assert get(open_tier(), pool, hot).outcome == "ok"


# ---------------------------------------------------------------- a device that fails


class FaultyFiles(Files):
    """Files whose calls fail, fall short or hang while the test says so."""

    def __init__(self) -> None:
        self.write_error: int | None = None
        self.sync_error: int | None = None
        self.read_error: int | None = None
        self.short_by = 0
        self.stuck = threading.Event()
        self.stuck.set()

    def write(self, descriptor: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        if self.write_error is not None:
            super().write(descriptor, [memoryview(buffers[0])[:100]], offset)
            raise OSError(self.write_error, os.strerror(self.write_error))
        return super().write(descriptor, buffers, offset)

    def sync(self, descriptor: int) -> None:
        if self.sync_error is not None:
            raise OSError(self.sync_error, os.strerror(self.sync_error))
        super().sync(descriptor)

    def read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.stuck.wait(30)
        if self.read_error is not None:
            raise OSError(self.read_error, os.strerror(self.read_error))
        return super().read(descriptor, buffers, offset) - self.short_by


@pytest.mark.parametrize(
    ("kind", "code", "outcome"),
    [
        ("write_error", errno.ENOSPC, "full"),
        ("write_error", errno.EIO, "failed"),
        ("sync_error", errno.EIO, "failed"),
        ("sync_error", errno.ENOSPC, "full"),
    ],
)
def test_a_failed_write_leaves_what_was_there_and_heals(
    open_tier: Open, pool: Pool, kind: str, code: int, outcome: str
) -> None:
    files, now = FaultyFiles(), [0.0]
    tier = open_tier(files=files, clock=lambda: now[0])
    before, run = run_of(1, 4), run_of(2, 4)
    put(tier, pool, before)
    setattr(files, kind, code)
    ended = put(tier, pool, run)
    assert (ended.outcome, ended.num_pages) == (outcome, 0)
    assert tier.probe(run) == 0
    assert put(tier, pool, run).outcome == "full", "nothing is tried for a while"
    assert get(tier, pool, before).outcome == "ok"
    setattr(files, kind, None)
    now[0] += 60
    assert put(tier, pool, run).num_pages == 4
    assert get(tier, pool, run).outcome == "ok"
    tier.close()
    again = open_tier()
    assert get(again, pool, before).outcome == "ok"
    assert get(again, pool, run).outcome == "ok"


def test_a_failed_read_is_a_miss_that_can_be_written_again(open_tier: Open, pool: Pool) -> None:
    files = FaultyFiles()
    tier, run = open_tier(files=files), run_of(1, 4)
    put(tier, pool, run)
    files.read_error = errno.EIO
    ended = get(tier, pool, run)
    assert (ended.outcome, ended.num_pages) == ("failed", 0)
    files.read_error = None
    assert tier.probe(run) == 0
    put(tier, pool, run)
    assert get(tier, pool, run).outcome == "ok"


def test_a_short_read_is_a_miss(open_tier: Open, pool: Pool) -> None:
    files = FaultyFiles()
    tier, run = open_tier(files=files), run_of(1, 4)
    put(tier, pool, run)
    files.short_by = 1
    assert get(tier, pool, run).outcome == "corrupt"


def test_a_stalled_device_is_not_asked_again_until_it_answers(open_tier: Open, pool: Pool) -> None:
    files, now = FaultyFiles(), [0.0]
    tier = open_tier(files=files, clock=lambda: now[0])
    run, other = run_of(1, 4), run_of(2, 4)
    put(tier, pool, run)
    put(tier, pool, other)
    files.stuck.clear()
    pages = np.arange(1, 5, dtype=np.int32)
    stuck = tier.get(run, pages, 1.0)
    now[0] = 2.0
    assert tier.probe(other) == 0
    assert not tier.poll(), "pages that a read may still write are not given back"
    files.stuck.set()
    assert wait(tier, stuck).outcome == "timeout"
    assert tier.probe(other) == 4
    assert get(tier, pool, other, deadline=10.0).outcome == "ok"


def test_jobs_that_are_late_before_they_begin_are_not_begun(open_tier: Open, pool: Pool) -> None:
    now = [0.0]
    tier, run = open_tier(clock=lambda: now[0]), run_of(1, 4)
    put(tier, pool, run)
    assert get(tier, pool, run, deadline=-1.0).outcome == "timeout"
    assert tier.stats().timeouts == 1


def test_a_dying_worker_ends_its_jobs_and_goes_on(
    open_tier: Open, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier, run = open_tier(), run_of(1, 4)

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "append", broken)
        assert put(tier, pool, run).outcome == "failed"
    assert put(tier, pool, run).outcome == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "read", broken)
        assert get(tier, pool, run).outcome == "failed"
    assert get(tier, pool, run).outcome == "ok"


def test_after_close_every_ticket_still_ends(open_tier: Open, pool: Pool) -> None:
    tier, run = open_tier(), run_of(1, 4)
    put(tier, pool, run)
    tier.close()
    assert wait(tier, tier.get(run, np.arange(1, 5, dtype=np.int32), 1e9)).outcome == "closed"
    assert wait(tier, tier.put(run, np.arange(1, 5, dtype=np.int32), 1e9)).outcome == "closed"


# ---------------------------------------------------------------- kill -9

WRITER = """
import sys
from pathlib import Path
from tier_harness import LAYOUT, Pool, put, run_of
from radixrt.cache.disk import DiskTier

pool = Pool()
tier = DiskTier(Path(sys.argv[1]), LAYOUT, pool.data, segment_bytes=20 * LAYOUT.record_bytes)
print("ready", flush=True)
for seed in range(int(sys.argv[2]), 1_000_000):
    ended = put(tier, pool, run_of(seed, 3))
    assert ended.outcome == "ok", ended
    print(seed, flush=True)
"""


@pytest.mark.parametrize("rounds", [4])
def test_everything_fenced_survives_kill_9(
    open_tier: Open, pool: Pool, tmp_path: Path, rounds: int
) -> None:
    """Killed in the middle of writing, again and again over the same directory."""
    folder, fenced, first = tmp_path / "pages", [], 0
    for round_ in range(rounds):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(first)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for line in process.stdout:
                fenced.append(int(line))
                if len(fenced) >= 40 * (round_ + 1):
                    break
            process.kill()
            fenced += [int(line) for line in process.stdout if line.endswith("\n")]
        first = fenced[-1] + 1
        tier = open_tier(folder=folder, segment_bytes=20 * LAYOUT.record_bytes)
        for seed in fenced:
            assert get(tier, pool, run_of(seed, 3)).num_pages == 3
        tier.close()


def test_sealed_segments_are_opened_without_reading_their_records(
    open_tier: Open, pool: Pool
) -> None:

    class CountingFiles(Files):
        num_reads = 0

        def read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            self.num_reads += 1
            return super().read(descriptor, buffers, offset)

    tier = open_tier(segment_bytes=1000 * LAYOUT.record_bytes)
    for seed in range(20):
        put(tier, pool, run_of(seed, 200))
    tier.close()
    files = CountingFiles()
    again = open_tier(files=files)
    assert again.stats().ready == 4000
    assert files.num_reads <= 4 * 4
