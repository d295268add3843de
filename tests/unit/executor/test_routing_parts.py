"""The parts that the router goes by: rates, the ledger, the key of each policy, when a copy pays."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from routing_world import PlainView, full_search, info_of, shares_of, simple_call

from laban.actors.calls import WorkerLoad, WorkerRates
from laban.actors.reach import Reach
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policies import POLICIES, CostPolicy, load_routing
from laban.cluster.routing.policy import WorkerView
from laban.cluster.routing.rates import ASSUMED, NEVER, Pace, Rates
from laban.cluster.routing.replication import MAX_HOT, Replication
from laban.cluster.routing.router import Router
from laban.kvstore.placements import PlacementState, Tier

MEASURED = WorkerRates(2000.0, 0.01, 1e6, 5e5, 2e5)
"""With 1000 bytes a token: 0.5 ms to encode one, 1 ms to load it, 3 from disk, 6 from a peer."""


def fleet(*names: str, rates: WorkerRates = MEASURED, fetches: bool = True) -> tuple[PlainView, Ledger]:
    view, ledger = PlainView(), Ledger()
    for name in names:
        ledger.report(ledger.add(info_of(name, fetches=fetches)), WorkerLoad(num_free_pages=5), rates)
    return view, ledger


# Rates


def test_a_worker_is_as_fast_as_it_says():
    rates = Rates()
    rates.add(info_of("a", fetches=True))
    assert rates.report("a", MEASURED)
    assert rates.pace("a") == Pace(500_000, 10_000_000, 1_000_000, 3_000_000, 6_000_000, 8_000_000)
    assert not rates.report("a", MEASURED)


def test_without_a_word_of_it_a_worker_is_as_fast_as_others_and_nobody_as_was_assumed():
    rates = Rates()
    rates.add(info_of("a"))
    assert rates.pace("a").encode_ns == round(1e9 / ASSUMED.encode_tokens_per_s)
    rates.add(info_of("b", "another make"))
    rates.report("b", WorkerRates(encode_tokens_per_s=4000.0))
    assert rates.pace("a").encode_ns == 250_000
    rates.add(info_of("c"))
    rates.report("c", WorkerRates(encode_tokens_per_s=1000.0))
    assert rates.pace("a").encode_ns == 1_000_000, "its own make tells more"
    rates.remove("c")
    rates.remove("b")
    assert rates.pace("a").encode_ns == round(1e9 / ASSUMED.encode_tokens_per_s)


def test_rates_are_learned_from_calls_until_the_worker_says_them():
    rates = Rates(weight=0.5)
    rates.add(info_of("a"))
    assert rates.observe("a", 100, 100.0)
    assert rates.pace("a").encode_ns == 1_000_000
    rates.observe("a", 300, 100.0)
    rates.observe("a", 3, 0.001)  # so few say nothing of the rate
    assert rates.pace("a").encode_ns == 500_000
    rates.report("a", WorkerRates(encode_tokens_per_s=4000.0))
    assert rates.pace("a").encode_ns == 250_000
    rates.observe_call(100.0)
    rates.observe_call(200.0)
    assert rates.call_ms == pytest.approx(105.0)


def test_a_worker_that_cannot_fetch_never_does():
    rates = Rates()
    rates.add(info_of("a", fetches=False))
    rates.report("a", MEASURED)
    assert rates.pace("a").peer_ns == NEVER


def test_each_transport_has_its_rate_and_what_was_never_tried_is_hoped_for():
    rates = Rates()
    near, far = (Reach(machine, ("cma", "nixl", "object_store")) for machine in ("m", "n"))
    for worker_id, reach in (("a", near), ("b", near), ("c", far), ("d", Reach())):
        rates.add(replace(info_of(worker_id, fetches=True), reach=reach, bytes_per_token=1000))
    load_ns = 250  # at the 4 GB/s that are assumed
    hoped_ns = 125 + load_ns
    assert [rates.fetch_ns("a", each) for each in "bcd"] == [hoped_ns, hoped_ns, 2000 + load_ns]
    assert rates.pace("a").peer_ns == rates.pace("c").peer_ns == hoped_ns
    assert rates.pace("d").peer_ns == 2000 + load_ns
    rates.report("a", WorkerRates(peer_bytes_per_s=2e9, cma_bytes_per_s=5e9, nixl_bytes_per_s=1e9))
    assert [rates.fetch_ns("a", each) for each in "bcd"] == [200 + load_ns, 1000 + load_ns, 500 + load_ns]
    assert rates.pace("a").peer_ns == 500 + load_ns, "all are measured"
    rates.report("a", WorkerRates(peer_bytes_per_s=2e9, object_store_bytes_per_s=1e8))
    assert rates.fetch_ns("a", "d") == 10_000 + load_ns


def test_a_transport_counts_where_another_worker_has_it():
    rates = Rates()
    for worker_id, reach in (("a", Reach("m", ("cma", "nixl"))), ("b", Reach("n", ("cma",)))):
        rates.add(replace(info_of(worker_id, fetches=True), reach=reach))
    alone_ns = rates.pace("a").peer_ns
    rates.add(replace(info_of("c", fetches=True), reach=Reach("m", ("cma", "nixl"))))
    assert rates.pace("a").peer_ns < alone_ns == rates.pace("b").peer_ns
    rates.report("a", WorkerRates(peer_bytes_per_s=1e9, cma_bytes_per_s=1e9))
    assert rates.pace("a").peer_ns == rates.fetch_ns("a", "c"), "NIXL is not what serves there"
    rates.remove("c")
    rates.add(replace(info_of("c", fetches=True), reach=Reach("o", ("nixl",))))
    assert rates.pace("a").peer_ns == rates.fetch_ns("a", "c") < rates.pace("b").peer_ns


def test_who_does_not_know_its_machine_reads_nobody_by_cma():
    rates = Rates()
    for worker_id, machine in (("a", ""), ("b", ""), ("c", "m")):
        rates.add(replace(info_of(worker_id, fetches=True), reach=Reach(machine, ("cma", "object_store"))))
    rates.report("a", WorkerRates(peer_bytes_per_s=1e9))
    assert rates.pace("a").peer_ns == rates.fetch_ns("a", "b") == rates.fetch_ns("a", "c")


def test_noise_makes_no_difference_and_a_slow_worker_does():
    rng, rates = random.Random(1), Rates()
    for number in range(20):
        rates.add(info_of(f"w{number}"))
        rates.report(f"w{number}", WorkerRates(encode_tokens_per_s=1000.0 * rng.uniform(0.9, 1.1)))
    assert len({rates.pace(f"w{number}") for number in range(20)}) == 1
    version = rates.version
    rates.report("w3", WorkerRates(encode_tokens_per_s=500.0))
    assert rates.pace("w3").encode_ns > 1.7 * rates.pace("w4").encode_ns
    assert rates.version == version, "one of twenty does not make the others slower"
    for number in range(20):
        rates.report(f"w{number}", WorkerRates(encode_tokens_per_s=2000.0))
    assert rates.version > version
    assert rates.pace("w3").encode_ns == pytest.approx(500_000, rel=0.06)


# The ledger


class LedgerMachine(RuleBasedStateMachine):
    """Workers come, go, close, and report; calls are sent, start, end, and outlive their workers."""

    def __init__(self) -> None:
        super().__init__()
        self.view = PlainView()
        self.router = Router(load_routing("cost"), self.view, Ledger(), Replication())
        self.ledger = self.router.ledger
        self.sent: list = []
        self.count = 0

    @rule(name=st.sampled_from("abcdef"))
    def come_or_go(self, name: str) -> None:
        if name in self.ledger.accounts:
            self.ledger.remove(name)
        else:
            self.ledger.add(info_of(name, fetches=True))

    @precondition(lambda self: self.ledger.accounts)
    @rule(data=st.data(), is_open=st.booleans())
    def close_or_open(self, data, is_open: bool) -> None:
        self.ledger.set_open(data.draw(st.sampled_from(list(self.ledger.accounts.values()))), is_open)

    @precondition(lambda self: self.ledger.accounts)
    @rule(data=st.data(), rate=st.sampled_from([0.0, 1000.0, 1010.0, 300.0]), blocked=st.sampled_from([0, 0, 3]))
    def report(self, data, rate: float, blocked: int) -> None:
        account = data.draw(st.sampled_from(list(self.ledger.accounts.values())))
        self.ledger.report(account, WorkerLoad(num_running=1, num_blocked=blocked), WorkerRates(rate, 0.001))

    @precondition(lambda self: self.ledger.accounts)
    @rule(data=st.data(), name=st.sampled_from(["x", "y"]), tier=st.sampled_from(list(Tier)))
    def place(self, data, name: str, tier: Tier) -> None:
        worker_id = data.draw(st.sampled_from(list(self.ledger.accounts)))
        self.view.put(name, worker_id, (tier, PlacementState.READY, 50))

    @rule(
        needs=st.lists(st.sampled_from(["x", "y", "z"]), unique=True, max_size=3),
        family=st.sampled_from("pq"),
        makes=st.sampled_from([0, 20]),
    )
    def send(self, needs: list[str], family: str, makes: int) -> None:
        self.count += 1
        call = simple_call(
            [(name, 50) for name in needs], 10 if makes else 0, f"{family}/{self.count}", makes, successors=(("y", 50),)
        )
        choice = self.router.choose(call, float(self.count))
        assert (choice is None) == (not self.ledger.num_open)
        if choice is not None:
            best, _ = full_search(self.router, call)
            assert choice.worker_id == best
            self.sent.append(self.router.send(call, choice, float(self.count)))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def start(self, data) -> None:
        self.ledger.started(data.draw(st.sampled_from(self.sent)))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), twice=st.booleans())
    def end(self, data, twice: bool) -> None:
        sent = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
        self.ledger.observe(sent, 50, 40.0, 60.0)
        self.ledger.ended(sent)
        if twice:
            self.ledger.ended(sent)

    @invariant()
    def it_adds_up(self) -> None:
        ledger = self.ledger
        ledger.check_integrity()
        for account in ledger.accounts.values():
            here = [sent for sent in self.sent if sent.account is account]
            assert account.num_calls == len(here)
            assert account.queued_tokens == sum(sent.queued_tokens for sent in here if not sent.started)
            assert account.link_ns == sum(sent.link_ns for sent in here if not sent.started)

    def teardown(self) -> None:
        for sent in self.sent:
            self.ledger.ended(sent)
        self.ledger.check_integrity()
        assert not self.ledger.coming
        assert not any(self.ledger.being_made(family) for family in "pq")
        assert all(account.num_fetching == 0 for account in self.ledger.accounts.values())


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLedger = LedgerMachine.TestCase


def test_a_queue_is_what_is_to_be_encoded_what_decodes_and_the_iteration_under_way():
    view, ledger = fleet("a")
    router = Router(CostPolicy(), view, ledger)
    account = ledger.accounts["a"]
    assert account.queue_ms == 0
    call = simple_call([("x", 100)], own_tokens=20)
    sent = router.send(call, router.choose(call))
    assert account.queue_ms == 60, "which is longer than an iteration"
    ledger.started(sent)
    assert account.queue_ms == 11, "half a millisecond for its row, and the iteration"
    ledger.rates.observe_call(400.0)
    ledger.report(account, WorkerLoad(num_running=2, num_waiting=3, num_blocked=3), MEASURED)
    assert account.queue_ms == 611, "three go before it, one each 200 ms"
    another = router.send(call, router.choose(call))
    ledger.started(another)
    ledger.ended(sent)
    assert account.queue_ms == 411, "one of them has begun"
    ledger.report(account, WorkerLoad(num_running=2, num_waiting=3, num_blocked=3), MEASURED)
    assert account.queue_ms == 611
    ledger.ended(another)
    assert account.queue_ms == 0


def test_calls_of_a_family_that_make_nothing_end_one_after_the_other():
    view, ledger = fleet("a")
    router = Router(load_routing("cost"), view, ledger)
    calls = [
        simple_call([("x", 50)], 0, f"p/{number}", output_tokens) for number, output_tokens in enumerate((0, 20, 0))
    ]
    sent = [router.send(call, router.choose(call)) for call in calls]
    for each in sent:
        ledger.ended(each)
    assert not ledger.being_made("p")


def test_turns_go_round_in_the_order_of_ids_whoever_comes_and_goes():
    _, ledger = fleet("b", "d", "a")
    router = Router(load_routing("round_robin"), PlainView(), ledger)
    order = []
    for step in range(8):
        if step == 3:
            ledger.add(info_of("c"))
        if step == 5:
            ledger.remove("a")
        if step == 6:
            ledger.set_open(ledger.accounts["c"], False)
        call = simple_call([], call_id=f"wf/{step}")
        choice = router.choose(call)
        order.append(choice.worker_id)
        ledger.ended(router.send(call, choice))
    assert order == ["a", "b", "d", "a", "b", "c", "d", "b"]


# Estimates


def estimate_at(held: dict[str, Tier], needs, **options):
    """TTFT of a call at worker a, which holds that; b has everything on its device if `peer`."""
    view, ledger = fleet("a", "b", fetches=options.get("fetches", True), rates=options.get("rates", MEASURED))
    for name, tokens in needs:
        if name in held:
            view.put(name, "a", (held[name], PlacementState.READY, tokens))
        if options.get("peer"):
            view.on_device(name, "b", tokens)
    ledger.set_open(ledger.accounts["b"], False)
    router = Router(CostPolicy(), view, ledger)
    choice = router.choose(simple_call(needs, own_tokens=10))
    return choice.candidates()[0][1], choice


SLOW_TO_ENCODE = WorkerRates(100.0, 0.01, 1e6, 5e5, 2e5)  # 10 ms a token


def test_each_missing_encoding_comes_in_the_cheapest_way():
    needs = [("device", 100), ("host", 100), ("disk", 100), ("nowhere", 100)]
    held = {"device": Tier.DEVICE, "host": Tier.HOST, "disk": Tier.DISK}
    seen, choice = estimate_at(held, needs, rates=SLOW_TO_ENCODE)
    assert (seen.tokens_host, seen.tokens_disk, seen.tokens_peer, seen.tokens_encode) == (100, 100, 0, 110)
    assert seen.load_ns == (100 + 300) * 1_000_000
    assert seen.ttft_ms == 1000 + 100, "loading goes beside encoding, then come the call's own tokens"
    assert not choice.sources
    seen, choice = estimate_at(held, needs, rates=SLOW_TO_ENCODE, peer=True)
    assert (seen.tokens_host, seen.tokens_disk, seen.tokens_peer, seen.tokens_encode) == (100, 100, 100, 10)
    assert seen.ttft_ms == 100 + 300 + 600 + 100
    [source] = choice.sources
    assert (source.encoding_id, source.worker_id, source.transfer_s) == ("nowhere", "b", 0.6)
    seen, choice = estimate_at(held, needs, peer=True)  # 0.5 ms a token to encode: nothing pays but what is there
    assert (seen.tokens_encode, choice.sources) == (310, ())


def test_a_busy_peer_sends_more_slowly_and_the_idlest_is_asked():
    view, ledger = fleet("a", "b", "c", rates=SLOW_TO_ENCODE)
    for holder in ("b", "c"):
        view.on_device("x", holder, 100)
        ledger.set_open(ledger.accounts[holder], False)
    router = Router(CostPolicy(), view, ledger)
    call = simple_call([("x", 100)], own_tokens=0)
    ledger.fetch(ledger.accounts["b"], 2)
    choice = router.choose(call)
    assert choice.candidates()[0][1].ttft_ms == 600
    assert [source.worker_id for source in choice.sources] == ["c"]
    ledger.fetch(ledger.accounts["c"], 1)
    choice = router.choose(call)
    assert choice.candidates()[0][1].tokens_encode == 100, "two at once take longer than encoding"
    assert not choice.sources


@pytest.mark.parametrize(("machine", "transfer_s"), [("m", 0.6), ("n", 0.9)])
def test_a_transfer_takes_as_long_as_the_transport_between_the_two(machine: str, transfer_s: float):
    view, ledger = PlainView(), Ledger()
    rates = replace(SLOW_TO_ENCODE, cma_bytes_per_s=2e5, object_store_bytes_per_s=1.25e5)
    for name, place in (("a", "m"), ("b", machine)):
        info = replace(info_of(name, fetches=True), reach=Reach(place, ("cma", "object_store")))
        ledger.report(ledger.add(info), WorkerLoad(num_free_pages=5), rates)
    view.on_device("x", "b", 100)
    ledger.set_open(ledger.accounts["b"], False)
    [source] = Router(CostPolicy(), view, ledger).choose(simple_call([("x", 100)], own_tokens=0)).sources
    assert (source.worker_id, source.transfer_s) == ("b", transfer_s)


def test_what_is_evicted_is_encoded_with_the_ancestors_that_went_with_it():
    view, ledger = fleet("a", fetches=False)
    router = Router(CostPolicy(), view, ledger)
    sizes = {"root": 5, "parent": 30, "child": 7}
    call = simple_call(list(sizes.items()))
    direct = type(call)(call.call_id, call.family, 0, call.needs, 0b100, 0, 0, 7)  # reads the child alone
    for device, tokens in ((0b000, 42), (0b001, 37), (0b011, 7), (0b111, 0), (0b010, 12)):
        for at, name in enumerate(sizes):
            if device >> at & 1:
                view.on_device(name, "a", sizes[name])
            else:
                view.put(name, "a")
        assert router.choose(direct).estimate.tokens_encode == tokens


# Policies

IDLE = WorkerView("a", 100, 100, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 100)


def best(policy: str, *workers: WorkerView) -> str:
    call = simple_call([])
    return min(workers, key=lambda each: (POLICIES[policy]().key(each, call), each.worker_id)).worker_id


@pytest.mark.parametrize(
    ("policy", "better"),
    [
        ("cost", {"cost_ms": 99}),
        ("cost", {"cost_ms": 99, "ttft_ms": 300, "left_tokens": 50}),
        ("cost", {"left_tokens": -1, "num_calls": 7}),
        ("cost", {"num_calls": -1}),
        ("prefix_affinity", {"tokens_encode": 99, "queue_ms": 9999}),
        ("prefix_affinity", {"queue_ms": -1}),
        ("least_loaded", {"queue_ms": -1, "tokens_encode": 9999}),
        ("round_robin", {"turns": -1, "queue_ms": 9999}),
    ],
)
def test_what_each_policy_goes_by(policy, better):
    assert best(policy, IDLE, IDLE._replace(worker_id="b", **better)) == "b"
    assert best(policy, IDLE, IDLE._replace(worker_id="b")) == "a"


def test_fan_outs_stay_by_what_they_share_and_joins_do_not_straddle():
    """Two workers have what each vote reads. Reading the others' votes will take longer than the queue there."""
    view, ledger = fleet("a", "b")
    for name in ("a", "b"):
        view.on_device("task", name, 50)
    router = Router(CostPolicy(), view, ledger)

    def vote(number: int, **fields):
        call = simple_call([("task", 50)], own_tokens=2, call_id=f"wf-1/vote[{number}]", output_tokens=60, **fields)
        return router.send(call, router.choose(call))

    votes = [vote(number, foreseen=True) for number in range(4)]
    assert {each.account.worker_id for each in votes} == {"a"}
    assert votes[3].account.queue_ms < 60 * 3 * 0.5, "so much is left to do elsewhere"
    assert vote(4).account.worker_id == "b", "if nobody knows that they will be read together, the queue decides"
    other = simple_call([("task", 50)], own_tokens=2, call_id="wf-2/vote", foreseen=True)
    assert router.choose(other).worker_id == "b"
    for number, each in enumerate(votes):
        ledger.ended(each)
        view.on_device(f"vote{number}", "a", 60)
    more = tuple((f"vote{number}", 60) for number in range(4))
    later = simple_call([("task", 50)], call_id="wf-1/more", successors=more, foreseen=True)
    assert router.choose(later).worker_id == "a"
    busy = simple_call([], own_tokens=300, call_id="wf-3/x")
    ledger.set_open(ledger.accounts["b"], False)
    router.send(busy, router.choose(busy))
    ledger.set_open(ledger.accounts["b"], True)
    assert router.choose(later).worker_id == "b", "a queue of 160 ms is longer than that is worth"


