"""Choosing with arrays over all workers gives what looking at each by itself gives, to the last tie."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from failing_policies import NeverRouting, SometimesNoRouting
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_world import (
    PlainView,
    full_search,
    info_of,
    place,
    random_call,
    random_fleet,
    run_calls,
    shares_of,
    simple_call,
    sources_of,
)

from laban.cluster import compiling
from laban.cluster.routing import policies
from laban.cluster.routing.call_view import CallView, bits
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policies import POLICIES, CostPolicy, load_routing
from laban.cluster.routing.policy import WorkerView
from laban.cluster.routing.replication import Replication
from laban.cluster.routing.router import NUM_CANDIDATES, Router
from laban.kvstore.placements import Tier
from laban.kvstore.plugins import PolicyFailed


class OfMyOwn:
    """Where what is to be done first is least, of workers with an even name first: no worker stands for another."""

    def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
        return (sum(map(ord, worker.worker_id)) % 2, worker.ttft_ms, worker.free_pages)


POLICY = st.sampled_from([*POLICIES.values(), CostPolicy, CostPolicy, OfMyOwn])


def check_choice(router: Router, call: CallView, now_s: float) -> None:
    """The choice, all that it says of it, and the views of those that it tells of."""
    choice = router.choose(call, now_s)
    if choice is None:
        assert not router.ledger.num_open
        return
    best, views = full_search(router, call, shares_of(router, call, now_s))
    assert choice.worker_id == best
    told, seen = choice.estimate, views[best]
    assert (told.load_ns, told.fetch_ns) == (seen.load_ns, seen.fetch_ns)
    assert told.encode_ns == seen.encode_ns - call.own_tokens * choice.account.pace.encode_ns
    ways = (told.from_host, told.from_disk, told.fetched, told.encoded)
    tokens = (told.tokens_host, told.tokens_disk, told.tokens_peer, told.tokens_encode)
    assert tokens == tuple(sum(call.needs[at].num_tokens for at in bits(way)) for way in ways)
    assert sum(tokens) + call.own_tokens == seen.tokens_missing
    assert sum(ways) == told.missing
    assert choice.tokens_found == call.tokens_read - sum(call.needs[at].num_read for at in bits(told.encoded))
    found = [(source.encoding_id, source.worker_id, source.transfer_s) for source in choice.sources]
    assert found == sources_of(router, call, choice)
    assert [account.worker_id for account in choice.source_accounts] == [source for _, source, _ in found]
    ordered = sorted((router.policy.key(view, call), worker_id, view) for worker_id, view in views.items())
    assert choice.candidates() == [(key, view) for key, _, view in ordered[:NUM_CANDIDATES]]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    num_workers=st.sampled_from([1, 3, 12, 63, 64, 65, 130]),
    num_encodings=st.sampled_from([4, 12, 40]),
    is_idle=st.booleans(),
    policy=POLICY,
)
def test_the_choice_in_random_fleets_is_that_of_the_full_search(
    seed: int, num_workers: int, num_encodings: int, is_idle: bool, policy: type
) -> None:
    rng, view = random.Random(seed), PlainView()
    ledger = random_fleet(rng, view, num_workers, num_encodings)
    router = Router(policy(), view, ledger, Replication())
    for number in range(8):
        if not is_idle:
            run_calls(rng, router, [random_call(rng, num_encodings, number) for _ in range(rng.randrange(6))])
        if rng.random() < 0.2:  # some send a great deal, so that encoding is sooner done
            ledger.fetch(rng.choice(list(ledger.accounts.values())), rng.randrange(1, 30))
        if rng.random() < 0.1 and len(ledger.accounts) > 1:
            gone = rng.choice(list(ledger.accounts))
            ledger.remove(gone)
            for encoding_id in list(view.placements):
                view.put(encoding_id, gone)
        if rng.random() < 0.1:
            ledger.add(info_of(f"new{number}", rng.choice(["cpu", "fast"]), fetches=rng.random() < 0.5))
        place(rng, view, f"e{rng.randrange(num_encodings)}", rng.choice(list(ledger.accounts)))
        ledger.check_integrity()
        check_choice(router, random_call(rng, num_encodings, number), number / 10)


def test_it_may_be_another_whom_a_call_must_go_to() -> None:
    rng, view = random.Random(3), PlainView()
    ledger = random_fleet(rng, view, 12, 12)
    router = Router(CostPolicy(), view, ledger)
    call = random_call(rng, 12, 1)
    _, views = full_search(router, call)
    for worker_id in ledger.accounts:
        choice = router.choose(call, only=worker_id)
        assert (choice is None) == (worker_id not in views)
        if choice is not None:
            assert choice.worker_id == worker_id
            assert [view for _, view in choice.candidates()] == [views[worker_id]]
    assert router.choose(call, only="nobody") is None


def test_what_is_known_of_no_worker_cannot_be_ranked_by(monkeypatch: pytest.MonkeyPatch) -> None:
    class Policy(CostPolicy):
        ranked_by = ("cost_ms", "height")

    problem = r"Policy.ranked_by has 'height', expected some of ttft_ms, cost_ms, .*, tokens_missing"
    with pytest.raises(ValueError, match=problem):
        Router(Policy(), PlainView(), Ledger())
    monkeypatch.setattr(policies, "Mine", Policy, raising=False)
    with pytest.raises(ValueError, match=problem):
        load_routing("laban.cluster.routing.policies:Mine")


def test_a_choice_tells_of_workers_as_they_were() -> None:
    rng, view = random.Random(5), PlainView()
    ledger = random_fleet(rng, view, 30, 12)
    router = Router(CostPolicy(), view, ledger)
    call = random_call(rng, 12, 1)
    choice = router.choose(call)
    assert choice is not None
    before = choice.candidates()
    run_calls(rng, router, [random_call(rng, 12, number) for number in range(30)])
    for worker_id in list(ledger.accounts)[:10]:
        ledger.remove(worker_id)
        ledger.add(info_of(f"after-{worker_id}"))
    assert choice.candidates() == before


def test_what_only_lies_behind_counts_where_it_has_to_be_encoded() -> None:
    """Nobody has what the call reads; who has what that was made from encodes it the soonest."""
    view, ledger = PlainView(), Ledger()
    for name in "abc":
        ledger.add(info_of(name))
    view.on_device("root", "c", 400)
    whole = simple_call([("root", 400), ("child", 10)])
    call = type(whole)(whole.call_id, whole.family, 0, whole.needs, 0b10, 5, 5, 10)
    choice = Router(CostPolicy(), view, ledger).choose(call)
    assert choice is not None
    assert (choice.worker_id, choice.estimate.encoded) == ("c", 0b10)
    view.put("root", "c", (Tier.DISK, 0, 400))
    choice = Router(CostPolicy(), view, ledger).choose(call)
    assert choice is not None
    assert choice.estimate.missing == 0b11


WITHOUT = """
import sys
sys.modules["numba"] = None
import random
from test_routing_arrays import *
assert not hasattr(compiling.jit(len), "py_func")
for seed in range(12):
    rng, view = random.Random(seed), PlainView()
    router = Router(CostPolicy(), view, random_fleet(rng, view, 20, 12), Replication())
    for number in range(5):
        run_calls(rng, router, [random_call(rng, 12, number) for _ in range(3)])
        check_choice(router, random_call(rng, 12, number), number / 10)
