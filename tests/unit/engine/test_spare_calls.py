"""What is done in spare time is done while nothing else is, and comes to the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_harness import Driver, force, make_engine

from laban.actors.calls import Call, Sampling, Scoring
from laban.kvstore.encodings import EMPTY_VIEW, Placement, View, make_spec

LONG = tuple(range(1, 101))
KEEP = Scoring(keep="kept")


def spare(call: Call) -> Call:
    return replace(call, spare=True, rank=1 << 62)


def enter(driver: Driver, call: Call) -> None:
    driver.events[call.call_id] = []
    driver.engine.submit(call)


def computed(driver: Driver, call_id: str) -> int:
    return driver.engine.scheduler.running[call_id].sequence.num_computed


def test_a_spare_call_waits_for_every_other_and_then_comes_to_the_same() -> None:
    driver = Driver(make_engine("llama", max_batch_tokens=16))
    alone = Call("alone", "test", EMPTY_VIEW, 0, LONG, (), Sampling(max_tokens=4))
    enter(driver, alone)
    driver.run()
    enter(driver, spare(replace(alone, call_id="spare", namespace="other")))
    driver.step()
    before = computed(driver, "spare")
    enter(driver, Call("real", "test", EMPTY_VIEW, 0, (1, 2, 3), (), force(list(range(1, 9)))))
    driver.step()
    while "real" in driver.engine.scheduler.running:
        assert computed(driver, "spare") == before
        driver.step()
    driver.run()
    assert driver.result("spare").generated == driver.result("alone").generated


def test_what_a_spare_call_encodes_is_no_longer_spare_once_a_call_wants_it() -> None:
    driver = Driver(make_engine("llama", max_batch_tokens=16))
    made = driver.prefill([5, 6, 7])
    enter(driver, spare(Call("spare", "test", EMPTY_VIEW, 0, LONG, ())))
    driver.step()
    assert computed(driver, "spare") < len(LONG)
    enter(driver, Call("real", "test", EMPTY_VIEW, 0, LONG, ()))
    driver.step()
    assert not driver.engine.scheduler.running["real"].sequence.spare
    driver.run()
    assert driver.result("real").encoding == driver.result("spare").encoding != made


def deep(num_tokens: int) -> Call:
    """It reads the last of three messages, which takes the others to encode."""
    specs, view = {}, EMPTY_VIEW
    for at in range(0, 3 * num_tokens, num_tokens):
        last = make_spec("test", [at % 128] * num_tokens, at, view, specs)
        specs[last.encoding_id], view = last, View(last.encoding_id)
    read = View(None, (Placement(last.encoding_id, 0, 0, num_tokens),))
    return Call("spare", "test", read, num_tokens, (1, 2), tuple(specs.values()), Sampling(max_tokens=3))


def test_a_spare_call_that_can_never_fit_is_told_so_once_nothing_else_runs() -> None:
    driver = Driver(make_engine(pool_tokens=256))
    other = driver.submit([1, 2], sampling=force([3, 4, 5]))
    driver.step()
    enter(driver, spare(deep(100)))
    report = driver.engine.step()
    assert report.load.num_waiting == 1
    assert report.load.num_blocked == 0
    assert not driver.engine.scheduler.is_short
    driver.run()
    assert driver.failure("spare").status == "FAILED_PRECONDITION"
    assert driver.result(other).tokens_generated == 3


def test_a_spare_call_gives_its_pages_back_to_one_that_is_short_of_them() -> None:
    """It would not end before there is time for it, which is once nobody else runs."""
    driver, whole = (Driver(make_engine(pool_tokens=tokens, max_batch_tokens=16)) for tokens in (176, 4096))
    scored = replace(Call("scored", "test", EMPTY_VIEW, 0, LONG[:30], (), force(list(range(40, 60)))), scoring=KEEP)
    first = Call("first", "test", EMPTY_VIEW, 0, (9, 8), (), Sampling(max_tokens=60))
    calls = [spare(scored), spare(Call("prefill", "test", EMPTY_VIEW, 0, LONG[:40], ())), first]
    for each in calls[:2]:
        enter(driver, each)
    for _ in range(3):
        driver.step()
    assert 30 < computed(driver, "scored") < 50  # some of it was scored
    enter(driver, first)
    driver.step()
    assert len(driver.engine.scheduler.running) == 3
    enter(driver, Call("second", "test", EMPTY_VIEW, 0, LONG[:32], (), Sampling(max_tokens=32)))
    driver.step()
    assert set(driver.engine.scheduler.running) == {"first", "second"}
    while driver.engine.scheduler.num_waiting < 2 or len(driver.engine.scheduler.running) == 2:
        driver.step()
        driver.engine.store.check_integrity()
    driver.run()
    for each in calls:
        enter(whole, each)
        whole.run()
        found, expected = driver.result(each.call_id), whole.result(each.call_id)
        assert (found.generated, found.encoding) == (expected.generated, expected.encoding)
    for each in (driver, whole):
        enter(each, spare(replace(scored, call_id="again", scoring=Scoring(against="kept"))))
        each.run()
        assert each.result("again").comparison.kl == pytest.approx([0.0] * 20, abs=1e-6)


def test_a_spare_call_that_has_all_its_tokens_gives_its_pages_back_and_is_closed_later() -> None:
    driver = Driver(make_engine(pool_tokens=96))
    enter(driver, replace(spare(Call("spare", "test", EMPTY_VIEW, 0, LONG[:40], (), force([5, 6]))), terminator=(7,)))
    driver.step()
    driver.step()
    sequence = driver.engine.scheduler.running["spare"].sequence
    assert sequence.decode is not None
    assert sequence.decode.finish_reason is not None
    enter(driver, Call("real", "test", EMPTY_VIEW, 0, (1, 2, 3), (), Sampling(max_tokens=60)))
    driver.step()
    assert set(driver.engine.scheduler.running) == {"real"}
    driver.run()
    assert driver.result("spare").encoding.tokens == (*LONG[:40], 5, 6, 7)


def test_a_spare_call_gives_its_place_to_another() -> None:
    driver = Driver(make_engine(max_running=2, max_batch_tokens=16))
    enter(driver, Call("first", "test", EMPTY_VIEW, 0, (9, 8), (), Sampling(max_tokens=30)))
    enter(driver, spare(Call("spare", "test", EMPTY_VIEW, 0, LONG, ())))
    driver.step()
    assert set(driver.engine.scheduler.running) == {"first", "spare"}
    enter(driver, Call("second", "test", EMPTY_VIEW, 0, (1, 2, 3), (), Sampling(max_tokens=3)))
    driver.step()
    assert set(driver.engine.scheduler.running) == {"first", "second"}
    driver.run()
    assert driver.result("spare").encoding.tokens == LONG


def test_a_spare_call_keeps_what_would_help_nobody() -> None:
    driver = Driver(make_engine(pool_tokens=640, tenant_share=0.25))
    enter(driver, Call("first", "test/a", EMPTY_VIEW, 0, (9, 8), (), Sampling(max_tokens=100)))
    enter(driver, spare(Call("spare", "test/b", EMPTY_VIEW, 0, LONG, ())))
    driver.step()
    enter(driver, Call("second", "test/a", EMPTY_VIEW, 0, (7,), (), Sampling(max_tokens=100)))
    driver.step()
    assert set(driver.engine.scheduler.running) == {"first", "spare"}
    driver.run()
    assert driver.result("spare").encoding.num_tokens == len(LONG)
