"""Policies: which of several encodings goes first, and how a policy is found by its name."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laban.kvstore.eviction import CostPolicy, Evictable, EvictionPolicy, LruPolicy, load_policy

NOW_S = 1000.0
ITEM = Evictable(
    encoding_id="a",
    num_tokens=100,
    num_bytes=1000,
    last_use_s=NOW_S - 10,
    next_use_s=None,
    steps=None,
    likelihood=0.0,
    fixed=False,
    bring_back_s=0.1,
)


def item(name: str, **changes: Any) -> Evictable:
    return replace(ITEM, encoding_id=name, **changes)


def order(policy: str, *items: Evictable) -> str:
    """The ids, first to go first."""
    made = load_policy(policy, simulated=True)
    return "".join(each.encoding_id for each in sorted(items, key=lambda each: made.key(each, NOW_S)))


def sure(name: str, in_s: float, **changes: Any) -> Evictable:
    return item(name, **{"next_use_s": NOW_S + in_s, "steps": 1, "likelihood": 1.0, **changes})


def test_lru_goes_by_last_use_alone() -> None:
    assert order("lru", sure("a", 1, last_use_s=5.0), item("b", last_use_s=3.0), item("c", last_use_s=4.0)) == "bca"


def test_steps_lets_varying_parts_go_first_then_fixed_ones_by_distance() -> None:
    varying = sure("v", 1, last_use_s=NOW_S)
    unknown = item("u", fixed=True, last_use_s=NOW_S)
    far, near = sure("f", 9, fixed=True, steps=9), sure("n", 1, fixed=True, steps=0)
    assert order("steps", near, far, unknown, varying) == "vufn"


def test_steps_breaks_ties_by_recency() -> None:
    older, newer = (sure(name, 1, fixed=True, steps=2, last_use_s=at) for name, at in (("o", 1.0), ("n", 2.0)))
    assert order("steps", newer, older) == "on"
    assert order("steps", item("y", last_use_s=2.0), item("x", last_use_s=1.0)) == "xy"


def test_belady_goes_by_the_true_next_use() -> None:
    assert order("belady", item("a", true_next_use_s=1.0), item("b", true_next_use_s=2.0), item("c")) == "cba"


def test_cost_lets_go_first_what_nobody_reads_again() -> None:
    assert order("cost", sure("far", 100), item("dead"), sure("near", 1)) == "deadfarnear"


def test_cost_keeps_what_is_dear_to_bring_back_by_the_byte() -> None:
    assert order("cost", sure("a", 5, bring_back_s=0.2), sure("b", 5, bring_back_s=0.02)) == "ba"
    assert order("cost", sure("a", 5, num_bytes=100), sure("b", 5, num_bytes=1000)) == "ba"
    # Cheap by ten times, but needed sooner by a hundred.
    assert order("cost", sure("a", 0.5, bring_back_s=0.02), sure("b", 50, bring_back_s=0.2)) == "ba"


def test_cost_doubts_what_is_unlikely() -> None:
    assert order("cost", sure("a", 5, likelihood=0.2), sure("b", 8)) == "ab"


def test_cost_keeps_for_a_while_what_is_overdue_and_then_lets_it_fade() -> None:
    """An interval of 100 s: a little late it should come any moment; late by many times that it will not."""
    late = [sure(name, -by, last_use_s=NOW_S - 100 - by) for name, by in (("x", 5000), ("y", 500), ("z", 20))]
    assert order("cost", *late) == "xyz"
    assert order("cost", sure("soon", 60, last_use_s=NOW_S - 40), late[2]) == "soonz"
    assert order("cost", sure("soon", 60, last_use_s=NOW_S - 40), late[1]) == "ysoon"
    assert order("cost", item("chat", last_use_s=NOW_S - 1), late[0]) == "xchat"


def test_cost_keeps_what_was_brought_for_a_use_and_not_used_yet() -> None:
    brought = sure("brought", 5, last_use_s=-inf)
    assert order("cost", brought, sure("far", 50), item("unused", last_use_s=-inf)) == "unusedfarbrought"
    late = sure("late", -5, last_use_s=-inf)
    assert order("cost", late, item("chat", last_use_s=NOW_S - 5)) == "chatlate"


def test_cost_lets_what_was_taken_back_go_before_what_nobody_spoke_of() -> None:
    spoken = item("spoken", withdrawn=True, last_use_s=NOW_S - 1)
    assert order("cost", item("silent", last_use_s=NOW_S - 30), spoken) == "spokensilent"


def test_cost_keeps_what_comes_back_again_and_again() -> None:
    once, never = (item(name, withdrawn=True, last_use_s=NOW_S - 20) for name in ("once", "never"))
    once = replace(once, num_returns=1, since_s=NOW_S - 500)
    often = replace(once, encoding_id="often", num_returns=50)
    assert order("cost", often, once, never) == "neveronceoften"


plain = st.builds(
    item,
    st.just("i"),
    last_use_s=st.one_of(st.just(-inf), st.floats(0, NOW_S)),
    next_use_s=st.one_of(st.none(), st.floats(0, 2 * NOW_S)),
    likelihood=st.floats(0, 1),
    steps=st.one_of(st.none(), st.integers(0, 50)),
    fixed=st.booleans(),
    withdrawn=st.booleans(),
    num_returns=st.integers(0, 9),
    since_s=st.floats(0, NOW_S),
    num_bytes=st.integers(1, 1 << 40),
    bring_back_s=st.floats(0, 100),
    true_next_use_s=st.one_of(st.none(), st.floats(NOW_S, 2 * NOW_S)),
)


@given(plain, plain, st.sampled_from(["lru", "steps", "cost", "belady"]))
def test_every_key_can_be_compared_and_is_a_number(left: Evictable, right: Evictable, name: str) -> None:
    policy = load_policy(name, simulated=True)
    keys = policy.key(left, NOW_S), policy.key(right, NOW_S)
    assert all(part == part for key in keys for part in key), "not a number"
    assert keys[0] < keys[1] or keys[1] <= keys[0]


@given(st.lists(st.integers(0, 900), min_size=1, unique=True))
def test_cost_is_lru_where_nothing_is_announced_and_all_cost_the_same(times: list[int]) -> None:
    items = [item(str(at), last_use_s=float(at)) for at in times]
    by = {name: sorted(items, key=lambda each: name.key(each, NOW_S)) for name in (CostPolicy(), LruPolicy())}
    assert len({tuple(each.encoding_id for each in ordered) for ordered in by.values()}) == 1


@given(st.lists(st.integers(1, 900), min_size=1, unique=True))
def test_cost_goes_by_farthest_use_where_all_is_announced_and_costs_the_same(waits: list[int]) -> None:
    items = [sure(str(wait), wait) for wait in waits]
    assert order("cost", *items) == "".join(str(wait) for wait in sorted(waits, reverse=True))


class Own:
    def key(self, item: Evictable, now_s: float) -> tuple[float, ...]:
        return (-item.num_bytes,)


def test_a_users_own_policy_is_found_by_its_path() -> None:
    made: EvictionPolicy = load_policy(f"{__name__}:Own")
    assert made.key(ITEM, NOW_S) == (-1000,)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mru", "expected cost, steps, lru or package.module:Class"),
        ("belady", "simulations only"),
        ("no.such.module:Own", "ModuleNotFoundError"),
    ],
)
def test_a_name_that_is_no_policy_is_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_policy(name)
