"""A load that was given up, and that somebody reads before what is under way of it has landed, goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from engine_harness import Driver, make_engine
from tier_rig import SLOW_LINK, driver_of, save_all, text

from laban.actors.calls import Advice, Call, Prefetch, Sampling, WorkerRates
from laban.kvstore.encodings import EncodingSpec, closure, dependencies, make_spec
from laban.kvstore.uses import Use

LINK = WorkerRates(100.0, 0.01, 1e6, 1e12, 1e12)
"""So slow that a load has several chunks."""


def loading(rates: WorkerRates = LINK) -> tuple[Driver, EncodingSpec, str]:
    """A call that waits for a load of which something is under way, and which lands once `land` says so."""
    driver = driver_of(pool_tokens=1024, rates=rates)
    spec = driver.prefill(text(1, 400))
    save_all(driver)
    driver.engine.store.evict_all()
    driver.engine.runner.k_pool.fill_(torch.nan)
    driver.engine.runner.v_pool.fill_(torch.nan)
    driver.engine.tiers.flights.landed = lambda: ()
    call = driver.submit([1, 2], driver.chain(spec), sampling=Sampling(max_tokens=3))
    driver.step()
    (sequence,) = driver.engine.scheduler.loads.active
    assert sequence.load.in_flight
    assert sequence.load.issued > 0
    return driver, spec, call


def land(driver: Driver) -> None:
    del driver.engine.tiers.flights.landed


def ask(driver: Driver, spec: EncodingSpec, *, spare: bool = False) -> None:
    view = driver.chain(spec)
    specs = tuple(closure(dependencies(view), driver.specs))
    call = Call("reader", "test", view, spec.stop, (3, 4), specs, Sampling(max_tokens=6))
    driver.events["reader"] = []
    driver.engine.submit(replace(call, spare=True, rank=1 << 62) if spare else call)


def check_answer(driver: Driver, spec: EncodingSpec) -> None:
    """Of who asked is what an engine says that never had to load anything."""
    whole = Driver(make_engine(), {spec.encoding_id: spec})
    ask(whole, spec)
    for each in (driver, whole):
        each.run()
    assert driver.result("reader").generated == whole.result("reader").generated


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("rates", [LINK, SLOW_LINK])
def test_by_a_call(rates: WorkerRates, spare: bool) -> None:
    driver, spec, first = loading(rates)
    driver.engine.abort(first)
    ask(driver, spec, spare=spare)
    driver.step()
    land(driver)
    check_answer(driver, spec)


def test_by_a_call_that_asks_for_it_alone() -> None:
    driver, spec, first = loading()
    driver.engine.abort(first)
    again = driver.submit(text(1, 400))
    driver.step()
    land(driver)
    driver.run()
    assert driver.result(again).encoding == spec
    ask(driver, spec)
    check_answer(driver, spec)


def test_by_a_prefetch_of_what_reads_it() -> None:
    driver, spec, first = loading()
    driver.engine.abort(first)
    after = make_spec("test", text(2, 20), spec.stop, driver.chain(spec), driver.specs)
    driver.specs[after.encoding_id] = after
    order = Prefetch(after.encoding_id, (spec, after), compute=True)
    driver.engine.advise(Advice(uses=((after.encoding_id, Use(1, 0.0)),), prefetches=(order,)))
    driver.step()
    assert after.encoding_id in driver.engine.store
    land(driver)
    driver.run()
    assert driver.engine.store.get_ready(after.encoding_id) is not None
    ask(driver, spec)
    check_answer(driver, spec)


def test_by_a_spare_call_after_the_prefetch_was_cancelled() -> None:
    driver, spec, first = loading()
    driver.engine.abort(first)
    land(driver)
    driver.run()
    assert spec.encoding_id not in driver.engine.store
    driver.engine.tiers.flights.landed = lambda: ()
    order = Prefetch(spec.encoding_id, (spec,))
    driver.engine.advise(Advice(uses=((spec.encoding_id, Use(1, 0.0)),), prefetches=(order,)))
    driver.step()
    driver.engine.advise(Advice(cancelled=(spec.encoding_id,)))
    driver.step()
    (sequence,) = driver.engine.scheduler.loads.active
    assert sequence.load.cancelled
    ask(driver, spec, spare=True)
    driver.step()
    land(driver)
    check_answer(driver, spec)


def test_what_nobody_brings_any_more_is_not_read() -> None:
    driver, spec, first = loading()
    driver.engine.scheduler.unfinished._producers.clear()
    ask(driver, spec)
    driver.step()
    assert "is not on the device" in driver.failure("reader").message
    land(driver)
    driver.run()
    assert driver.result(first).tokens_generated == 3
