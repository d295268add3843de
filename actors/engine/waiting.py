"""The calls that wait to be admitted, in their order: by their workflows' ranks, then as they came."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from laban.actors.calls import Call
from laban.actors.engine.running_call import RunningCall
from laban.kvstore.encodings import EncodingId


@dataclass(slots=True, eq=False)
class Waiting:
    """`awaits` are encodings on their way to the host, without which it cannot be planned, the first of them since
    `awaited_since`. `refused` are sources not to be asked again. `preempted` is what it was before it waited again.
    `short_of_share`: when it was tried last its tenant's share alone had no room."""

    call: Call
    submitted_at: float
    serial: int
    awaits: set[EncodingId] = field(default_factory=set)
    awaited_since: float | None = None
    refused: set[object] = field(default_factory=set)
    preempted: RunningCall | None = None
    short_of_share: bool = False

    @property
    def place(self) -> tuple[int, int]:
        return self.call.rank, self.serial


class WaitingQueue:
    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []
        self._at: dict[tuple[int, int], Waiting] = {}
        self._by_id: dict[str, Waiting] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, call_id: object) -> bool:
        return call_id in self._by_id

    def __iter__(self) -> Iterator[Waiting]:
        """In order. What is gone over may be taken out meanwhile."""
        at = 0
        while at < len(self._places):
            place = self._places[at]
            yield self._at[place]
            at = bisect_left(self._places, (place[0], place[1] + 1))

    def add(self, call: Call, now: float) -> None:
        self._serial += 1
        self.put_back(Waiting(call, now, self._serial))

    def put_back(self, waiting: Waiting) -> None:
        """In its old place."""
        insort(self._places, waiting.place)
        self._at[waiting.place] = self._by_id[waiting.call.call_id] = waiting

    def take(self, call_id: str) -> Waiting | None:
        waiting = self._by_id.pop(call_id, None)
        if waiting is not None:
            del self._places[bisect_left(self._places, waiting.place)], self._at[waiting.place]
        return waiting
