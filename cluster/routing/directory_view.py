"""What the control plane knows of the directory: where the encodings lie that its runs and sessions name.

Fed by news from the directory's shards alone; a decision reads from here and makes no remote call. An entry may be
wrong, which costs an encoding again and nothing else.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from laban.kvstore.directory_messages import Epoch, News
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PACKED_BITS, PlacementState, Tier, shard_of, unpack

EXPIRE_S = 5.0
"""How long an encoding that nobody confirmed is taken to be where a call left it."""
MAX_EXPECTED = 65_536
LINGER_S = 600.0
MAX_LINGERING = 65_536
"""Encodings that no source names any more are watched on for a time: the next run may well name them again."""

Placed = tuple[tuple[Tier, PlacementState, int], ...]
"""Of one encoding at one worker: tier, state and tokens, the fastest tier first."""

_NOWHERE: Mapping[str, Placed] = MappingProxyType({})
_NOTHING: Mapping[EncodingId, int] = MappingProxyType({})
_PACKED = (1 << PACKED_BITS) - 1


@dataclass(slots=True)
class ViewCounters:
    """Routing's predictions against what the workers found."""

    num_calls: int = 0
    tokens_predicted: int = 0  # expected to be there already
    tokens_found: int = 0
    tokens_missed: int = 0  # predicted and not there: encoded again
    num_wrong: int = 0  # calls of which a token was missed