def test_of_places_as_good_where_most_lies_that_may_be_read_later_then_where_fewest_calls_are():
    view, ledger = fleet("a", "b", "c")
    router = Router(CostPolicy(), view, ledger)
    view.on_device("y", "b", 30)
    assert router.choose(simple_call([("x", 50)], successors=(("y", 30),))).worker_id == "b"
    assert router.choose(simple_call([("x", 50)])).worker_id == "a"
    for account in ledger.accounts.values():  # too fast for a queue of a millisecond
        ledger.report(account, account.load, WorkerRates(1e9, 1e-9, 1e12, 1e12, 1e12))
    router.send(call := simple_call([("x", 50)]), router.choose(call))
    view.on_device("x", "b", 50)
    view.on_device("x", "c", 50)
    assert router.choose(simple_call([("x", 50)])).worker_id == "a", "its workflow's other call is there"
    assert router.choose(simple_call([("x", 50)], call_id="wf-2/a")).worker_id == "b"


def test_policies_by_name(monkeypatch):
    assert isinstance(load_routing("cost"), CostPolicy)
    with pytest.raises(ValueError, match="expected cost, prefix_affinity, least_loaded, round_robin or package"):
        load_routing("best")
    with pytest.raises(ValueError, match="cannot import 'nowhere'"):
        load_routing("nowhere:Policy")


