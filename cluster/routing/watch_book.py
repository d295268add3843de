"""Which encodings news is wanted of: those that runs and sessions name, and for a time those that they named."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, KeysView

from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import shard_of

LINGER_S = 600.0
MAX_LINGERING = 65_536
"""Encodings that no source names any more are watched on for a time: the next run may well name them again."""


class WatchBook:
    """Lives in one event loop. A source is a run or a session: whoever names encodings and one day no longer does."""

    def __init__(self, num_shards: int, *, linger_s: float = LINGER_S, clock: Callable[[], float]) -> None:
        self.on_interest: Callable[[], None] = lambda: None  # told when there is something for `take`
        self._num_shards, self._linger_s, self._clock = num_shards, linger_s, clock
        self._sources: dict[str, set[EncodingId]] = {}
        self._users: dict[EncodingId, int] = {}  # how many sources name it
        self._lingering: OrderedDict[EncodingId, float] = OrderedDict()  # since when, the oldest first
        self._added: list[dict[EncodingId, None]] = [{} for _ in range(num_shards)]
        self._removed: list[dict[EncodingId, None]] = [{} for _ in range(num_shards)]

    def __contains__(self, encoding_id: EncodingId) -> bool:
        return encoding_id in self._users or encoding_id in self._lingering

    def __len__(self) -> int:
        return len(self._users) + len(self._lingering)

    def name(self, source: str, encoding_ids: Iterable[EncodingId]) -> None:
        """Adds to what the source names."""
        named = self._sources.setdefault(source, set())
        for encoding_id in encoding_ids:
            if encoding_id in named:
                continue
            named.add(encoding_id)
            users = self._users.get(encoding_id, 0)
            self._users[encoding_id] = users + 1
            if not users and self._lingering.pop(encoding_id, None) is None:
                self._added[shard_of(encoding_id, self._num_shards)][encoding_id] = None
                self.on_interest()

    def keep(self, source: str, encoding_ids: Iterable[EncodingId]) -> list[EncodingId]:
        """The source names these only. Returns those that nobody wants to hear of any more."""
        named = set(encoding_ids)
        before = self._sources.get(source, set())
        self.name(source, named)
        self._unname(before - named)
        self._sources[source] = named
        return self._leave(float("-inf"))

    def end(self, source: str) -> list[EncodingId]:
        """The source has ended, if it was known. Returns those that nobody wants to hear of any more."""
        self._unname(self._sources.pop(source, set()))
        return self._leave(float("-inf"))

    def expire(self) -> list[EncodingId]:
        """Returns those that lingered long enough."""
        return self._leave(self._clock() - self._linger_s)

    def all_of(self, shard: int) -> tuple[EncodingId, ...]:
        """For a shard that knows nothing of it."""
        self._added[shard], self._removed[shard] = {}, {}
        return tuple(
            each
            for part in (self._users, self._lingering)
            for each in part
            if shard_of(each, self._num_shards) == shard
        )

    def take(self, shard: int) -> tuple[tuple[EncodingId, ...], tuple[EncodingId, ...]]:
        """(added, removed) since the last call. What is in both was removed first: nothing is known of it here."""
        added, removed = tuple(self._added[shard]), tuple(self._removed[shard])
        self._added[shard], self._removed[shard] = {}, {}
        return added, removed

    def named(self) -> KeysView[EncodingId]:
        """By any source."""
        return self._users.keys()

    def of(self, source: str) -> frozenset[EncodingId]:
        """What a source names."""
        return frozenset(self._sources.get(source, ()))

    def sources(self) -> KeysView[str]:
        return self._sources.keys()

    def _unname(self, encoding_ids: Iterable[EncodingId]) -> None:
        now_s = self._clock()
        for encoding_id in encoding_ids:
            self._users[encoding_id] -= 1
            if not self._users[encoding_id]:
                del self._users[encoding_id]
                self._lingering[encoding_id] = now_s

    def _leave(self, before_s: float) -> list[EncodingId]:
        left = []
        while self._lingering:
            encoding_id, since_s = next(iter(self._lingering.items()))
            if since_s > before_s and len(self._lingering) <= MAX_LINGERING:
                break
            del self._lingering[encoding_id]
            shard = shard_of(encoding_id, self._num_shards)
            self._added[shard].pop(encoding_id, None)
            self._removed[shard][encoding_id] = None
            left.append(encoding_id)
        if left:
            self.on_interest()
        return left

    def check_integrity(self) -> None:
        """Raises AssertionError if users are counted wrongly, or something lingers that somebody names."""
        users: dict[EncodingId, int] = {}
        for named in self._sources.values():
            for encoding_id in named:
                users[encoding_id] = users.get(encoding_id, 0) + 1
        assert users == self._users
        assert not self._users.keys() & self._lingering.keys()
        for added in self._added:
            assert all(encoding_id in self for encoding_id in added)
