"""Whatever happens, in whatever order copies end: no page is lost, locked for good, or wrong."""

from __future__ import annotations

import pytest
from hicache_machine import HiCacheMachine


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_events_keeps_the_invariants(seed: int) -> None:
    machine = HiCacheMachine(seed, num_pages=60 + 30 * seed, host_pages=(40, 120, 400, 60)[seed])
    for index in range(4000):
        machine.step()
        if index % 7 == 0:
            machine.check()
        if index % 97 == 0:
            machine.check_contents()
    machine.finish()
    counters = machine.tiers.counters
    happened = counters.backed_up, counters.loaded, counters.fetched, counters.stored
    assert min(happened) > 20, f"the run did not exercise the tiers: {counters}"
