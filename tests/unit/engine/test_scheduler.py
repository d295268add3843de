"""Calls that can never run are refused with the field; work is ordered; a broken iteration is not the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_harness import Driver, force, make_engine
from engine_reference import MAX_CONTEXT

from laban.actors.calls import Advice, Call, CallFailed, CallTokens, Prefetch, Sampling
from laban.actors.engine.checks import check_call
from laban.actors.errors import InvalidInput
from laban.kvstore.encodings import EMPTY_VIEW, EncodingSpec, Placement, View, make_spec
from laban.kvstore.placements import PlacementState, Tier
from laban.kvstore.uses import Use

DECODE = Call("c", "test", EMPTY_VIEW, 0, (1, 2), (), Sampling(max_tokens=4))


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        (replace(DECODE, tokens=()), "INVALID_ARGUMENT", "at least one token"),
        (replace(DECODE, tokens=(1, 128)), "INVALID_ARGUMENT", "below 128"),
        (replace(DECODE, tokens=(-1,)), "INVALID_ARGUMENT", "below 128"),
        (replace(DECODE, sampling=force([5, 128])), "INVALID_ARGUMENT", "sampling.forced: must be token ids below 128"),
        (replace(DECODE, sampling=force([-1, 5])), "INVALID_ARGUMENT", "sampling.forced: must be token ids below 128"),
        (replace(DECODE, terminator=(128,)), "INVALID_ARGUMENT", "terminator: must be token ids below 128"),
        (replace(DECODE, start=-1), "OUT_OF_RANGE", "position -1"),
        (replace(DECODE, start=MAX_CONTEXT - 5), "OUT_OF_RANGE", "context of 512"),
        (replace(DECODE, sampling=Sampling(max_tokens=0)), "INVALID_ARGUMENT", "sampling.max_tokens"),
        (replace(DECODE, view=View("nobody")), "INVALID_ARGUMENT", "nobody"),
        (replace(DECODE, view=View(None, (Placement("nobody", 0, 0, 1),))), "INVALID_ARGUMENT", "nobody"),
    ],
)
def test_a_call_that_can_never_run_is_refused(call: Call, status: str, said: str) -> None:
    engine = make_engine("llama")
    engine.submit(call)
    (event,) = engine.step().events
    assert isinstance(event, CallFailed)
    assert event.status == status
    assert said in event.message
    assert not engine.has_work()


def test_a_token_of_no_word_costs_its_own_call_alone() -> None:
    driver = Driver(make_engine("llama"))
    good = driver.submit([1, 2], sampling=force([3, 4, 5]))
    bad = driver.submit([1, 2], sampling=force([3, 9_999_999, 5]))
    spec = make_spec("test", (1, 9_999_999), 0, EMPTY_VIEW, {})
    driver.engine.advise(
        Advice(uses=((spec.encoding_id, Use(1, 0.0)),), prefetches=(Prefetch(spec.encoding_id, (spec,)),))
    )
    driver.run()
    assert driver.failure(bad).status == "INVALID_ARGUMENT"
    assert driver.result(good).generated == (3, 4, 5)


@pytest.mark.parametrize(("position", "begin", "end"), [(-1, 0, 5), (510, 0, 5), (0, 3, 3), (0, 0, 11), (0, -1, 4)])
def test_placements_are_checked(position: int, begin: int, end: int) -> None:
    driver = Driver(make_engine("llama"))
    spec = driver.prefill([1] * 10)
    view = View(None, (Placement(spec.encoding_id, position, begin, end),))
    driver.engine.submit(Call("bad", "test", view, 20, (1,), (spec,)))
    (event,) = driver.engine.step().events
    assert isinstance(event, CallFailed)
    assert "view[0]" in event.message


def test_a_duplicate_id_and_a_full_queue_are_refused() -> None:
    driver = Driver(make_engine("llama", max_waiting=2, max_running=1))
    calls = [driver.submit([1], sampling=force([2])) for _ in range(3)]
    driver.run()
    assert driver.failure(calls[2]).status == "RESOURCE_EXHAUSTED"
    assert driver.result(calls[0]).finish_reason == "forced"
    engine = make_engine("llama")
    engine.submit(DECODE)
    engine.submit(DECODE)
    assert next(type(e) for e in engine.step().events) is CallFailed


def test_decodes_go_on_while_a_long_prefill_is_cut_into_chunks() -> None:
    driver = Driver(make_engine("llama", max_batch_tokens=32))
    decode = driver.submit([1, 2], sampling=Sampling(max_tokens=40))
    driver.step()
    prefill = driver.submit([3] * 200)
    steps = 0
    while not driver.events[prefill] or driver.events[prefill][-1].__class__.__name__ != "CallFinished":
        before = sum(isinstance(e, CallTokens) for e in driver.events[decode])
        driver.step()
        steps += 1
        assert sum(isinstance(e, CallTokens) for e in driver.events[decode]) == before + 1
    assert steps == 7  # 31 tokens of prefill beside one of decode
    driver.run()


def test_calls_are_admitted_in_the_order_they_came() -> None:
    driver = Driver(make_engine("llama", max_running=1))
    driver.submit([1], sampling=Sampling(max_tokens=5))
    driver.step()
    for call_id in ("second", "third", "fourth"):
        driver.events[call_id] = []
        driver.engine.submit(replace(DECODE, call_id=call_id))
    driver.engine.abort("third")
    order, blocked = [], []
    while driver.engine.has_work():
        report = driver.engine.step()
        blocked.append(report.load.num_blocked)
        for event in report.events:
            if event.call_id not in order:
                order.append(event.call_id)
    assert sorted(set(blocked), reverse=True) == [2, 1, 0]
    assert order[-2:] == ["second", "fourth"]
    assert "third" not in order


def test_a_failing_iteration_ends_its_calls_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(make_engine("llama"))
    call = driver.submit([1, 2, 3], sampling=Sampling(max_tokens=5))

    def broken(batch: object) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(driver.engine.runner, "forward", broken)
        driver.step()
    assert driver.failure(call).status == "INTERNAL"
    assert "MemoryError: no more" in driver.failure(call).message
    driver.run()
    assert driver.prefill([1] * 5).num_tokens == 5
    assert driver.engine.store.allocator.num_free == driver.engine.store.allocator.num_pages - 1


def test_reports_are_numbered_and_tell_what_the_store_gained_and_lost() -> None:
    engine = make_engine("llama", pool_tokens=64)
    engine.submit(Call("a", "test", EMPTY_VIEW, 0, (1,) * 40, ()))
    first = engine.step()
    engine.submit(Call("b", "test", EMPTY_VIEW, 0, (2,) * 40, ()))
    second = engine.step()
    assert [first.sequence, second.sequence] == [1, 2]
    (gained,) = first.changes
    assert (gained.tier, gained.state, gained.num_tokens) == (Tier.DEVICE, PlacementState.READY, 40)
    lost = second.changes[0]
    assert (lost.encoding_id, lost.state) == (gained.encoding_id, PlacementState.GONE)
    assert second.load.num_free_pages == 1


def test_tokens_of_encodings_that_are_there_are_not_looked_at_again() -> None:
    driver = Driver(make_engine())
    first = driver.prefill([1, 2, 3])
    damaged = replace(first, tokens=(1, 2, 999))
    check_call(call_over(driver, damaged), 512, 128, known=driver.engine.store)
    driver.engine.store.evict_all()
    with pytest.raises(InvalidInput, match="below 128"):
        check_call(call_over(driver, damaged), 512, 128, known=driver.engine.store)


def call_over(driver: Driver, spec: EncodingSpec) -> Call:
    return Call("a", "test", driver.chain(spec), spec.stop, (5,), (spec,), Sampling(max_tokens=1))
