"""What an engine counts for those who watch it, and when it says so."""

from __future__ import annotations

import pytest
from engine_harness import Driver, force, make_engine

from laban.actors.calls import Advice
from laban.actors.engine.tallying import Tallying
from laban.actors.tallies import BOUNDS, Copies, WorkerTallies
from laban.kvstore.uses import Use


def test_values_lie_at_or_below_their_bounds() -> None:
    tallying = Tallying()
    first, last = BOUNDS["iteration_s"][0], BOUNDS["iteration_s"][-1]
    for value in (0.0, first, last, last + 1):
        tallying.observe("iteration_s", value)
    tallying.copied("disk", 10, 0.5)
    tallying.copied("disk", 5, 0.25, failed=True)
    tallying.add("tokens_decoded", 3)
    totals = tallying.totals()
    assert totals.iteration_s.counts == (2, *[0] * (len(BOUNDS["iteration_s"]) - 2), 1, 1)
    assert totals.iteration_s.total == pytest.approx(first + 2 * last + 1)
    assert (totals.copies_disk, totals.tokens_decoded) == (Copies(2, 1, 15, 0.75), 3)


def test_every_spread_has_bounds_that_rise() -> None:
    spreads = {name for name, default in WorkerTallies._field_defaults.items() if isinstance(default, tuple)}
    assert {name for name in spreads if not name.startswith("copies_")} == set(BOUNDS)
    assert all(list(bounds) == sorted(set(bounds)) for bounds in BOUNDS.values())


def test_an_engine_counts_tokens_iterations_and_the_time_between_tokens() -> None:
    driver = Driver(make_engine())
    calls = [driver.submit([1, 2, 3], sampling=force([4] * 5), terminator=(9,)) for _ in range(2)]
    driver.run()
    assert all(len(driver.result(call).generated) == 5 for call in calls)
    # The first token comes of the prefill; the last one and the terminator go into an iteration of their own.
    assert {driver.result(call).phases.num_iterations for call in calls} == {6}
    assert all(driver.result(call).phases.load_ended_ms == 0 for call in calls)
    totals = driver.engine.tiers.tallying.totals()
    assert sum(totals.inter_token_s.counts) == 2 * 4
    assert (totals.tokens_prefilled, totals.tokens_decoded) == (6, 12)
    assert sum(totals.batch_calls.counts) == sum(totals.iteration_s.counts) == totals.batch_calls.total / 2


def test_reports_tell_now_and_then_and_at_the_end() -> None:
    engine = make_engine()
    driver = Driver(engine)
    driver.submit([1, 2, 3], sampling=force([4] * 40))
    told = []
    while engine.has_work():
        told.append(engine.step().tallies)
    assert told[0] is not None
    assert told[-1] == engine.tiers.tallying.totals()
    assert sum(each is not None for each in told) < len(told) / 2


def test_evictions_are_told_by_the_steps_until_somebody_reads() -> None:
    driver = Driver(make_engine(pool_tokens=256))
    specs = [driver.prefill([i + 1] * 60) for i in range(3)]
    driver.engine.advise(Advice(uses=((specs[0].encoding_id, Use(4, 60.0)),)))
    driver.step()
    driver.engine.store.evict_all()
    spread = driver.engine.tiers.tallying.totals().evicted_steps_device
    assert (sum(spread.counts), spread.total) == (1, 4.0)
    assert driver.engine.tiers.counters.totals().num_evicted_device == 3