"""


def test_without_numba_it_is_the_same() -> None:
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1] / "support"), os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-W", "error", "-c", WITHOUT], env=variables, check=True)


def test_with_nowhere_to_keep_it_it_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Numba:
        @staticmethod
        def njit(**options: object):
            if options.pop("cache", False):
                raise RuntimeError("cannot cache function: no locator available")
            return lambda function: (function, options)

    monkeypatch.setattr(compiling, "numba", Numba)
    assert compiling.jit(len) == (len, {})
    assert compiling.inlined(len) == (len, {"inline": "always"})


def test_a_slow_policy_of_ones_own_is_let_rest_and_asked_again() -> None:
    rng, view, failures, now_s, took_s = random.Random(6), PlainView(), [], [50.0], [0.0]

    class Slow:
        num_asked = 0

        def key(self, worker: WorkerView, call: CallView) -> tuple[float, ...]:
            self.num_asked += 1
            now_s[0] += took_s[0]
            return (-worker.queue_ms, worker.num_calls)  # not as `cost` has it

    ledger = random_fleet(rng, view, 12, 20)
    slow = Slow()
    own = Router(slow, view, ledger, on_failure=lambda: failures.append(1), clock=lambda: now_s[0])
    alone, cost = Router(Slow(), view, ledger), Router(CostPolicy(), view, ledger)
    calls = [random_call(rng, 20, number) for number in range(40)]

    def differ(call: CallView, expected: Router) -> bool:
        chosen, other = own.choose(call), expected.choose(call)
        assert chosen is not None
        assert other is not None
        return chosen.worker_id != other.worker_id

    took_s[0] = 0.008
    assert not any(differ(call, alone) for call in calls)
    assert any(differ(call, cost) for call in calls), "the two are told apart here"
    assert failures == []
    took_s[0], slow.num_asked = 0.06, 0
    assert not differ(calls[0], cost)
    assert slow.num_asked == 2, "given up, and not asked for the other workers"
    assert not any(differ(call, cost) for call in calls)
    now_s[0] += 20 * 0.12 - 0.01
    assert not any(differ(call, cost) for call in calls)
    assert (len(failures), slow.num_asked) == (81, 2)
    now_s[0] += 0.02
    took_s[0] = 0.001
    assert not any(differ(call, alone) for call in calls)
    assert len(failures) == 81


def test_a_call_that_a_policy_of_ones_own_has_no_key_for_goes_where_cost_says() -> None:
    rng, view, failures = random.Random(5), PlainView(), []
    ledger = random_fleet(rng, view, 12, 20)
    own = Router(SometimesNoRouting(), view, ledger, on_failure=lambda: failures.append(1))
    cost = Router(CostPolicy(), view, ledger)
    for number in range(60):
        call, before = random_call(rng, 20, number), len(failures)
        choice, expected = own.choose(call), cost.choose(call)
        assert choice is not None
        assert expected is not None
        if len(failures) > before:
            assert (choice.worker_id, choice.candidates()) == (expected.worker_id, expected.candidates())
        assert next(each.worker_id for _, each in choice.candidates()) == choice.worker_id
    assert len(failures) == 60  # of each twelve workers it misses one at least
    with pytest.raises(PolicyFailed, match="returned None"):
        Router(NeverRouting(), view, ledger).choose(random_call(rng, 20, 99))  # a simulation says so
