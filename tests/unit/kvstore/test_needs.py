"""What a worker is told of uses, and what its eviction policy hears of it."""

from __future__ import annotations

from laban.kvstore.eviction import Evictable
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
