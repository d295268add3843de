"""Which prefetches are begun, in which order, when, and which are given up."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from laban.cluster.routing.prefetch import (
    Lack,
    PrefetchLimits,
    PrefetchPlan,
    Room,
    Wanted,
    plan_prefetches,
)

LIMITS = PrefetchLimits()
FULL = Room(0, 10_000)
EMPTY = Room(10_000, 10_000)


def plan(
    *wanted: Wanted,
    room: Room = EMPTY,
    flights: dict[tuple[str, str], Lack] | None = None,
    is_used: Callable[[str], bool] = lambda encoding_id: True,
    limits: PrefetchLimits = LIMITS,
) -> PrefetchPlan:
    return plan_prefetches(wanted, {"w0": room, "w1": room}, flights or {}, is_used, limits)


def begun(made: PrefetchPlan) -> str:
    return " ".join(start.lack.encoding_id for start in made.starts)


def wants(reader: str, in_s: float, *ids: str, likelihood: float = 1.0, worker: str = "w0", bring_s: float = 0.1):
    return Wanted(reader, worker, in_s, likelihood, tuple(Lack(each, 100, bring_s) for each in ids))


def test_what_is_needed_first_is_brought_first_in_the_order_of_its_view() -> None:
    made = plan(wants("late", 2.0, "c", "a"), wants("soon", 1.0, "b", "a"))
    assert begun(made) == "b a c"
    assert [start.reader for start in made.starts] == ["soon", "soon", "late"]


def test_where_there_is_no_room_nothing_is_begun_before_it_must_be() -> None:
    assert begun(plan(wants("r", 10.0, "a"), room=FULL)) == ""
    assert begun(plan(wants("r", 10.0, "a"), room=EMPTY)) == "a"
    assert begun(plan(wants("r", 0.5, "a"), room=FULL)) == "a"
    # What takes long is begun early, and so is what has to wait for what is under way.
    assert begun(plan(wants("r", 10.0, "a", bring_s=6.0), room=FULL)) == "a"
    under_way = {("w0", "z"): Lack("z", 100, 1.5)}
    assert begun(plan(wants("r", 2.0, "a", bring_s=0.2), room=FULL)) == ""
    assert begun(plan(wants("r", 2.0, "a", bring_s=0.2), room=FULL, flights=under_way)) == "a"


def test_what_is_needed_later_and_takes_long_does_not_wait_for_what_is_needed_sooner_and_does_not() -> None:
    made = plan(wants("short", 10.0, "a", bring_s=0.1), wants("long", 10.5, "b", bring_s=9.0), room=FULL)
    assert begun(made) == "b"


def test_the_room_that_is_free_is_used_as_far_as_it_goes() -> None:
    made = plan(wants("r", 10.0, "a", "b", "c"), room=Room(250, 10_000))
    assert begun(made) == "a b"


def test_what_is_unlikely_or_hardly_saves_time_is_left() -> None:
    assert begun(plan(wants("r", 0.1, "a", likelihood=0.05))) == ""
    assert begun(plan(wants("r", 0.1, "a", likelihood=0.2, bring_s=0.004))) == ""
    assert begun(plan(wants("r", 0.1, "a", likelihood=0.9, bring_s=0.004))) == "a"
    made = plan(
        wants("maybe", 1.0, "a", likelihood=0.3), wants("sure", 1.0, "b"), limits=PrefetchLimits(max_flight_s=0.1)
    )
    assert begun(made) == "b"  # of two at once the likelier


def test_a_worker_gets_no_more_than_its_budget_at_once() -> None:
    limits = PrefetchLimits(max_flight_s=0.25)
    assert begun(plan(wants("r", 1.0, "a", "b", "c"), limits=limits)) == "a b"
    assert begun(plan(wants("r", 1.0, "b", "c"), limits=limits, flights={("w0", "a"): Lack("a", 100, 0.1)})) == "b"
    assert begun(plan(wants("r", 1.0, "a", "b", bring_s=3.0), limits=limits)) == "a"  # alone, whatever it takes
    assert begun(plan(wants("r", 1.0, "a", "b", "c"), room=Room(0, 500))) == "a b"  # half of the pool
    both = plan(wants("r", 1.0, "a", "b", "c"), wants("s", 1.0, "d", worker="w1"), limits=limits)
    assert begun(both) == "a b d"


def test_nothing_is_brought_twice_or_to_a_worker_that_is_not_up() -> None:
    assert begun(plan(wants("r", 1.0, "a"), flights={("w0", "a"): Lack("a", 100, 0.1)})) == ""
    assert begun(plan(wants("r", 1.0, "a"), flights={("w1", "a"): Lack("a", 100, 0.1)})) == "a"
    assert begun(plan(wants("r", 1.0, "a", worker="gone"))) == ""


def test_what_nobody_will_read_any_more_is_given_up() -> None:
    flights = {("w0", "a"): Lack("a", 1, 0.1), ("w0", "b"): Lack("b", 1, 0.1), ("gone", "a"): Lack("a", 1, 0.1)}
    made = plan(flights=flights, is_used=lambda encoding_id: encoding_id == "b")
    assert made.cancels == (("w0", "a"),)
    assert plan(wants("r", 9.0, "a"), flights=flights).cancels == ()


lacks = st.builds(Lack, st.sampled_from("abcdefgh"), st.integers(1, 400), st.floats(0.0, 3.0))
readers = st.builds(
    Wanted,
    st.text("xyz", max_size=2),
    st.sampled_from(["w0", "w1", "w2"]),
    st.floats(0.0, 20.0),
    st.floats(0.0, 1.0),
    st.lists(lacks, max_size=4).map(tuple),
)


@given(
    st.lists(readers, max_size=8),
    st.integers(0, 1000),
    st.dictionaries(st.tuples(st.sampled_from(["w0", "w1", "w3"]), st.sampled_from("abcdefgh")), lacks, max_size=4),
)
def test_budgets_hold_and_nothing_is_begun_twice(wanted, free, flights) -> None:
    rooms = {"w0": Room(free, 1000), "w1": Room(0, 1000)}
    made = plan_prefetches(wanted, rooms, flights, lambda encoding_id: encoding_id in "abcd", LIMITS)
    started = [(start.worker_id, start.lack.encoding_id) for start in made.starts]
    assert len(started) == len({*started})
    assert not {*started} & flights.keys()
    for worker_id in rooms:
        under_way = [lack for (at, _), lack in flights.items() if at == worker_id]
        mine = [start.lack for start in made.starts if start.worker_id == worker_id]
        if under_way or len(mine) > 1:
            total_s = sum(lack.bring_s for lack in (*under_way, *mine))
            assert not mine or total_s <= LIMITS.max_flight_s + 1e-9
            assert not mine or sum(lack.num_tokens for lack in (*under_way, *mine)) <= 500
    assert {worker_id for worker_id, _ in started} <= rooms.keys()
    needed = {(w.worker_id, lack.encoding_id) for w in wanted for lack in w.lacks if w.likelihood >= 0.1}
    assert {*made.cancels} == {
        flight for flight in flights if flight[0] in rooms and flight not in needed and flight[1] not in "abcd"
    }
