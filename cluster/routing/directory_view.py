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

from laban.cluster.routing.watch_book import LINGER_S, WatchBook
from laban.kvstore.directory_messages import Epoch, News
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PACKED_BITS, PlacementState, Tier, shard_of, unpack

EXPIRE_S = 5.0
"""How long an encoding that nobody confirmed is taken to be where a call left it."""
MAX_EXPECTED = 65_536

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
    num_unconfirmed: int = 0  # encodings expected at a worker that the directory never confirmed


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
        self.watching = WatchBook(num_shards, linger_s=linger_s, clock=clock)
        self.on_arrival: Callable[[str, EncodingId], None] = lambda worker_id, encoding_id: None
        """Told of each encoding that comes to a worker that had it in no tier."""
        self.on_confirmed: Callable[[float], None] = lambda lag_s: None
        """Told when the directory says what was expected, so many seconds after it was."""
        self._expire_s, self._clock = expire_s, clock
        self._epochs: dict[str, Epoch] = {}
        self._over: dict[str, Epoch] = {}  # the last life of a worker that is known to have ended
        self._holders: dict[EncodingId, dict[str, Placed]] = {}
        self._placed: dict[str, dict[EncodingId, Placed]] = {}  # the same by worker
        self._device: dict[str, dict[EncodingId, int]] = {}  # those ready on the device, and their tokens
        # Until when, and what the directory says meanwhile; the oldest first.
        self._expected: OrderedDict[tuple[str, EncodingId], tuple[float, Placed]] = OrderedDict()
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
        now_s, said = self._clock(), self._placed_at(worker_id, encoding_id)
        self._place(worker_id, encoding_id, _with_device(said, num_tokens))
        self._expected[worker_id, encoding_id] = now_s + self._expire_s, said
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
        self._leave(self.watching.keep(source, encoding_ids))

    def watch_also(self, source: str, encoding_ids: Iterable[EncodingId]) -> None:
        """Adds to what the source names."""
        self.watching.name(source, encoding_ids)

    def unwatch(self, source: str) -> None:
        """The source has ended. Nothing happens to one that is unknown."""
        self._leave(self.watching.end(source))

    @property
    def num_watched(self) -> int:
        """Encodings that news is wanted of."""
        return len(self.watching)

    @property
    def num_silent(self) -> int:
        """Shards whose news do not come."""
        return len(self._blind)

    # News and time

    def take(self, shard: int, news: News) -> None:
        for worker_id, epoch in news.gone:
            if self._epochs.get(worker_id) == epoch:
                self._forget_shard(worker_id, shard)
        lives = [worker_id if self._is_current(worker_id, epoch) else None for worker_id, epoch in news.lives]
        for encoding_id, packed in news.encodings:
            if encoding_id not in self.watching:
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
        self._expire(self._clock())
        self._leave(self.watching.expire())

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
        key = worker_id, encoding_id
        if key in self._expected:
            if any(tier is Tier.DEVICE and state is not PlacementState.LOADING for tier, state, _ in placed):
                until_s, _ = self._expected.pop(key)  # it came to be there, and maybe is on its way out again
                self.on_confirmed(max(0.0, self._clock() - (until_s - self._expire_s)))
            else:
                self._expected[key] = self._expected[key][0], placed
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
            (worker_id, encoding_id), (until_s, said) = next(iter(self._expected.items()))
            room = len(self._expected) <= MAX_EXPECTED
            if until_s > now_s and room:
                return
            if room and self._blind and shard_of(encoding_id, self.num_shards) in self._blind:
                self._expected[worker_id, encoding_id] = now_s + self._expire_s, said
                self._expected.move_to_end((worker_id, encoding_id))
                continue
            del self._expected[worker_id, encoding_id]
            self.counters.num_unconfirmed += 1
            self._place(worker_id, encoding_id, said)

    def _forget(self, worker_id: str) -> None:
        for encoding_id in list(self._placed.get(worker_id, ())):
            self._expected.pop((worker_id, encoding_id), None)
            self._place(worker_id, encoding_id, ())

    def _forget_shard(self, worker_id: str, shard: int) -> None:
        """What it had of this shard; what is expected stays so."""
        for encoding_id in list(self._placed.get(worker_id, ())):
            if shard_of(encoding_id, self.num_shards) == shard:
                self._hear(worker_id, encoding_id, ())

    def _leave(self, encoding_ids: Iterable[EncodingId]) -> None:
        """These are watched no more: what is known of them would only grow old."""
        for encoding_id in encoding_ids:
            for worker_id in list(self._holders.get(encoding_id, ())):
                self._hear(worker_id, encoding_id, ())

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
        known = {encoding_id for _, encoding_id in by_encoding.keys() - self._expected.keys()}
        assert all(encoding_id in self.watching for encoding_id in known)
        self.watching.check_integrity()


def _on_device(placed: Placed) -> bool:
    return bool(placed) and placed[0][0] is Tier.DEVICE and placed[0][1] is PlacementState.READY


def _with_device(placed: Placed, num_tokens: int) -> Placed:
    return ((Tier.DEVICE, PlacementState.READY, num_tokens), *(each for each in placed if each[0] is not Tier.DEVICE))
