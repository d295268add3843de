"""Memory: what was evicted is encoded again under its own view; no call waits for ever, none takes too much."""

from __future__ import annotations

import random

import pytest
import torch
from engine_harness import TOLERANCE, Driver, assert_same_encoding, force, interpreter, logprobs, make_engine
from engine_harness import place_recorded as placed

from laban.actors.calls import CallStarted, Sampling
from laban.kvstore.encodings import EMPTY_VIEW


def test_evicted_ancestors_are_encoded_again_each_under_its_own_view() -> None:
    driver, oracle = Driver(make_engine("llama", max_batch_tokens=40)), interpreter("llama")
    a = driver.prefill([1] * 30)
    b = driver.prefill(list(range(40)), driver.place(EMPTY_VIEW, a, 7), 60)
    c = driver.prefill([3] * 25, driver.place(driver.place(EMPTY_VIEW, b, 10), a, 50), 80)
    call = driver.submit([4, 5], driver.place(EMPTY_VIEW, c, 3), 30, force([6, 7]))
    driver.run()
    before = driver.result(call)
    driver.engine.store.evict_all()
    assert len(driver.engine.store) == 0
    call = driver.submit([4, 5], driver.place(EMPTY_VIEW, c, 3), 30, force([6, 7]))
    driver.run()
    after = driver.result(call)
    assert (after.tokens_reused, after.tokens_encoded) == (0, 30 + 40 + 25 + 2)
    torch.testing.assert_close(logprobs(after), logprobs(before), atol=TOLERANCE, rtol=0)
    recorded_a = oracle.encode([1] * 30, 0, [])
    recorded_b = oracle.encode(list(range(40)), 60, [placed(recorded_a, 7)])
    recorded_c = oracle.encode([3] * 25, 80, [placed(recorded_b, 10), placed(recorded_a, 50)])
    for spec, recorded in ((a, recorded_a), (b, recorded_b), (c, recorded_c)):
        assert_same_encoding(driver, oracle, spec, recorded)


def test_a_child_of_a_moved_encoding_is_not_the_exact_one() -> None:
    """Same tokens, same place: read `direct` after something it never saw, and encoded in order."""
    driver = Driver(make_engine("llama"))
    a, b = driver.prefill([1] * 20), driver.prefill([2] * 20)
    b_after_a = driver.prefill([2] * 20, driver.chain(a))
    direct = driver.place(driver.chain(a), b, 20)
    exact = driver.place(driver.chain(a), b_after_a, 20)
    children = [driver.prefill([3] * 10, view, 40) for view in (direct, exact)]
    assert [child.exact for child in children] == [False, True]
    assert children[0].encoding_id != children[1].encoding_id
    keys = [driver.keys_and_values(child)[0] for child in children]
    assert (keys[0] - keys[1]).abs().max() > 100 * TOLERANCE


def test_many_calls_through_a_small_pool_all_end_and_stay_right() -> None:
    """Far more than the pool holds: calls wait, encodings come and go, results are those of a large pool."""
    small, large = Driver(make_engine("llama", pool_tokens=256)), Driver(make_engine("llama"))
    results = []
    for driver in (small, large):
        first = [driver.submit([i + 1] * 50) for i in range(6)]
        driver.run()
        parents = [driver.result(call).encoding for call in first]
        calls = [
            driver.submit([i, i + 1], driver.place(EMPTY_VIEW, parents[i % 6], i), 60 + i, force([i] * (1 + 3 * i)))
            for i in range(12)
        ]
        driver.run()
        results.append([logprobs(driver.result(call)) for call in calls])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=0)


def test_a_call_says_when_it_begins_what_it_will_have_encoded() -> None:
    """All but its terminator: whoever loses it later knows what it cost."""
    driver = Driver(make_engine("llama"))
    for _ in range(4):
        parents = [driver.prefill([random.randrange(20)] * random.randrange(1, 40)) for _ in range(2)]
        if random.random() < 0.5:
            driver.engine.store.evict_all()
        tokens, generated = [1] * random.randrange(1, 9), [2] * random.randrange(1, 5)
        call = driver.submit(tokens, driver.chain(*parents[:1]), 60, force(generated), terminator=(3, 4))
        other = driver.submit(tokens, driver.place(EMPTY_VIEW, parents[1], 9), 70, force(generated), terminator=(3, 4))
        driver.run()
        for each in (call, other):
            began, ended = driver.events[each][0], driver.result(each)
            assert isinstance(began, CallStarted)
            assert (began.tokens_read, began.tokens_reused) == (ended.tokens_read, ended.tokens_reused)
            assert began.tokens_encoded == ended.tokens_encoded - 2 >= len(tokens)


def test_a_call_waits_until_its_worst_case_fits() -> None:
    driver = Driver(make_engine("llama", pool_tokens=160))
    long = driver.submit([1] * 4, sampling=Sampling(max_tokens=100))
    other = driver.submit([2] * 4, sampling=Sampling(max_tokens=100))
    driver.step()
    assert any(isinstance(e, CallStarted) for e in driver.events[long])
    assert driver.events[other] == []
    driver.run()
    assert [driver.result(call).tokens_generated for call in (long, other)] == [100, 100]


def test_a_call_larger_than_the_pool_is_refused_with_the_numbers() -> None:
    driver = Driver(make_engine("llama", pool_tokens=160))
    call = driver.submit([1] * 4, sampling=Sampling(max_tokens=300))
    driver.run()
    failure = driver.failure(call)
    assert failure.status == "FAILED_PRECONDITION"
    assert "304 tokens" in failure.message
    assert "160" in failure.message
    assert driver.prefill([1] * 10).num_tokens == 10


def test_a_view_whose_lost_ancestors_no_longer_fit_is_refused_not_waited_for() -> None:
    wide = Driver(make_engine("llama"))
    a = wide.prefill([1] * 100)
    b = wide.prefill([2] * 50, wide.chain(a))
    c = wide.prefill([3] * 16, wide.place(EMPTY_VIEW, b, 0), 50)
    driver = Driver(make_engine("llama", pool_tokens=160), specs=wide.specs)
    call = driver.submit([4] * 2, driver.place(EMPTY_VIEW, c, 0), 16, force([5]))
    driver.run()
    assert driver.failure(call).status == "FAILED_PRECONDITION"


@pytest.mark.parametrize("chunk", [3, 512])
def test_calls_that_want_the_same_encode_it_once(chunk: int) -> None:
    driver = Driver(make_engine("llama", max_batch_tokens=chunk))
    other = Driver(make_engine("llama"))
    spec = other.prefill([1] * 60)
    driver.specs[spec.encoding_id] = spec
    calls = [driver.submit([2], driver.chain(spec), sampling=force([3])) for _ in range(4)]
    driver.run()
    assert sorted(driver.result(call).tokens_encoded for call in calls) == [1, 1, 1, 61]
    assert sum(driver.result(call).tokens_reused for call in calls) == 180


def test_a_policy_of_ones_own_that_fails_now_and_then_costs_no_call() -> None:
    own = "failing_policies:SometimesNoEviction"
    small = Driver(make_engine("llama", pool_tokens=256, host_tokens=256, eviction=own))
    large = Driver(make_engine("llama"))
    results = []
    for driver in (small, large):
        ids = [driver.submit([i + 1] * 50, EMPTY_VIEW, 0, force([i] * 5)) for i in range(12)]
        driver.run()
        results.append([logprobs(driver.result(call)) for call in ids])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=TOLERANCE, rtol=0)
    assert small.engine.tiers.tallying.totals().num_policy_failures > 0