# Replication


def test_a_copy_pays_once_readers_have_waited_longer_than_it_takes():
    replication = Replication(half_life_s=10.0)
    assert not replication
    assert replication.share("m", 100.0, 0.0) == 1.0
    for _ in range(5):
        replication.read(["m"], 30.0, 0.0)
    assert replication.share("m", 200.0, 0.0) == 1.0
    assert replication.share("m", 100.0, 0.0) == pytest.approx(1 / 6)
    assert replication.share("m", 100.0, 10.0) == 1.0, "half of the 150 ms are forgotten"
    assert replication.share("m", 70.0, 10.0) == pytest.approx(1 / 3.5)
    assert replication.share("other", 1.0, 0.0) == 1.0


def test_short_waits_and_cool_messages_are_forgotten():
    replication = Replication()
    replication.read(["m"], 0.5, 0.0)
    assert not replication
    replication.read([f"cool{n}" for n in range(MAX_HOT)], 2.0, 0.0)
    replication.read(["hot"], 50.0, 0.0)
    assert len(replication._reads) <= MAX_HOT // 2 + 1
    assert replication.share("hot", 40.0, 0.0) == 0.5


def readers_at(replicate: bool) -> tuple[int, float]:
    """Readers of one long message, one each 12 ms, who each keep their worker busy for 20: (holders, waits in ms)."""
    view, ledger = fleet("a", "b", "c", rates=WorkerRates(1000.0, 1e-6, 1e9, 1e9, 1.3e6))
    view.on_device("hot", "a", 100)  # 77 ms to fetch, 100 to encode
    router = Router(CostPolicy(), view, ledger, Replication() if replicate else None)
    running, waits = [], 0.0
    for number in range(60):
        now_s = 0.012 * number
        for ends_s, sent, worker_id in [each for each in running if each[0] <= now_s]:
            ledger.ended(sent)
            view.on_device("hot", worker_id, 100)
            running.remove((ends_s, sent, worker_id))
        call = simple_call([("hot", 100)], own_tokens=20, call_id=f"wf-{number}/a", output_tokens=0)
        choice = router.choose(call, now_s)
        _, full = full_search(router, call, shares_of(router, call, now_s))
        assert {seen.worker_id: seen for _, seen in choice.candidates()}.items() <= full.items()
        ttft_ms = full[choice.worker_id].ttft_ms
        waits += ttft_ms - 20
        free_s = max([now_s, *(ends_s for ends_s, _, worker_id in running if worker_id == choice.worker_id)])
        busy_s = (choice.estimate.fetch_ns + choice.estimate.encode_ns) / 1e9 + 0.020
        running.append((free_s + busy_s, router.send(call, choice, now_s), choice.worker_id))
    return len(view.placements["hot"]), waits


def test_hot_messages_spread_earlier_than_each_reader_would_see_to_itself():
    holders, waits = readers_at(replicate=False)
    spread, fewer = readers_at(replicate=True)
    assert spread >= 2
    assert spread >= holders
    assert fewer < waits
