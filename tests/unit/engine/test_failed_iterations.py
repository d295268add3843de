"""What was in the making when an iteration failed is not taken for computed, and is in nobody's way afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from engine_harness import Driver, make_engine
from tier_rig import SLOW_LINK, driver_of, save_all, text

from laban.actors.calls import Advice, Prefetch, Sampling
from laban.actors.engine.sequence import Chunk
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, make_spec
from laban.kvstore.uses import Use


def fail_when(
    driver: Driver, condition: Callable[[Sequence[Chunk]], bool], monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """The device fails with such iterations, which is heard of when they are taken in; returns how often, at [0]."""
    engine, counted = driver.engine, [0]
    settle, overlaps = engine._settle, engine.runner.overlaps
    assert not overlaps

    def settled(iteration: object) -> None:
        if condition(iteration.chunks):  # type: ignore[attr-defined]
            counted[0] += 1
            for chunk in iteration.chunks:  # type: ignore[attr-defined]
                slots = chunk.sequence.entry.slots(chunk.begin + chunk.count)[chunk.begin :]
                engine.runner.k_pool[:, slots] = torch.nan
                engine.runner.v_pool[:, slots] = torch.nan
            raise RuntimeError("the device failed")
        settle(iteration)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "_settle", settled)
    return counted


def ordered(driver: Driver) -> EncodingSpec:
    """A message that nobody has encoded, and that the control plane wants here."""
    spec = make_spec("test", text(1, 60), 0, EMPTY_VIEW, {})
    driver.specs[spec.encoding_id] = spec
    order = Prefetch(spec.encoding_id, (spec,), compute=True)
    driver.engine.advise(Advice(uses=((spec.encoding_id, Use(1, 0.0)),), prefetches=(order,)))
    return spec


def check_answer(driver: Driver, spec: EncodingSpec) -> None:
    """To a call that reads `spec`: as an engine gives it that encodes it for the first time."""
    whole = Driver(make_engine(), {spec.encoding_id: spec})
    ids = [d.submit([3, 4], d.chain(spec), sampling=Sampling(max_tokens=6)) for d in (driver, whole)]
    for each in (driver, whole):
        each.run()
    assert driver.result(ids[0]).generated == whole.result(ids[1]).generated


def test_a_prefetch_of_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driver_of()
    with monkeypatch.context() as patch:
        counted = fail_when(driver, lambda chunks: True, patch)
        spec = ordered(driver)
        driver.run()
        assert counted == [1]  # and is not begun again
    assert spec.encoding_id not in driver.engine.store
    assert driver.engine.tiers.counters.totals().prefetches_wasted == 1
    check_answer(driver, spec)


def test_a_prefetch_that_always_fails_takes_the_calls_beside_it_along_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driver_of(pool_tokens=1024)
    driver.engine.scheduler.chunking.free_tokens = 16  # as on a card: prefetches go along with decodes
    counted = fail_when(driver, lambda chunks: any(chunk.sequence.prefetched for chunk in chunks), monkeypatch)
    first = driver.submit([1, 2], sampling=Sampling(max_tokens=20))
    for _ in range(2):
        driver.step()
    ordered(driver)
    while driver.engine.scheduler.running:
        driver.step()
    assert "the device failed" in driver.failure(first).message
    second = driver.submit([1, 2], sampling=Sampling(max_tokens=20))
    driver.run()
    assert driver.result(second).tokens_generated == 20
    assert counted == [1]


def test_the_head_of_a_load_under_way_is_not_taken_for_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driver_of(pool_tokens=1024, rates=SLOW_LINK)
    spec = driver.prefill(text(1, 400))
    save_all(driver)
    driver.engine.store.evict_all()
    driver.engine.tiers.flights.landed = lambda: ()
    with monkeypatch.context() as patch:
        counted = fail_when(driver, lambda chunks: True, patch)
        first = driver.submit([1, 2], driver.chain(spec), sampling=Sampling(max_tokens=3))
        while not counted[0]:
            driver.step()
    assert "the device failed" in driver.failure(first).message
    (sequence,) = driver.engine.scheduler.sequences
    assert sequence.load.in_flight
    assert sequence.is_given_up
    reader = driver.submit([5, 6], driver.chain(spec), sampling=Sampling(max_tokens=3))
    driver.step()
    assert driver.engine.scheduler.sequences[0] is sequence
    assert not sequence.is_given_up
    del driver.engine.tiers.flights.landed
    driver.run()
    driver.result(reader)
    check_answer(driver, spec)
