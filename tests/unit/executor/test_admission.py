"""Which workflows are let in while memory is short: by rank, all that fit, none for ever kept out."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from laban.cluster.admission import Admission, AdmissionLimits, Demand

LIMITS = AdmissionLimits(max_overtaken=2, idle_s=10.0)


def waiting(*sizes: int) -> Admission:
    """Workflows `0`, `1`, ... that need so many bytes."""
    admission = Admission(LIMITS)
    for number, size in enumerate(sizes):
        admission.add(str(number), Demand(size))
    return admission


def test_those_that_fit_together_run_in_the_order_in_which_they_came() -> None:
    admission = waiting(40, 40, 20, 40, 10)
    assert admission.admit(100, 0.0) == ["0", "1", "2"]
    assert admission.admit(100, 0.0) == []
    assert admission.num_waiting == 2
    admission.remove("1")
    assert admission.admit(100, 0.0) == ["3"]
    admission.remove("0")
    assert admission.admit(100, 0.0) == ["4"]


def test_one_always_runs_whatever_it_needs() -> None:
    admission = waiting(500, 500)
    assert admission.admit(100, 0.0) == ["0"]
    admission.remove("0")
    assert admission.admit(0, 0.0) == ["1"]


def test_a_large_one_is_overtaken_only_so_often() -> None:
    admission = waiting(60, 90, 10, 10, 10, 10)
    assert admission.admit(100, 0.0) == ["0", "2", "3"]  # "1" was passed twice
    admission.remove("2")
    admission.remove("3")
    assert admission.admit(100, 0.0) == []
    admission.remove("0")
    assert admission.admit(100, 0.0) == ["1", "4"]


def test_what_they_have_in_common_counts_once() -> None:
    admission = Admission(LIMITS)
    for name in "abc":
        admission.add(name, Demand(10, {"prompt": 70, name: 5}))
    assert admission.admit(100, 0.0) == ["a", "b"]
    assert admission.needed_bytes == 100
    admission.remove("a")
    assert admission.needed_bytes == 85
    assert admission.admit(100, 0.0) == ["c"]


def test_who_needs_less_makes_room_and_who_needs_more_goes_on() -> None:
    admission = waiting(90, 20)
    assert admission.admit(100, 0.0) == ["0"]
    admission.update("0", Demand(80))
    assert admission.admit(100, 0.0) == ["1"]
    admission.update("0", Demand(300))
    assert admission.admit(100, 0.0) == []
    admission.update("nobody", Demand(1))
    admission.check_integrity()


def test_a_waiting_one_can_be_withdrawn() -> None:
    admission = waiting(90, 90, 90)
    admission.admit(100, 0.0)
    admission.remove("1")
    admission.remove("0")
    assert admission.admit(100, 0.0) == ["2"]
    admission.remove("nobody")


def test_less_memory_stops_nobody_and_lets_nobody_in() -> None:
    admission = waiting(40, 40, 40)
    assert admission.admit(100, 0.0) == ["0", "1"]
    admission.remove("0")
    assert admission.admit(50, 0.0) == []
    assert admission.admit(80, 0.0) == ["2"]


def test_who_waits_for_tools_makes_room_after_a_while() -> None:
    admission = waiting(90, 50)
    admission.admit(100, 0.0)
    admission.set_idle("0", True, 5.0)
    admission.set_idle("0", True, 8.0)  # still
    assert admission.next_s() == 15.0
    assert admission.admit(100, 14.0) == []
    assert admission.admit(100, 15.0) == ["1"]
    assert admission.needed_bytes == 50
    admission.set_idle("0", False, 20.0)
    assert admission.needed_bytes == 140
    assert admission.next_s() is None
    admission.set_idle("nobody", True, 0.0)


class Machine(RuleBasedStateMachine):
    """Against sums made anew, and a count of who has passed whom."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(LIMITS)
        self.now = 0.0
        self.demands: dict[str, Demand] = {}
        self.waiting: list[str] = []
        self.running: dict[str, float | None] = {}
        self.passed: dict[str, int] = {}

    sizes = st.integers(0, 60)

    @rule(own=sizes, shared=st.dictionaries(st.sampled_from("pqr"), st.just(20), max_size=2))
    def come(self, own: int, shared: dict[str, int]) -> None:
        name = str(len(self.demands))
        self.demands[name] = Demand(own, shared)
        self.waiting.append(name)
        self.admission.add(name, self.demands[name])

    @rule(data=st.data())
    @precondition(lambda self: self.waiting or self.running)
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.waiting, *self.running]))
        self.admission.remove(name)
        self.waiting = [each for each in self.waiting if each != name]
        self.running.pop(name, None)

    @rule(data=st.data(), own=sizes)
    @precondition(lambda self: self.waiting or self.running)
    def change(self, data: st.DataObject, own: int) -> None:
        name = data.draw(st.sampled_from([*self.waiting, *self.running]))
        self.demands[name] = Demand(own, self.demands[name].shared)
        self.admission.update(name, self.demands[name])

    @rule(data=st.data(), idle=st.booleans())
    @precondition(lambda self: self.running)
    def rest(self, data: st.DataObject, idle: bool) -> None:
        name = data.draw(st.sampled_from([*self.running]))
        since = self.running[name]
        self.running[name] = (self.now if since is None else since) if idle else None
        self.admission.set_idle(name, idle, self.now)

    @rule(seconds=st.integers(1, 12))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule(capacity=st.integers(0, 150))
    def admit(self, capacity: int) -> None:
        admitted = self.admission.admit(capacity, self.now)
        for name in admitted:
            for other in self.waiting[: self.waiting.index(name)]:
                self.passed[other] = self.passed.get(other, 0) + 1
            self.waiting.remove(name)
            self.running[name] = None
        counted = self.counted()
        assert not self.waiting or counted, "nobody runs"
        assert not admitted or len(counted) == 1 or self.needed() <= capacity
        if self.waiting and not admitted:
            head = self.demands[self.waiting[0]]
            more = sum(size for key, size in head.shared.items() if key not in self.shared())
            assert self.needed() + head.own_bytes + more > capacity, "the oldest would fit"

    def counted(self) -> list[str]:
        return [n for n, since in self.running.items() if since is None or since + LIMITS.idle_s > self.now]

    def shared(self) -> dict[str, int]:
        return {k: v for name in self.counted() for k, v in self.demands[name].shared.items()}

    def needed(self) -> int:
        return sum(self.demands[name].own_bytes for name in self.counted()) + sum(self.shared().values())

    @invariant()
    def sums_are_right(self) -> None:
        self.admission.check_integrity()
        assert self.admission.num_waiting == len(self.waiting)
        assert all(times <= LIMITS.max_overtaken for times in self.passed.values())


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("first", [50, 200])
def test_everyone_has_their_turn(first: int) -> None:
    """A large one waits while small ones come without end, each staying for a while."""
    admission = Admission(LIMITS)
    admission.add("small-0", Demand(60))
    admission.add("large", Demand(first + 50))
    running = admission.admit(100, 0.0)
    for number in range(1, 30):
        admission.add(f"small-{number}", Demand(30))
        if number % 2 and running:
            admission.remove(running.pop(0))
        running += admission.admit(100, 0.0)
        if "large" in running:
            return
    raise AssertionError("the large one never ran")


def test_models_have_their_own_memory_and_hold_up_nobody_elses() -> None:
    admission, there = Admission(LIMITS), {"": 100, "large": 100}

    def large(size: int) -> Demand:
        return Demand(0, others={"large": Demand(size)})

    admission.add("a", Demand(80))
    admission.add("b", large(80))
    admission.add("both", Demand(20, others={"large": Demand(30)}))
    assert admission.admit(there, 0.0) == ["a", "b"]
    assert (admission.needed(""), admission.needed("large"), admission.needed_bytes) == (80, 80, 160)
    assert admission.admit(there, 0.0) == [], "it fits one of the two alone"
    for number in range(LIMITS.max_overtaken):
        admission.add(f"small-{number}", large(1))
    assert len(admission.admit(there, 0.0)) == LIMITS.max_overtaken
    admission.add("last", large(1))
    admission.add("other", Demand(0, others={"third": Demand(5)}))
    assert admission.admit(there | {"third": 9}, 0.0) == ["other"], "nobody waits for that one's memory"
    admission.check_integrity()
    admission.remove("b")
    assert admission.admit(there, 0.0) == ["both", "last"]
    admission.check_integrity()
