"""What a worker is told of uses, and what its eviction policy hears of it."""

from __future__ import annotations

from laban.kvstore.eviction import CostPolicy, Evictable
from laban.kvstore.needs import Needs
from laban.kvstore.uses import Use


class Listening:
    def __init__(self) -> None:
        self.heard: list[Evictable] = []

    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        self.heard.append(item)
        return (0.0,)


def heard(needs: Needs, policy: Listening, encoding_id: str) -> Evictable:
    needs.order_of(encoding_id, 10, 0.0, 0.5)
    return policy.heard[-1]


def test_a_use_is_dated_when_it_is_told() -> None:
    policy = Listening()
    needs = Needs(policy, 100)
    needs.now_s = 50.0
    needs.take_uses([("a", Use(steps=2, in_s=7.0, likelihood=0.5))])
    item = heard(needs, policy, "a")
    assert (item.next_use_s, item.steps, item.likelihood, item.num_bytes) == (57.0, 2, 0.5, 1000)
    assert not item.withdrawn


def test_what_is_taken_back_is_told_from_what_nobody_spoke_of() -> None:
    policy = Listening()
    needs = Needs(policy, 100)
    needs.take_uses([("a", Use(1, 1.0)), ("a", None)])
    assert heard(needs, policy, "a").withdrawn
    assert heard(needs, policy, "a").next_use_s is None
    assert not heard(needs, policy, "b").withdrawn
    needs.take_uses([("a", Use(1, 1.0))])
    assert not heard(needs, policy, "a").withdrawn


def test_what_comes_back_after_it_was_taken_back_is_counted() -> None:
    policy = Listening()
    needs = Needs(policy, 100)
    use = Use(1, 1.0)
    for now_s, told in ((5.0, use), (7.0, None), (8.0, use), (9.0, use), (10.0, None), (12.0, use)):
        needs.now_s = now_s
        needs.take_uses([("a", told)])
    item = heard(needs, policy, "a")
    assert (item.num_returns, item.since_s, item.withdrawn) == (2, 7.0, False)
    assert heard(needs, policy, "b").num_returns == 0


def test_what_a_run_has_read_last_is_as_what_was_taken_back() -> None:
    policy = Listening()
    needs = Needs(policy, 100)
    needs.now_s = 3.0
    needs.take_over(["a", "b"])
    item = heard(needs, policy, "a")
    assert (item.withdrawn, item.num_returns, item.since_s) == (True, 0, 3.0)
    needs.take_uses([("b", Use(1, 1.0))])
    assert heard(needs, policy, "b").num_returns == 1  # somebody comes back to it
    needs.take_over(["b"])  # but not the one that has it ahead
    assert not heard(needs, policy, "b").withdrawn


def test_each_further_run_that_has_read_it_last_came_back_to_it_once() -> None:
    policy = Listening()
    needs = Needs(policy, 100)
    needs.take_over(["a"])
    needs.take_over(["a"])  # read by another one that nobody had announced
    assert heard(needs, policy, "a").num_returns == 1
    needs.take_uses([("a", Use(1, 1.0))])  # by a third
    needs.take_uses([("a", None)])
    needs.take_over(["a"])
    item = heard(needs, policy, "a")
    assert (item.withdrawn, item.num_returns) == (True, 2)


def test_what_is_over_goes_before_what_nobody_spoke_of() -> None:
    needs = Needs(CostPolicy(), 100)
    needs.now_s = 100.0
    needs.take_over(["made"])
    prompt = needs.order_of("prompt", 10, 80.0, 0.5)
    assert needs.order_of("made", 10, 99.0, 0.5) < prompt < needs.order_of("made later", 10, 99.0, 0.5)
    needs.take_over(["made"])  # it came back
    assert needs.order_of("made", 10, 99.0, 0.5) > prompt


def test_pins_whose_time_is_over_are_forgotten_though_nobody_asks_for_them() -> None:
    needs = Needs(Listening(), 100)
    needs.take_pins([("long", 1e6)])
    for number in range(1000):
        needs.take_pins([(f"short {number}", 0.5)])
        needs.now_s += 1.0
    assert needs.is_pinned("long")
    assert len(needs._pinned_until_s) < 100
