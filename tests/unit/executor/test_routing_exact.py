"""The router looks at few workers and chooses as the search over all of them does."""

from __future__ import annotations

import random

import pytest
from routing_world import PlainView, full_search, info_of, place, random_call, random_fleet, run_calls, simple_call

from laban.actors.calls import WorkerLoad, WorkerRates
from laban.cluster.routing.estimate import Estimate
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policies import load_routing
from laban.cluster.routing.router import Router
from laban.kvstore.placements import PlacementState, Tier

NOTHING = Estimate(*[0] * 13)
POLICIES = ("cost", "prefix_affinity", "least_loaded", "round_robin")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(60))
def test_the_choice_is_that_of_the_full_search(policy, seed):
    rng = random.Random(seed)
    view = PlainView()
    num_encodings = rng.choice([3, 10, 30])
    ledger = random_fleet(rng, view, rng.choice([1, 2, 5, 12, 40]), num_encodings)
    router = Router(load_routing(policy), view, ledger)
    for number in range(12):
        run_calls(rng, router, [random_call(rng, num_encodings, number) for _ in range(rng.randrange(4))])
        ledger.check_integrity()
        place(rng, view, f"e{rng.randrange(num_encodings)}", rng.choice(list(ledger.accounts)))
        call = random_call(rng, num_encodings, number)
        choice = router.choose(call)
        if choice is None:
            assert not ledger.num_open
            continue
        best, views = full_search(router, call)
        for _, seen in choice.candidates():
            assert seen == views[seen.worker_id]
        assert choice.worker_id == best


def test_a_busy_link_counts_where_something_is_to_be_loaded():
    """All hold the message in host memory, and the queue of the first is shorter by less than its link is busy."""
    for seed in range(20):
        rng = random.Random(seed)
        view = PlainView()
        ledger = Ledger()
        for n in range(20):
            account = ledger.add(info_of(f"w{n:02}"))
            ledger.report(account, WorkerLoad(), WorkerRates(1000.0, 0.01, 1e6, 1e6, 1e6))
            account.link_ns = rng.choice([0, 10, 50, 200]) * 1_000_000
            ledger.sent(account, simple_call([], rng.randrange(100)), NOTHING)
            view.put("e0", f"w{n:02}", (Tier.HOST, PlacementState.READY, 400))
        router = Router(load_routing("cost"), view, ledger)
        call = simple_call([("e0", 400)])
        best, _ = full_search(router, call)
        assert router.choose(call).worker_id == best
        assert len(router.choose(call).candidates()) <= 20
