"""Which step a handler gets, for how long, and what is left of it: without a workflow around it."""

from __future__ import annotations

import asyncio

import pytest
from executor_workflows import asynchronous

from laban.actors.errors import FailedPrecondition
from laban.cluster.lease_desk import LeaseDesk
from laban.cluster.leases import Errand, Leases
from laban.cluster.records import LeaseMessage
from laban.cluster.workflow.states import Task


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Sink:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def step_leased(self, address: str, handler: str) -> tuple[LeaseMessage, ...]:
        self.told.append(("leased", address, handler))
        return (LeaseMessage("task", "user", "", "What?"),)

    def lease_lost(self, address: str) -> None:
        self.told.append(("lost", address))


SINK = Sink()


def errand(workflow: str, address: str, tool: str = "t", lease_s: float = 10.0, sink: Sink = SINK) -> Errand:
    return Errand(workflow, address, 1, Task(tool, {"n": 1}, lease_s=lease_s), sink)


def keys(held) -> tuple[str, str] | None:
    return None if held is None else held.errand.key


def test_the_step_that_waits_longest_comes_first():
    leases = Leases()
    for each in (errand("w1", "a"), errand("w2", "b", "u"), errand("w2", "c"), errand("w1", "d", "u")):
        leases.offer(each)
    assert keys(leases.take(["v"])) is None
    assert keys(leases.take(["t"], "w2")) == ("w2", "c")
    assert keys(leases.take(["u", "t"])) == ("w1", "a")
    assert keys(leases.take(["t"])) is None
    assert [keys(leases.take(["t", "u"])) for _ in range(3)] == [("w2", "b"), ("w1", "d"), None]


def test_a_lease_runs_out_unless_it_is_renewed():
    clock = Clock()
    leases = Leases(clock)
    for address in "ab":
        leases.offer(errand("w", address))
    first, second = leases.take(["t"]), leases.take(["t"])
    clock.now += 6
    leases.renew(first.lease_id)
    clock.now += 5
    assert [held.errand.address for held in leases.expired()] == ["b"]
    assert leases.next_expiry() == 116.0
    with pytest.raises(FailedPrecondition):
        leases.renew(second.lease_id)
    clock.now += 5
    assert leases.expired() == [first]
    assert (len(leases), leases.next_expiry()) == (0, None)


def test_nothing_is_left_of_what_is_withdrawn():
    leases = Leases()
    for address in "abc":
        leases.offer(errand("w", address))
    held = leases.take(["t"])
    leases.offer(errand("w", "b"))  # a second time: it stays one step, now behind c
    assert keys(leases.take(["t"])) == ("w", "c")
    for address in "abcd":
        leases.withdraw("w", address)
    assert leases.find(held.lease_id) is None
    assert not any((leases._errands, leases._queues, leases._leases, leases._held))


@asynchronous
async def test_waiters_are_served_in_order_and_only_with_what_they_asked_for():
    desk = LeaseDesk()
    asked = [(["u"], ""), (["t"], "w2"), (["t", "u"], ""), (["t"], "")]
    waiting = [asyncio.create_task(desk.lease(tools, workflow, "h", 5)) for tools, workflow in asked]
    await asyncio.sleep(0)
    for address in "ab":
        desk.offer(errand("w1", address))
    desk.offer(errand("w2", "c"))
    desk.offer(errand("w1", "d", "u"))
    leases = await asyncio.gather(*waiting)
    assert [lease.address for lease in leases] == ["d", "c", "a", "b"]
    assert desk.num_waiters == 0
    assert leases[0].messages[0].text == "What?"
    desk.close()


@asynchronous
async def test_waiting_ends_and_leaves_nothing_behind():
    desk = LeaseDesk()
    assert await desk.lease(["t"], "", "", 0) is None
    assert await desk.lease(["t"], "", "", 0.01) is None
    waiting = asyncio.create_task(desk.lease(["t"], "", "", 5))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert desk.num_waiters == 0
    desk.offer(errand("w", "a"))
    assert (await desk.lease(["t"], "", "", 5)).address == "a"
    desk.close()


@asynchronous
async def test_a_handler_that_leaves_as_it_is_served_makes_way_for_the_next():
    sink = Sink()
    desk = LeaseDesk()
    gone, next_one = (asyncio.create_task(desk.lease(["t"], "", name, 5)) for name in ("gone", "next"))
    await asyncio.sleep(0)
    desk.offer(errand("w", "a", sink=sink))
    gone.cancel()
    assert (await next_one).address == "a"
    assert gone.cancelled()
    assert sink.told == [("leased", "a", "next")]
    desk.close()


@asynchronous
async def test_a_step_withdrawn_as_it_is_handed_over_reaches_nobody():
    sink = Sink()
    desk = LeaseDesk()
    waiting = asyncio.create_task(desk.lease(["t"], "", "h", 5))
    await asyncio.sleep(0)
    desk.offer(errand("w", "a", sink=sink))
    desk.withdraw("w", "a")
    assert await waiting is None
    assert (sink.told, len(desk.leases)) == ([], 0)


@asynchronous
async def test_those_who_wait_for_one_workflow_go_when_it_ends():
    desk = LeaseDesk()
    one, other = (asyncio.create_task(desk.lease(["t"], workflow, "", 5)) for workflow in ("w1", "w2"))
    await asyncio.sleep(0)
    desk.end_workflow("w1")
    with pytest.raises(FailedPrecondition, match="ended"):
        await one
    assert not other.done()
    desk.close()
    assert await other is None


@asynchronous
async def test_leases_of_any_length_run_out_in_time():
    sink = Sink()
    desk = LeaseDesk()
    for address, lease_s in (("long", 30.0), ("short", 0.1), ("middle", 0.4)):
        desk.offer(errand("w", address, lease_s=lease_s, sink=sink))
    leases = {}
    for _ in range(3):
        lease = await desk.lease(["t"], "", "", 0)
        leases[lease.address] = lease
    for _ in range(8):
        await asyncio.sleep(0.06)
        desk.renew(leases["middle"].lease_id)
    assert sink.told[3:] == [("lost", "short")]
    await asyncio.sleep(0.6)
    assert sink.told[3:] == [("lost", "short"), ("lost", "middle")]
    desk.close()
