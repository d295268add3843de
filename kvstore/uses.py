"""When an encoding is needed next, as whoever sees the step graphs says; eviction, prefetch and routing go by it.

Times are seconds on the clock of whoever holds the `Use`. One that crosses processes says how long it is from
now (`in_s`), and its taker dates it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from laban.kvstore.encodings import EncodingId


@dataclass(frozen=True, slots=True)
class Use:
    """A read to come. `steps` is the reader's steps-to-execution, `in_s` the seconds until it is expected to begin.

    `likelihood` is that it happens at all. `fixed` is said of what was written before the run began: KVFlow keeps
    that and nothing else. `rank` is the reader's workflow's place in the order of admission, the oldest first.
    """

    steps: int
    in_s: float
    likelihood: float = 1.0
    fixed: bool = False
    rank: int = 0

    def nearer(self, other: Use) -> Use:
        """Of two uses of one encoding, what there is to know: the sooner, and the oldest workflow's claim."""
        sooner, later = (self, other) if (self.in_s, self.steps) <= (other.in_s, other.steps) else (other, self)
        return replace(
            sooner,
            steps=min(self.steps, other.steps),
            likelihood=max(sooner.likelihood, later.likelihood) if sooner.in_s == later.in_s else sooner.likelihood,
            fixed=self.fixed or other.fixed,
            rank=min(self.rank, other.rank),
        )


CROWD = 32
"""Of more uses of one encoding the nearest is kept, not looked for: what everybody reads changes with every call."""

Value = TypeVar("Value", int, tuple[float, float])


class _Least(Generic[Value]):
    """The least of what sources say. One that says something else leaves a stale entry, passed over later."""

    def __init__(self) -> None:
        self._said: dict[str, Value] = {}
        self._heap: list[tuple[Value, str]] = []

    def put(self, source: str, value: Value) -> None:
        if self._said.get(source) != value:
            self._said[source] = value
            if len(self._heap) > 4 * len(self._said):
                self._heap = [(said, by) for by, said in self._said.items()]
                heapify(self._heap)
            else:
                heappush(self._heap, (value, source))

    def drop(self, source: str) -> None:
        self._said.pop(source, None)

    def least(self) -> Value:
        heap, said = self._heap, self._said
        while said.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0]


class _Crowd:
    """Many uses of one encoding: `nearest` is all of them taken by `Use.nearer`, in any order."""

    def __init__(self, uses: Iterable[tuple[str, Use]]) -> None:
        self._soonest = _Least[tuple[float, float]]()  # and of those, the likeliest
        self._steps, self._ranks = _Least[int](), _Least[int]()
        self._fixed: set[str] = set()
        for source, use in uses:
            self.put(source, use)

    def put(self, source: str, use: Use) -> None:
        self._soonest.put(source, (use.in_s, -use.likelihood))
        self._steps.put(source, use.steps)
        self._ranks.put(source, use.rank)
        if use.fixed:
            self._fixed.add(source)
        else:
            self._fixed.discard(source)

    def drop(self, source: str) -> None:
        for least in (self._soonest, self._steps, self._ranks):
            least.drop(source)
        self._fixed.discard(source)

    def nearest(self) -> Use:
        in_s, unlikelihood = self._soonest.least()
        return Use(self._steps.least(), in_s, -unlikelihood, bool(self._fixed), self._ranks.least())


class UseBook:
    """The nearest use of every encoding over all sources (runs, sessions, clients' hints). Not safe for threads.

    Uses here are dated: their `in_s` counts from the book's epoch, i.e. it is a time on one clock.
    """

    def __init__(self) -> None:
        self._sources: dict[str, dict[EncodingId, Use]] = {}
        self._users: dict[EncodingId, set[str]] = {}
        self._crowds: dict[EncodingId, _Crowd] = {}
        self._changed: dict[EncodingId, None] = {}

    def put(self, source: str, uses: Mapping[EncodingId, Use]) -> None:
        """Replaces all that `source` said before."""
        before = self._sources.get(source, {})
        for encoding_id in before.keys() - uses.keys():
            users = self._users[encoding_id]
            users.discard(source)
            if not users:
                del self._users[encoding_id]
            if encoding_id in self._crowds:
                if len(users) > CROWD // 2:
                    self._crowds[encoding_id].drop(source)
                else:
                    del self._crowds[encoding_id]
            self._changed[encoding_id] = None
        for encoding_id, use in uses.items():
            if before.get(encoding_id) != use:
                self._users.setdefault(encoding_id, set()).add(source)
                if encoding_id in self._crowds:
                    self._crowds[encoding_id].put(source, use)
                self._changed[encoding_id] = None
        if uses:
            self._sources[source] = dict(uses)
        else:
            self._sources.pop(source, None)

    def drop(self, source: str) -> None:
        self.put(source, {})

    def nearest(self, encoding_id: EncodingId) -> Use | None:
        users = self._users.get(encoding_id, ())
        if len(users) > CROWD:
            crowd = self._crowds.get(encoding_id)
            if crowd is None:
                uses = ((source, self._sources[source][encoding_id]) for source in users)
                crowd = self._crowds[encoding_id] = _Crowd(uses)
            return crowd.nearest()
        nearest: Use | None = None
        for source in users:
            use = self._sources[source][encoding_id]
            nearest = use if nearest is None else nearest.nearer(use)
        return nearest

    def all(self) -> dict[EncodingId, Use]:
        """The nearest use of everything."""
        found = ((encoding_id, self.nearest(encoding_id)) for encoding_id in self._users)
        return {encoding_id: use for encoding_id, use in found if use is not None}

    def sources(self, encoding_id: EncodingId) -> Collection[str]:
        """Those who will read it."""
        return self._users.get(encoding_id, ())

    def take_changes(self) -> dict[EncodingId, Use | None]:
        """The nearest use of everything that may have changed since the last call; None where there is none left."""
        changed, self._changed = self._changed, {}
        return {encoding_id: self.nearest(encoding_id) for encoding_id in changed}

    def __len__(self) -> int:
        return len(self._users)
