"""When an encoding is needed next, as whoever sees the step graphs says; eviction, prefetch and routing go by it.

Times are seconds on the clock of whoever holds the `Use`. One that crosses processes says how long it is from
now (`in_s`), and its taker dates it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

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


class UseBook:
    """The nearest use of every encoding over all sources (runs, sessions, clients' hints). Not safe for threads.

    Uses here are dated: their `in_s` counts from the book's epoch, i.e. it is a time on one clock.
    """

    def __init__(self) -> None:
        self._sources: dict[str, dict[EncodingId, Use]] = {}
        self._users: dict[EncodingId, set[str]] = {}
        self._changed: dict[EncodingId, None] = {}

    def put(self, source: str, uses: Mapping[EncodingId, Use]) -> None:
        """Replaces all that `source` said before."""
        before = self._sources.get(source, {})
        for encoding_id in before.keys() - uses.keys():
            self._users[encoding_id].discard(source)
            if not self._users[encoding_id]:
                del self._users[encoding_id]
            self._changed[encoding_id] = None
        for encoding_id, use in uses.items():
            if before.get(encoding_id) != use:
                self._users.setdefault(encoding_id, set()).add(source)
                self._changed[encoding_id] = None
        if uses:
            self._sources[source] = dict(uses)
        else:
            self._sources.pop(source, None)

    def drop(self, source: str) -> None:
        self.put(source, {})

    def nearest(self, encoding_id: EncodingId) -> Use | None:
        nearest: Use | None = None
        for source in self._users.get(encoding_id, ()):
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
