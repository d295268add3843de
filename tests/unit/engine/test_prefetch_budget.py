"""What was in vain makes what is brought ahead less, and what was of use more."""

from __future__ import annotations

from engine_harness import Driver, make_engine
from tier_rig import QUICK, driver_of, text

from laban.actors.calls import Advice, Prefetch
from laban.actors.engine.prefetch_budget import DOUBLES_S, LEAST_SHARE, PrefetchBudget
from laban.kvstore.uses import Use


def test_it_shrinks_with_waste_and_grows_with_use() -> None:
    budget = PrefetchBudget(1000)
    assert budget.num_tokens == 1000
    budget.useful()
    assert budget.num_tokens == 1000, "never more than the pool"
    budget.wasted()
    assert budget.num_tokens == 707
    for _ in range(5):
        budget.wasted()
        budget.wasted()
        budget.useful()
    assert budget.num_tokens == 707, "of three one is enough"


def test_it_comes_back_by_itself() -> None:
    budget = PrefetchBudget(1000)
    budget.date(5.0)
    for _ in range(100):
        budget.wasted()
    assert budget.num_tokens == int(1000 * LEAST_SHARE)
    budget.date(5.0 + 3 * DOUBLES_S)
    assert budget.num_tokens == int(8000 * LEAST_SHARE)
    budget.date(1e9)
    assert budget.num_tokens == 1000


def test_an_engine_whose_prefetches_were_in_vain_begins_fewer() -> None:
    driver = driver_of(pool_tokens=512, host_tokens=0, rates=QUICK)
    engine, other = driver.engine, Driver(make_engine())
    now_s = 100.0
    engine._clock = lambda: now_s
    specs = [other.prefill(text(number, 100)) for number in range(12)]
    begun = []
    for spec in specs:
        order = Prefetch(spec.encoding_id, (spec,))
        engine.advise(Advice(uses=((spec.encoding_id, Use(1, 0.0)),), prefetches=(order,)))
        for _ in range(8):
            driver.step()
        begun.append(spec.encoding_id in engine.store)
        engine.store.evict_all()
    assert begun[:3] == [True] * 3
    assert not any(begun[6:]), "there is no room in the budget"
    wasted = engine.tiers.counters.totals().prefetches_wasted
    assert wasted == sum(begun)
    now_s += 3 * DOUBLES_S
    driver.step()
    driver.step()
    assert any(spec.encoding_id in engine.store for spec in specs), "after a while it is tried again"


def test_what_was_read_does_not_count() -> None:
    driver = driver_of(pool_tokens=512, host_tokens=0, rates=QUICK)
    other = Driver(make_engine())
    for number in range(12):
        spec = other.prefill(text(number, 100))
        driver.specs[spec.encoding_id] = spec
        order = Prefetch(spec.encoding_id, (spec,))
        driver.engine.advise(Advice(uses=((spec.encoding_id, Use(1, 0.0)),), prefetches=(order,)))
        driver.run()
        call = driver.submit([1], driver.chain(spec))
        driver.run()
        assert driver.result(call).tokens_reused == 100
    assert driver.engine.tiers.counters.totals().prefetches_useful == 12
