"""External steps that wait for a handler, by tool, and those in the hands of one. Pure: the clock is given."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from laban.actors.errors import FailedPrecondition
from laban.cluster.records import LeaseMessage
from laban.cluster.workflow.states import Task

Queue = OrderedDict[tuple[str, str], int]  # (workflow id, address) -> its number among all that were offered


class LeaseSink(Protocol):
    """Whose step it is. Methods are called in the event loop and must not wait."""

    def step_leased(self, address: str, handler: str) -> tuple[LeaseMessage, ...]:
        """A handler has it. Returns what the step reads, in order."""

    def lease_lost(self, address: str) -> None:
        """The lease ran out; the step is offered to nobody now."""


@dataclass(frozen=True, slots=True)
class Errand:
    """An external step to be done, as its attempt number `attempt`."""

    workflow_id: str
    address: str
    attempt: int
    task: Task
    sink: LeaseSink

    @property
    def key(self) -> tuple[str, str]:
        return (self.workflow_id, self.address)


@dataclass(slots=True)
class Held:
    """An errand in the hands of a handler, until `expires_at` by the clock of its Leases."""

    lease_id: str
    errand: Errand
    handler: str
    expires_at: float


class Leases:
    """Each step is here at most once: it waits, or it is leased."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, origin: Callable[[], str] = lambda: "") -> None:
        """`origin` says who gives out a lease, where several do: its id then says so too."""
        self._clock = clock
        self._origin = origin
        self._errands: dict[tuple[str, str], Errand] = {}  # those that wait
        self._queues: dict[tuple[str, str], Queue] = {}  # by (tool, workflow id), and by (tool, "")
        self._leases: dict[str, Held] = {}
        self._held: dict[tuple[str, str], str] = {}  # step -> its lease's id
        self._last_number = 0

    def __len__(self) -> int:
        """Steps that wait or are leased."""
        return len(self._errands) + len(self._leases)

    def offer(self, errand: Errand) -> None:
        """Queue a step behind those of its tool, in place of an earlier offer or lease of it."""
        self.withdraw(*errand.key)
        self._errands[errand.key] = errand
        self._last_number += 1
        for queue in self._queues_of(errand):
            self._queues.setdefault(queue, OrderedDict())[errand.key] = self._last_number

    def withdraw(self, workflow_id: str, address: str) -> None:
        """Forget a step; a lease of it is void. Unknown ones are ignored."""
        key = (workflow_id, address)
        if key in self._errands:
            self._unqueue(self._errands.pop(key))
        elif key in self._held:
            del self._leases[self._held.pop(key)]

    def take(self, tools: Iterable[str], workflow_id: str = "", handler: str = "") -> Held | None:
        """Lease the step of these tools that waits longest; None if none does."""
        heads = []
        for tool in tools:
            queue = self._queues.get((tool, workflow_id))
            if queue:
                key = next(iter(queue))
                heads.append((queue[key], key))
        if not heads:
            return None
        errand = self._errands.pop(min(heads)[1])
        self._unqueue(errand)
        origin = self._origin()
        lease_id = f"{origin}.{secrets.token_hex(12)}" if origin else secrets.token_hex(12)
        held = Held(lease_id, errand, handler, self._clock() + errand.task.lease_s)
        self._leases[held.lease_id] = held
        self._held[errand.key] = held.lease_id
        return held

    def give_back(self, lease_id: str) -> Errand | None:
        """Undo a `take` that reached nobody. The step is offered to nobody then; None if the lease is void."""
        held = self._leases.pop(lease_id, None)
        if held is None:
            return None
        del self._held[held.errand.key]
        return held.errand

    def renew(self, lease_id: str) -> Held:
        """Raises FailedPrecondition for a lease that has run out or is void."""
        held = self._leases.get(lease_id)
        if held is None:
            raise FailedPrecondition(
                "the lease has run out, or the step needs no answer any more", field="lease_id", value=lease_id
            )
        held.expires_at = self._clock() + held.errand.task.lease_s
        return held

    def find(self, lease_id: str) -> Held | None:
        return self._leases.get(lease_id)

    def expired(self) -> list[Held]:
        """Those that have run out, no longer leased."""
        now = self._clock()
        gone = [held for held in self._leases.values() if held.expires_at <= now]
        for held in gone:
            self.give_back(held.lease_id)
        return gone

    def next_expiry(self) -> float | None:
        """When the first lease runs out, unless it is renewed."""
        return min((held.expires_at for held in self._leases.values()), default=None)

    def _queues_of(self, errand: Errand) -> tuple[tuple[str, str], tuple[str, str]]:
        return (errand.task.tool, ""), (errand.task.tool, errand.workflow_id)

    def _unqueue(self, errand: Errand) -> None:
        for name in self._queues_of(errand):
            queue = self._queues[name]
            del queue[errand.key]
            if not queue:
                del self._queues[name]


def origin_of(lease_id: str) -> str:
    """Who gave it out; "" if it does not say.

    >>> origin_of("4711.abc"), origin_of("abc")
    ('4711', '')
    """
    origin, dot, _ = lease_id.partition(".")
    return origin if dot else ""