class DirectoryView:
    """Lives in one event loop. A source is a run or a session: whoever names encodings and one day no longer does."""

    def __init__(
        self,
        num_shards: int = 1,
        *,
        expire_s: float = EXPIRE_S,
        linger_s: float = LINGER_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_shards = num_shards
        self.counters = ViewCounters()
        self.on_interest: Callable[[], None] = lambda: None  # told when there is something for `take_interest`
        self.on_arrival: Callable[[str, EncodingId], None] = lambda worker_id, encoding_id: None
        """Told of each encoding that comes to a worker that had it in no tier."""
        self._expire_s, self._linger_s, self._clock = expire_s, linger_s, clock
        self._epochs: dict[str, Epoch] = {}
        self._over: dict[str, Epoch] = {}  # the last life of a worker that is known to have ended
        self._holders: dict[EncodingId, dict[str, Placed]] = {}
        self._placed: dict[str, dict[EncodingId, Placed]] = {}  # the same by worker
        self._device: dict[str, dict[EncodingId, int]] = {}  # those ready on the device, and their tokens
        self._expected: OrderedDict[tuple[str, EncodingId], float] = OrderedDict()  # until when, the oldest first
        self._sources: dict[str, set[EncodingId]] = {}
        self._users: dict[EncodingId, int] = {}  # how many sources name it
        self._lingering: OrderedDict[EncodingId, float] = OrderedDict()  # since when, the oldest first
        self._added: list[dict[EncodingId, None]] = [{} for _ in range(num_shards)]
        self._removed: list[dict[EncodingId, None]] = [{} for _ in range(num_shards)]
        self._blind: set[int] = set()  # shards that tell no news at present
        self._listeners: list[Callable[[EncodingId], None]] = []

    # Where encodings are

    def holders(self, encoding_id: EncodingId) -> Mapping[str, Placed]:
        """By worker; not to be changed, and valid until the next news."""
        return self._holders.get(encoding_id, _NOWHERE)

    def held_by(self, worker_id: str) -> Mapping[EncodingId, int]:
        """What is ready on the worker's device, and its tokens; a live, read-only view."""
        return MappingProxyType(self._device.setdefault(worker_id, {}))

    def tier_of(self, worker_id: str, encoding_id: EncodingId) -> Tier | None:
        """The fastest tier in which the worker has it ready."""
        for tier, state, _ in self._holders.get(encoding_id, _NOWHERE).get(worker_id, ()):
            if state is PlacementState.READY:
                return tier
        return None

    def listen(self, changed: Callable[[EncodingId], None]) -> None:
        """Told of every encoding whose holders have changed."""
        self._listeners.append(changed)

    @property
    def epochs(self) -> Mapping[str, Epoch]:
        """Of the workers that are up, as far as is known."""
        return self._epochs

    # Workers

    def begin(self, worker_id: str, epoch: Epoch) -> None:
        """A new life of the worker. Nothing happens if the directory spoke of it before."""
        if self._epochs.get(worker_id) != epoch:
            self._forget(worker_id)
            self._epochs[worker_id] = epoch

    def drop(self, worker_id: str, epoch: Epoch) -> None:
        """The worker died: its entries vanish, and news of this life are ignored. A later life is not touched."""
        self._over[worker_id] = max(epoch, self._over.get(worker_id, ""))
        if self._epochs.get(worker_id) == epoch:
            self._forget(worker_id)
            del self._epochs[worker_id]

    def expect(self, worker_id: str, epoch: Epoch, encoding_id: EncodingId, num_tokens: int) -> None:
        """A call that ended leaves this on the worker's device: taken for granted until the directory says so too, or
        `expire_s` passed."""
        if self._epochs.get(worker_id) != epoch or encoding_id in self._device.get(worker_id, ()):
            return
        now_s = self._clock()
        self._place(worker_id, encoding_id, _with_device(self._placed_at(worker_id, encoding_id), num_tokens))
        self._expected[worker_id, encoding_id] = now_s + self._expire_s
        self._expire(now_s)

    def count(self, tokens_predicted: int, tokens_found: int) -> None:
        """A call began: what routing took to be there, and what the worker found."""
        counters, missed = self.counters, max(tokens_predicted - tokens_found, 0)
        counters.num_calls += 1
        counters.tokens_predicted += tokens_predicted
        counters.tokens_found += tokens_found
        counters.tokens_missed += missed
        counters.num_wrong += missed > 0

    # What is watched

    def watch(self, source: str, encoding_ids: Iterable[EncodingId]) -> None:
        """Replaces what the source named before."""
        named = set(encoding_ids)
        before = self._sources.get(source, set())
        self.watch_also(source, named - before)
        self._unname(before - named)
        self._sources[source] = named

    def watch_also(self, source: str, encoding_ids: Iterable[EncodingId]) -> None:
        """Adds to what the source names."""
        named = self._sources.setdefault(source, set())
        for encoding_id in encoding_ids:
            if encoding_id in named:
                continue
            named.add(encoding_id)
            users = self._users.get(encoding_id, 0)
            self._users[encoding_id] = users + 1
            if not users and self._lingering.pop(encoding_id, None) is None:
                self._interest(encoding_id, self._added, self._removed)

    def unwatch(self, source: str) -> None:
        """The source has ended. Nothing happens to one that is unknown."""
        self._unname(self._sources.pop(source, set()))

    @property
    def num_watched(self) -> int:
        """Encodings that news is wanted of."""
        return len(self._users) + len(self._lingering)

    def watched(self, shard: int) -> tuple[EncodingId, ...]:
        """All that news is wanted of from this shard, for one that knows nothing of it."""
        self._added[shard], self._removed[shard] = {}, {}
        return tuple(
            each for part in (self._users, self._lingering) for each in part if shard_of(each, self.num_shards) == shard
        )

    def take_interest(self, shard: int) -> tuple[tuple[EncodingId, ...], tuple[EncodingId, ...]]:
        """(added, removed) since the last call."""
        added, removed = tuple(self._added[shard]), tuple(self._removed[shard])
        self._added[shard], self._removed[shard] = {}, {}
        return added, removed

    # News and time

    def take(self, shard: int, news: News) -> None:
        for worker_id, epoch in news.gone:
            if self._epochs.get(worker_id) == epoch:
                self._forget_shard(worker_id, shard)
        lives = [worker_id if self._is_current(worker_id, epoch) else None for worker_id, epoch in news.lives]
        for encoding_id, packed in news.encodings:
            if encoding_id not in self._users and encoding_id not in self._lingering:
                continue  # nobody wants to know any more
            said: dict[str, Placed] = {}
            for each in packed:
                at = lives[each >> PACKED_BITS]
                if at is not None:
                    said[at] = (*said.get(at, ()), unpack(each & _PACKED))
            for worker_id in [*self._holders.get(encoding_id, ())]:
                if worker_id not in said:
                    self._hear(worker_id, encoding_id, ())
            for worker_id, placed in said.items():
                self._hear(worker_id, encoding_id, tuple(sorted(placed)))

    def see(self, shard: int, sees: bool) -> None:
        """Whether news of this shard come. While they do not nothing of it that is expected expires."""
        (self._blind.discard if sees else self._blind.add)(shard)

    def tick(self) -> None:
        """Forget what nobody confirmed and what lingered long enough. Call it every second or so."""
        now_s = self._clock()
        self._expire(now_s)
        while self._lingering and next(iter(self._lingering.values())) + self._linger_s <= now_s:
            self._leave()

    # Inside

    def _is_current(self, worker_id: str, epoch: Epoch) -> bool:
        known = self._epochs.get(worker_id)
        if known == epoch:
            return True
        if epoch <= self._over.get(worker_id, "") or (known is not None and epoch < known):
            return False
        self.begin(worker_id, epoch)
        return True

    def _hear(self, worker_id: str, encoding_id: EncodingId, placed: Placed) -> None:
        """Take what was said of one encoding at one worker, with what is expected there besides."""
        if (worker_id, encoding_id) in self._expected:
            if _on_device(placed):
                del self._expected[worker_id, encoding_id]
            else:
                placed = _with_device(placed, self._device[worker_id][encoding_id])
        self._place(worker_id, encoding_id, placed)

    def _place(self, worker_id: str, encoding_id: EncodingId, placed: Placed) -> None:
        if placed == self._placed_at(worker_id, encoding_id):
            return
        of_worker, on_device = self._placed.setdefault(worker_id, {}), self._device.setdefault(worker_id, {})
        holders = self._holders.get(encoding_id)
        if placed:
            if encoding_id not in of_worker:
                self.on_arrival(worker_id, encoding_id)
            of_worker[encoding_id] = placed
            if holders is None:
                self._holders[encoding_id] = {worker_id: placed}
            else:
                holders[worker_id] = placed
        else:
            of_worker.pop(encoding_id, None)
            if holders is not None and holders.pop(worker_id, None) is not None and not holders:
                del self._holders[encoding_id]
        if _on_device(placed):
            on_device[encoding_id] = placed[0][2]
        else:
            on_device.pop(encoding_id, None)
        for changed in self._listeners:
            changed(encoding_id)

    def _placed_at(self, worker_id: str, encoding_id: EncodingId) -> Placed:
        return self._holders.get(encoding_id, _NOWHERE).get(worker_id, ())

    def _expire(self, now_s: float) -> None:
        while self._expected:
            (worker_id, encoding_id), until_s = next(iter(self._expected.items()))
            room = len(self._expected) <= MAX_EXPECTED
            if until_s > now_s and room:
                return
            if room and self._blind and shard_of(encoding_id, self.num_shards) in self._blind:
                self._expected[worker_id, encoding_id] = now_s + self._expire_s
                self._expected.move_to_end((worker_id, encoding_id))
                continue
            del self._expected[worker_id, encoding_id]
            self._place(worker_id, encoding_id, _without_device(self._placed_at(worker_id, encoding_id)))

    def _forget(self, worker_id: str) -> None:
        for encoding_id in list(self._placed.get(worker_id, ())):
            self._expected.pop((worker_id, encoding_id), None)
            self._place(worker_id, encoding_id, ())

    def _forget_shard(self, worker_id: str, shard: int) -> None:
        """What it had of this shard; what is expected stays so."""
        for encoding_id in list(self._placed.get(worker_id, ())):
            if shard_of(encoding_id, self.num_shards) == shard:
                self._hear(worker_id, encoding_id, ())

    def _unname(self, encoding_ids: Iterable[EncodingId]) -> None:
        now_s = self._clock()
        for encoding_id in encoding_ids:
            self._users[encoding_id] -= 1
            if not self._users[encoding_id]:
                del self._users[encoding_id]
                self._lingering[encoding_id] = now_s
        while len(self._lingering) > MAX_LINGERING:
            self._leave()

    def _leave(self) -> None:
        """The longest lingering encoding is watched no more, and what is known of it would only grow old."""
        encoding_id, _ = self._lingering.popitem(last=False)
        self._interest(encoding_id, self._removed, self._added)
        for worker_id in list(self._holders.get(encoding_id, ())):
            if (worker_id, encoding_id) not in self._expected:
                self._place(worker_id, encoding_id, ())

    def _interest(
        self, encoding_id: EncodingId, into: list[dict[EncodingId, None]], out_of: list[dict[EncodingId, None]]
    ) -> None:
        shard = shard_of(encoding_id, self.num_shards)
        if out_of[shard].pop(encoding_id, 0) == 0:
            into[shard][encoding_id] = None
        self.on_interest()

    def check_integrity(self) -> None:
        """Raises AssertionError if the indexes differ, or something is known of a worker that is not up."""
        by_encoding = {(w, e): placed for e, holders in self._holders.items() for w, placed in holders.items()}
        by_worker = {(w, e): placed for w, of_worker in self._placed.items() for e, placed in of_worker.items()}
        on_device = {(w, e): tokens for w, held in self._device.items() for e, tokens in held.items()}
        assert by_encoding == by_worker
        assert all(by_encoding.values())
        assert all(holders for holders in self._holders.values())
        assert on_device == {key: placed[0][2] for key, placed in by_encoding.items() if _on_device(placed)}
        assert {worker_id for worker_id, _ in by_encoding} <= self._epochs.keys()
        assert self._expected.keys() <= on_device.keys()
        users: dict[EncodingId, int] = {}
        for named in self._sources.values():
            for encoding_id in named:
                users[encoding_id] = users.get(encoding_id, 0) + 1
        assert users == self._users
        assert not self._users.keys() & self._lingering.keys()
        known = {
            encoding_id for worker_id, encoding_id in by_encoding if (worker_id, encoding_id) not in self._expected
        }
        assert known <= self._users.keys() | self._lingering.keys()


def _on_device(placed: Placed) -> bool:
    return bool(placed) and placed[0][0] is Tier.DEVICE and placed[0][1] is PlacementState.READY


def _without_device(placed: Placed) -> Placed:
    return tuple(each for each in placed if each[0] is not Tier.DEVICE)


def _with_device(placed: Placed, num_tokens: int) -> Placed:
    return ((Tier.DEVICE, PlacementState.READY, num_tokens), *_without_device(placed))
