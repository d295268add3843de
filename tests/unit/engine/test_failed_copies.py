"""Copies between the device and the host that fail: what was to be loaded is encoded, what was to be saved is not."""

from __future__ import annotations

import pytest
from engine_harness import assert_same_encoding, interpreter, place_recorded
from tier_rig import SLOW_LINK, assert_nothing_is_held, driver_of, fail_copies, save_all, text

from laban.actors.calls import Advice, Prefetch, Sampling
from laban.kvstore.uses import Use


@pytest.mark.parametrize("options", [{}, {"rates": SLOW_LINK, "link_bytes_per_s": 2e6}], ids=["loaded", "mixed"])
def test_what_cannot_be_loaded_is_encoded(monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    driver, oracle = driver_of(pool_tokens=2048, **options), interpreter()
    root = driver.prefill(text(0, 9))
    spec = driver.prefill(text(1, 400), driver.chain(root))
    save_all(driver)
    driver.engine.store.evict_all()
    fail_copies(monkeypatch, lambda direction: direction == "load")
    calls = [driver.submit([1, 2], driver.chain(root, spec), sampling=Sampling(max_tokens=3)) for _ in range(3)]
    prefill = driver.submit(text(1, 400), driver.chain(root))
    driver.run()
    results = [driver.result(call) for call in calls]
    assert [result.tokens_loaded for result in results] == [0, 0, 0]
    assert sum(result.tokens_encoded for result in [*results, driver.result(prefill)]) == 409 + 3 * 2
    assert driver.result(prefill).encoding == spec
    recorded = oracle.encode(text(1, 400), 9, [place_recorded(oracle.encode(text(0, 9), 0, []), 0)])
    assert_same_encoding(driver, oracle, spec, recorded)
    assert_nothing_is_held(driver)


def test_one_failure_is_of_one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call after it loads what the host still has."""
    driver = driver_of(pool_tokens=1024)
    spec = driver.prefill(text(1, 100))
    save_all(driver)
    driver.engine.store.evict_all()
    failures = [True]
    fail_copies(monkeypatch, lambda direction: bool(failures) and failures.pop())
    first = driver.submit([1, 2], driver.chain(spec), sampling=Sampling(max_tokens=3))
    driver.run()
    assert driver.result(first).tokens_loaded == 0
    driver.engine.store.evict_all()
    second = driver.submit([1, 2], driver.chain(spec), sampling=Sampling(max_tokens=3))
    driver.run()
    assert driver.result(second).tokens_loaded == 100
    assert driver.result(second).text == driver.result(first).text


def test_a_prefetch_that_cannot_be_loaded_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driver_of(pool_tokens=1024)
    spec = driver.prefill(text(1, 100))
    save_all(driver)
    driver.engine.store.evict_all()
    fail_copies(monkeypatch, lambda direction: direction == "load")
    order = Prefetch(spec.encoding_id, (spec,))
    driver.engine.advise(Advice(uses=((spec.encoding_id, Use(1, 0.05)),), prefetches=(order,)))
    driver.run()
    assert driver.engine.store.get_ready(spec.encoding_id) is not None
    assert_nothing_is_held(driver)


def test_a_save_that_fails_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driver_of(pool_tokens=1024, rates=SLOW_LINK, link_bytes_per_s=2e6)  # in several copies
    spec = driver.prefill(text(1, 400))
    entry, tiers = driver.engine.store.get(spec.encoding_id), driver.engine.tiers
    failures = [True, False]
    with monkeypatch.context() as patched:
        fail_copies(patched, lambda direction: bool(failures) and failures.pop())
        assert tiers.save_one(driver.engine.store, entry)
        driver.run()
    assert not failures
    assert spec.encoding_id not in tiers.host
    assert_nothing_is_held(driver)
    save_all(driver)
    assert tiers.host.get_ready(spec.encoding_id).num_tokens == 400
