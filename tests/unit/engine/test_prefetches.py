"""Orders that find no room hold up no others, are begun once they can be, and what became of them adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_harness import Driver, make_engine
from tier_rig import QUICK, driver_of, save_all, text

from laban.actors.calls import Advice, Prefetch, Sampling
from laban.kvstore.encodings import EncodingSpec, closure
from laban.kvstore.uses import Use


def order(spec: EncodingSpec, specs: dict[str, EncodingSpec] | None = None, **use: Any) -> Advice:
    of_all = {spec.encoding_id: spec} | (specs or {})
    found = Prefetch(spec.encoding_id, tuple(closure([spec.encoding_id], of_all)))
    return Advice(uses=((spec.encoding_id, Use(1, **{"in_s": 0.0, **use})),), prefetches=(found,))


def at_a_clock(driver: Driver) -> Callable[[float], None]:
    """A clock that moves when it is told to."""
    now_s = driver.engine.store.now_s

    def move(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    driver.engine._clock = lambda: now_s
    return move


def test_one_that_is_worth_too_little_holds_up_no_other() -> None:
    driver = driver_of(pool_tokens=256)
    first, second, here = (driver.prefill(text(number, 120)) for number in (1, 2, 3))
    save_all(driver)
    driver.engine.store.evict_all()
    here = driver.prefill(text(4, 200))
    driver.engine.advise(Advice(uses=((here.encoding_id, Use(1, 50.0)),)))
    driver.engine.advise(order(first, in_s=0.01, likelihood=1e-4))
    driver.engine.advise(order(second, in_s=0.5))
    driver.run()
    assert second.encoding_id in driver.engine.store
    assert first.encoding_id not in driver.engine.store


def test_nor_one_that_its_tenant_has_no_room_for() -> None:
    driver = driver_of(pool_tokens=512)
    large = driver.prefill(text(1, 200), namespace="test/a")
    small = driver.prefill(text(2, 50), namespace="test/b")
    save_all(driver)
    driver.engine.store.evict_all()
    driver.engine.advise(Advice(kv_bytes=(("test/a", 100 * driver.engine.tiers.needs.bytes_per_token),)))
    driver.run()
    driver.engine.advise(order(large))
    driver.engine.advise(order(small, in_s=0.01))
    driver.run()
    assert small.encoding_id in driver.engine.store


def test_one_that_found_no_room_is_tried_again() -> None:
    driver = driver_of(pool_tokens=256)
    move = at_a_clock(driver)
    ahead = driver.prefill(text(1, 120))
    save_all(driver)
    driver.engine.store.evict_all()
    here = driver.prefill(text(2, 200))
    driver.engine.advise(Advice(uses=((here.encoding_id, Use(1, 0.0)),)))
    driver.engine.advise(order(ahead, in_s=0.05))
    driver.run()
    assert ahead.encoding_id not in driver.engine.store
    driver.engine.advise(Advice(uses=((here.encoding_id, None),)))
    move(1.0)
    driver.submit([1], sampling=Sampling(max_tokens=3))
    driver.run()
    assert ahead.encoding_id in driver.engine.store


def test_all_that_it_takes_is_within_the_budget() -> None:
    driver, other = driver_of(pool_tokens=1024, host_tokens=0, rates=QUICK), Driver(make_engine())
    at_a_clock(driver)
    budget = driver.engine.scheduler.prefetches._budget
    budget.date(driver.engine.store.now_s)
    for _ in range(4):
        budget.wasted()
    assert budget.num_tokens == 256
    long = other.prefill(text(1, 250))
    last = other.prefill(text(2, 30), other.chain(long))
    driver.engine.advise(order(last, other.specs))
    driver.run()
    assert len(driver.engine.store) == 0
    driver.engine.advise(order(other.prefill(text(3, 30)), in_s=1.0))
    driver.run()
    assert len(driver.engine.store) == 1, "of what is smaller there is room"


def test_what_is_left_to_be_begun_is_when_the_last_call_is_aborted() -> None:
    driver = driver_of(pool_tokens=1024, host_tokens=0, rates=QUICK)
    at_a_clock(driver)
    ahead = Driver(make_engine()).prefill(text(1, 100))
    call = driver.submit([1, 2], sampling=Sampling(max_tokens=20))
    driver.step()
    driver.engine.advise(order(ahead, in_s=60.0))
    driver.step()
    assert ahead.encoding_id not in driver.engine.store
    driver.engine.abort(call)
    driver.run()
    assert ahead.encoding_id in driver.engine.store


def test_what_was_brought_and_deleted_was_in_vain() -> None:
    driver, other = driver_of(pool_tokens=1024, host_tokens=0, rates=QUICK), Driver(make_engine())
    specs = [other.prefill(text(number, 50)) for number in range(2)]
    for spec in specs:
        driver.engine.advise(order(spec))
        driver.run()
        driver.engine.advise(Advice(forgotten=(spec.encoding_id,)))
        driver.run()
    driver.engine.advise(order(other.prefill(text(3, 50))))
    driver.run()
    assert driver.engine.tiers.counters.totals().prefetches_wasted == 2
