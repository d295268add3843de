"""How fast each worker is: as it reports itself, or as the calls that it finished tell.

Workers of one make (the same model on the same kind of device) are held to be as fast as their mean unless measured to
be more than a quarter off it. So what is noise makes no difference between them, and workers that hold the same are
told apart by their queues alone, which the router relies on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from laban.actors.calls import WorkerInfo, WorkerRates
from laban.actors.reach import Reach, Transport, transport_between

MIN_TOKENS = 16
"""Calls that encoded fewer say more about fixed costs than about the rate."""

OFF = 0.25
"""A worker this far off the mean of its make is taken at its own rate, in steps of a fifth."""

DRIFT = 0.05
"""The mean in use follows the measured one when it is off by more: every change of it dates all queues anew."""

ASSUMED = WorkerRates(
    encode_tokens_per_s=500.0, iteration_s=0.02, host_bytes_per_s=4e9, disk_bytes_per_s=5e8, peer_bytes_per_s=5e8
)
"""Until anybody has measured."""

ASSUMED_DIRECT = 8e9
"""Bytes a second of a transport that reads memory, until it is measured: hopeful, as what is never tried never is."""

_FIELDS = tuple(field.name for field in fields(WorkerRates))


NEVER = 1 << 50
"""Nanoseconds a token, of what a worker cannot do."""


class Pace(NamedTuple):
    """How long a worker takes, in whole nanoseconds a token.

    `disk_ns` is from disk to the device, by way of host memory; so is `peer_ns` from another worker's memory.
    """

    encode_ns: int
    iteration_ns: int  # of one that only decodes, all of it
    host_ns: int
    disk_ns: int
    peer_ns: int
    peer_disk_ns: int  # from another worker's disk


@dataclass(slots=True)
class _Member:
    make: str
    bytes_per_token: int
    fetches: bool
    reach: Reach
    reported: WorkerRates = field(default_factory=WorkerRates)
    learned: float = 0.0  # encode_tokens_per_s, from calls that ended
    counted: list[float] = field(default_factory=lambda: [0.0] * len(_FIELDS))  # what is in the sums; 0: nothing


@dataclass(slots=True)
class _Make:
    sums: list[float] = field(default_factory=lambda: [0.0] * len(_FIELDS))
    counts: list[int] = field(default_factory=lambda: [0] * len(_FIELDS))
    used: list[float] = field(default_factory=lambda: [0.0] * len(_FIELDS))  # 0: nothing is known


class Rates:
    """`version` changes when workers' paces may have, other than that of the one just told of."""

    def __init__(self, weight: float = 0.2) -> None:
        self._weight = weight
        self._members: dict[str, _Member] = {}
        self._makes: dict[str, _Make] = {}
        self._crowds: Counter[tuple[Transport, str]] = Counter()  # who speaks what, on which machine; "": anywhere
        self.version = 0
        self.call_ms = 0.0  # that a call takes at a worker, on average; 0: none has ended

    def add(self, info: WorkerInfo) -> None:
        make = f"{info.model_name} {info.dtype} {info.attention_backend} {info.num_shards} x {info.device}"
        self._members[info.worker_id] = _Member(make, info.bytes_per_token, info.fetches, info.reach)
        self._makes.setdefault(make, _Make())
        self._crowd(info.reach, 1)

    def remove(self, worker_id: str) -> None:
        member = self._members.pop(worker_id, None)
        if member is not None:
            self._crowd(member.reach, -1)
            for at in range(len(_FIELDS)):
                self._count(member, at, 0.0)

    def report(self, worker_id: str, rates: WorkerRates) -> bool:
        """Take what a worker says of itself. True if its pace may have changed."""
        member = self._members[worker_id]
        if rates == member.reported:
            return False
        member.reported = rates
        return self._take(member)

    def observe(self, worker_id: str, tokens: int, milliseconds: float) -> bool:
        """A call encoded `tokens` in `milliseconds`, with nothing queued before it. As for `report`."""
        if tokens < MIN_TOKENS or milliseconds <= 0:
            return False
        member = self._members[worker_id]
        rate = 1000.0 * tokens / milliseconds
        member.learned = rate if not member.learned else member.learned + self._weight * (rate - member.learned)
        return self._take(member)

    def observe_call(self, milliseconds: float) -> None:
        """A call took so long from its coming to a worker to its end."""
        self.call_ms = milliseconds if not self.call_ms else self.call_ms + 0.05 * (milliseconds - self.call_ms)

    def pace(self, worker_id: str) -> Pace:
        member = self._members[worker_id]
        encode, iteration_s, host, disk, peer, *_ = (
            self._known(member, at) or getattr(ASSUMED, name) for at, name in enumerate(_FIELDS)
        )
        if any(not self._known(member, _at(each)) for each in self._direct(member)):
            peer = max(peer, ASSUMED_DIRECT)
        size = member.bytes_per_token * 1e9
        host_ns = round(size / host)
        peer_ns = round(size / peer) + host_ns if member.fetches else NEVER
        disk_ns = round(size / disk)
        return Pace(
            encode_ns=round(1e9 / encode),
            iteration_ns=round(1e9 * iteration_s),
            host_ns=host_ns,
            disk_ns=disk_ns + host_ns,
            peer_ns=peer_ns,
            peer_disk_ns=peer_ns + disk_ns,
        )

    def fetch_ns(self, reader: str, holder: str) -> int:
        """Nanoseconds a token from the holder's memory to the reader's device, by the transport between the two."""
        member = self._members[reader]
        transport = transport_between(member.reach, self._members[holder].reach)
        rate = self._known(member, _at(transport))
        if not rate:
            rate = self._known(member, _at("peer")) or ASSUMED.peer_bytes_per_s
            if transport != "object_store":
                rate = max(rate, ASSUMED_DIRECT)
        host = self._known(member, _at("host")) or ASSUMED.host_bytes_per_s
        size = member.bytes_per_token * 1e9
        return round(size / rate) + round(size / host)

    def _known(self, member: _Member, at: int) -> float:
        """As measured by the worker or others; 0 if nobody has."""
        mean, own = self._makes[member.make].used[at] or self._anyones(at), member.counted[at]
        return _stepped(own) if own and abs(own - mean) > OFF * mean else mean

    def _direct(self, member: _Member) -> Iterator[Transport]:
        """The transports by which the memory of some other worker can be read."""
        reach = member.reach
        near = self._crowds["cma", reach.machine] if reach.machine and "cma" in reach.transports else 0
        if near > 1:
            yield "cma"
        if "nixl" in reach.transports:
            nearest = self._crowds["nixl", reach.machine] if near else 1
            if self._crowds["nixl", ""] > nearest:
                yield "nixl"

    def _crowd(self, reach: Reach, number: int) -> None:
        for transport in reach.transports:
            for machine in {reach.machine, ""}:
                self._crowds[transport, machine] += number
        if reach.transports != ("object_store",):
            self.version += 1

    def _take(self, member: _Member) -> bool:
        changed = False
        for at, name in enumerate(_FIELDS):
            value = getattr(member.reported, name) or (member.learned if at == 0 else 0.0)
            before = member.counted[at]
            if value and abs(value - before) > 0.02 * before:
                self._count(member, at, value)
                changed = True
        return changed

    def _count(self, member: _Member, at: int, value: float) -> None:
        make = self._makes[member.make]
        before, member.counted[at] = member.counted[at], value
        make.counts[at] += (value > 0) - (before > 0)
        make.sums[at] += value - before
        mean = make.sums[at] / make.counts[at] if make.counts[at] else 0.0
        used = make.used[at]
        if (mean > 0) != (used > 0) or abs(mean - used) > DRIFT * used:
            make.used[at] = mean
            self.version += 1

    def _anyones(self, at: int) -> float:
        """Of another make, where nobody of one's own is known."""
        known = [make.used[at] for make in self._makes.values() if make.used[at]]
        return sum(known) / len(known) if known else 0.0


def _at(link: str) -> int:
    return _FIELDS.index(f"{link}_bytes_per_s")


def _stepped(value: float) -> float:
    """Rounded to a power of 1.2."""
    return float(1.2 ** round(math.log(value, 1.2)))
