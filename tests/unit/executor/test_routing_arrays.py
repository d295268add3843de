"""Choosing by cost with arrays over all workers gives what looking at them one by one gives, to the last tie."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from routing_world import PlainView, full_search, info_of, place, random_call, random_fleet, run_calls

from laban.cluster.routing.policies import CostPolicy
from laban.cluster.routing.replication import Replication
from laban.cluster.routing.router import Router


class OneByOne(CostPolicy):
    by_cost = False


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    num_workers=st.sampled_from([1, 3, 12, 63, 64, 65, 130]),
    num_encodings=st.sampled_from([4, 12, 40]),
    is_idle=st.booleans(),
)
def test_both_ways_choose_the_same_of_random_fleets(
    seed: int, num_workers: int, num_encodings: int, is_idle: bool
) -> None:
    rng, view, replication = random.Random(seed), PlainView(), Replication()
    ledger = random_fleet(rng, view, num_workers, num_encodings)
    fast = Router(CostPolicy(), view, ledger, replication)
    plain = Router(OneByOne(), view, ledger, replication)
    for number in range(20):
        if not is_idle:
            run_calls(rng, fast, [random_call(rng, num_encodings, number) for _ in range(rng.randrange(6))])
        if rng.random() < 0.2:  # some send a great deal, so that encoding is sooner done
            account = rng.choice(list(ledger.accounts.values()))
            account.num_fetching += rng.randrange(1, 30)
            ledger.sending |= account.bit
        if rng.random() < 0.1 and len(ledger.accounts) > 1:
            gone = rng.choice(list(ledger.accounts))
            ledger.remove(gone)
            for encoding_id in list(view.placements):
                view.put(encoding_id, gone)
        if rng.random() < 0.1:
            ledger.add(info_of(f"new{number}", rng.choice(["cpu", "fast"]), fetches=rng.random() < 0.5))
        place(rng, view, f"e{rng.randrange(num_encodings)}", rng.choice(list(ledger.accounts)))
        now_s = number / 10
        call = random_call(rng, num_encodings, number)
        first, second = fast.choose(call, now_s), plain.choose(call, now_s)
        if first is None or second is None:
            assert first is second
            continue
        assert first.worker_id == second.worker_id
        assert (first.estimate, first.sources, first.tokens_found) == (
            second.estimate,
            second.sources,
            second.tokens_found,
        )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), num_workers=st.sampled_from([2, 20, 70]))
def test_what_is_told_of_the_cheapest_workers_is_what_each_would_cost(seed: int, num_workers: int) -> None:
    rng, view = random.Random(seed), PlainView()
    ledger = random_fleet(rng, view, num_workers, 12)
    router = Router(CostPolicy(), view, ledger)
    run_calls(rng, router, [random_call(rng, 12, number) for number in range(num_workers)])
    call = random_call(rng, 12, 99)
    choice = router.choose(call)
    if choice is None:
        return
    _, views = full_search(router, call)
    told = choice.candidates()
    assert told[0][1].worker_id == choice.worker_id
    assert len({worker.worker_id for _, worker in told}) == len(told)
    assert all(worker == views[worker.worker_id] for _, worker in told)
    dearest = max(worker.cost_ms for _, worker in told)
    others = [worker.cost_ms for worker_id, worker in views.items() if worker_id not in {w.worker_id for _, w in told}]
    assert len(told) == min(len(views), 16) or not others or min(others) >= dearest


def test_a_choice_tells_of_workers_as_they_were() -> None:
    rng, view = random.Random(5), PlainView()
    ledger = random_fleet(rng, view, 30, 12)
    router = Router(CostPolicy(), view, ledger)
    call = random_call(rng, 12, 1)
    choice = router.choose(call)
    assert choice is not None
    before = choice.candidates()
    run_calls(rng, router, [random_call(rng, 12, number) for number in range(30)])
    assert [worker.queue_ms for _, worker in choice.candidates()] == [worker.queue_ms for _, worker in before]
