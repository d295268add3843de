"""One shard of the directory: which workers hold which encodings, in which tiers. What workers said, never the truth.

Workers number what they say within an epoch, one life of theirs, that the directory issued; the shard takes it in
order, says when it missed something, ignores what an earlier life still had to say, and forgets the dead and the
silent. Losing a shard loses nothing: to an empty one everything is a gap, and snapshots fill it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from sys import intern
from typing import Any

from laban.kvstore.directory_messages import (
    Answer,
    Batch,
    EncodingRecord,
    Epoch,
    HeldPlacement,
    Interest,
    News,
    PackedChange,
    ShardStatus,
    Watch,
    WorkerHoldings,
)
from laban.kvstore.encodings import EncodingId
from laban.kvstore.interests import Interests
from laban.kvstore.placements import PACKED_BITS, STATE_MASK, TIER_SHIFT, unpack
from laban.kvstore.subscriptions import Subscriptions

LATE_S = 5.0
"""A worker silent for so long, some heartbeats, has lost its entries; they are back with its next snapshot."""
IDLE_S = 60.0
"""A subscriber that did not ask for so long is forgotten, with what it said of uses and pins."""
FENCE_S = 600.0
"""How long messages of a life that is over are recognised as such."""
MAX_NEWS = 16_384
"""Encodings in one answer; the rest comes with the next."""

_Record = tuple[Any, ...]  # namespace, placement, ...
_PACKED = (1 << PACKED_BITS) - 1
_TIER_BITS = PACKED_BITS - TIER_SHIFT


@dataclass(slots=True, eq=False)
class _Life:
    """One worker's epoch. Its placements carry `index`, never used again: to forget them all is to retire it."""

    worker_id: str
    epoch: Epoch
    index: int
    heard_s: float
    number: int | None = None  # of the last batch taken; None until there is a snapshot to go on from
    count: int = 0  # placements


class DirectoryShard:
    """Not safe for threads. Times are seconds on the caller's clock.

    A record is (namespace, placement, ...), each placement an int: the index of a worker's life above the packed tier,
    tokens and state. Tuples of plain values are small, and the garbage collector does not look at them.
    """

    def __init__(self, *, late_s: float = LATE_S, idle_s: float = IDLE_S, quiet_until_s: float = 0.0) -> None:
        """No news is given before `quiet_until_s`: a shard that came back empty waits for the snapshots, since its
        subscribers know more than it does until then."""
        self._late_s, self._idle_s, self._quiet_until_s = late_s, idle_s, quiet_until_s
        self._records: dict[EncodingId, _Record] = {}
        self._lives: dict[str, _Life] = {}
        self._by_index: dict[int, _Life] = {}
        self._retired: dict[int, int] = {}  # index of a life that is over -> placements of it that are still in records
        self._sweep: list[EncodingId] = []
        self._fences: dict[str, tuple[Epoch, float]] = {}  # worker -> its last life that is over, and since when
        self._last_index = 0
        self._last_epoch = 0
        self._subscriptions = Subscriptions()
        self._interests = Interests()

    # Workers

    def register(self, worker_id: str, now_s: float, wall_us: int) -> Epoch:
        """Issue the epoch of a new life of the worker; what earlier ones held vanishes.

        One shard issues for all. Epochs follow the time of day, `wall_us`, so a shard that was restarted issues later
        ones than before; should its clock be behind, the others ignore the worker until they forget its former life.
        """
        self._last_epoch = max(self._last_epoch + 1, wall_us)  # later than every life this shard has heard of
        epoch = f"{self._last_epoch:016x}"
        self._end(worker_id, now_s)
        self._begin(worker_id, epoch, now_s).number = 0
        return epoch

    def publish(self, batch: Batch, now_s: float) -> Answer:
        """Take what a worker says. A batch taken before is ignored; after a gap only a snapshot is of use."""
        life = self._lives.get(batch.worker_id)
        if life is None or life.epoch != batch.epoch:
            fence = self._fences.get(batch.worker_id)
            over = life.epoch if life is not None else fence[0] if fence is not None else ""
            if batch.epoch <= over:
                return Answer.STALE
            self._end(batch.worker_id, now_s)
            life = self._begin(batch.worker_id, batch.epoch, now_s)
            if batch.number == 0 or (batch.kind == "changes" and batch.number == 1):
                life.number = 0  # it has said nothing yet, so there is nothing to have missed
        life.heard_s = now_s
        if batch.kind == "snapshot":
            if life.number is None or batch.number >= life.number:
                life = self._empty(life)
                life.number = batch.number
                self._apply(life, batch.changes)
        elif life.number is None or batch.number > life.number + (batch.kind == "changes"):
            return Answer.GAP
        elif batch.number > life.number:
            life.number = batch.number
            self._apply(life, batch.changes)
        return Answer.TAKEN

    def drop(self, worker_id: str, epoch: Epoch, now_s: float) -> None:
        """The worker died: its entries vanish. Nothing happens to a later life of it."""
        life = self._lives.get(worker_id)
        if life is not None and life.epoch <= epoch:
            self._end(worker_id, now_s)
        if life is None or life.epoch <= epoch:
            fence = self._fences.get(worker_id)
            self._fences[worker_id] = (max(epoch, fence[0] if fence else ""), now_s)

    # Subscribers

    def watch(self, watch: Watch, now_s: float) -> bool:
        """False if a message before it is missing: one that is `anew` must come next."""
        return self._subscriptions.take(watch, now_s)

    def has_news(self, name: str, taken: int, now_s: float) -> bool:
        """Whether `take_news` has something to say now; that a subscriber is unknown, or missed news, is something."""
        subscriber = self._subscriptions.get(name)
        if subscriber is None:
            return True
        return now_s >= self._quiet_until_s and (subscriber.has_news or taken != subscriber.number)

    def take_news(self, name: str, taken: int, now_s: float, limit: int = MAX_NEWS) -> News | None:
        """What changed since the news number `taken`, which the subscriber took last; maybe nothing.

        If others were lost on the way everything is told again. None for one that is unknown: it watches anew.
        """
        subscriber = self._subscriptions.get(name)
        if subscriber is None:
            return None
        subscriber.heard_s = now_s
        if taken != subscriber.number:
            self._subscriptions.repeat(subscriber)
        if not subscriber.has_news or now_s < self._quiet_until_s:
            return News(subscriber.number)
        subscriber.number = max(subscriber.number, taken) + 1
        gone, subscriber.gone = tuple(subscriber.gone), {}
        ids = list(subscriber.changed)[:limit]
        lives: dict[int, int] = {}
        encodings = []
        for encoding_id in ids:
            del subscriber.changed[encoding_id]
            told = []
            for placement in self._placements(encoding_id):
                at = lives.setdefault(placement >> PACKED_BITS, len(lives))
                told.append(at << PACKED_BITS | placement & _PACKED)
            encodings.append((encoding_id, tuple(told)))
        names = tuple((self._by_index[index].worker_id, self._by_index[index].epoch) for index in lives)
        return News(subscriber.number, names, gone, tuple(encodings))

    def tell(self, interest: Interest, now_s: float) -> None:
        """Take what a subscriber knows of uses and pins. Dropped when it is not heard of any more."""
        if self._subscriptions.get(interest.source) is None:
            return  # it will say all of it again when it watches anew
        for encoding_id, use in interest.uses:
            self._interests.put_use(interest.source, encoding_id, use, now_s)
        for encoding_id, for_s in interest.pins:
            self._interests.put_pin(interest.source, encoding_id, for_s, now_s)

    # Questions

    def find(self, encoding_id: EncodingId, now_s: float) -> EncodingRecord:
        """One that is nowhere has no placements."""
        held = []
        for placement in self._placements(encoding_id):
            life = self._by_index[placement >> PACKED_BITS]
            held.append(HeldPlacement(life.worker_id, life.epoch, *unpack(placement & _PACKED)))
        namespace = self._records[encoding_id][0] if held else ""
        pinned_s = self._interests.pinned_s(encoding_id, now_s)
        next_use = self._interests.next_use(encoding_id, now_s)
        num_tokens = max((each.num_tokens for each in held), default=0)
        held.sort(key=lambda each: (each.worker_id, each.tier))
        return EncodingRecord(encoding_id, namespace, num_tokens, tuple(held), pinned_s, next_use)

    def status(self) -> ShardStatus:
        workers = [
            WorkerHoldings(life.worker_id, life.epoch, life.number, life.count)
            for _, life in sorted(self._lives.items())
        ]
        return ShardStatus(len(self._records), len(self._subscriptions), tuple(workers))

    # Time

    def tick(self, now_s: float) -> None:
        """Forget who is late, idle or long over. Call it every second or so."""
        for life in list(self._lives.values()):
            if life.heard_s + self._late_s < now_s:
                self._end(life.worker_id, now_s, late=True)
        for name in self._subscriptions.drop_idle(now_s - self._idle_s):
            self._interests.drop(name)
        self._interests.expire(now_s)
        for worker_id in [each for each, (_, since_s) in self._fences.items() if since_s + FENCE_S < now_s]:
            del self._fences[worker_id]

    def sweep(self, limit: int) -> bool:
        """Look at up to `limit` records for what lives that are over left in them. False once nothing is left."""
        if not self._retired:
            self._sweep.clear()
            return False
        if not self._sweep:
            self._sweep = list(self._records)
        for _ in range(min(limit, len(self._sweep))):
            encoding_id = self._sweep.pop()
            record = self._records.get(encoding_id)
            if record is not None and any(each >> PACKED_BITS in self._retired for each in record[1:]):
                self._put(encoding_id, record[0], self._living(record))
        return True

    # Inside

    def _begin(self, worker_id: str, epoch: Epoch, now_s: float) -> _Life:
        self._last_index += 1
        life = _Life(worker_id, epoch, self._last_index, now_s)
        self._last_epoch = max(self._last_epoch, int(epoch, 16))
        self._lives[worker_id] = self._by_index[life.index] = life
        return life

    def _end(self, worker_id: str, now_s: float, *, late: bool = False) -> None:
        """One that was only `late` may speak again; what came before it may not."""
        life = self._lives.pop(worker_id, None)
        if life is None:
            return
        self._retire(life)
        self._fences[worker_id] = (f"{int(life.epoch, 16) - late:016x}", now_s)

    def _empty(self, life: _Life) -> _Life:
        """The same life with nothing in it."""
        if not life.count:
            return life
        self._retire(life)
        return self._begin(life.worker_id, life.epoch, life.heard_s)

    def _retire(self, life: _Life) -> None:
        del self._by_index[life.index]
        if life.count:
            self._retired[life.index] = life.count
            self._subscriptions.ended(life.worker_id, life.epoch)

    def _apply(self, life: _Life, changes: Iterable[PackedChange]) -> None:
        records, watchers = self._records, self._subscriptions.watchers
        first, high = life.index << _TIER_BITS, life.index << PACKED_BITS
        for encoding_id, packed, namespace in changes:
            record = records.get(encoding_id)
            if record is None:
                if packed & STATE_MASK:
                    records[encoding_id] = (intern(namespace), high | packed)
                    life.count += 1
            else:
                where = first | packed >> TIER_SHIFT
                placements = self._living(record, where)
                if packed & STATE_MASK:
                    placements.append(high | packed)
                    life.count += 1
                self._put(encoding_id, intern(namespace) if namespace else record[0], placements)
            if encoding_id in watchers:
                self._subscriptions.changed(encoding_id)

    def _living(self, record: _Record, without: int = -1) -> list[int]:
        """The record's placements but for that in `without`, an index and a tier, and those of lives that are over."""
        kept: list[int] = []
        for placement in record[1:]:
            life = self._by_index.get(placement >> PACKED_BITS)
            if life is None:
                self._swept(placement >> PACKED_BITS)
            elif placement >> TIER_SHIFT == without:
                life.count -= 1
            else:
                kept.append(placement)
        return kept

    def _swept(self, index: int) -> None:
        self._retired[index] -= 1
        if not self._retired[index]:
            del self._retired[index]

    def _put(self, encoding_id: EncodingId, namespace: str, placements: list[int]) -> None:
        if placements:
            self._records[encoding_id] = (namespace, *placements)
        else:
            del self._records[encoding_id]

    def _placements(self, encoding_id: EncodingId) -> list[int]:
        record = self._records.get(encoding_id, ())
        return [each for each in record[1:] if each >> PACKED_BITS in self._by_index]

    def check_integrity(self) -> None:
        """Raises AssertionError if placements are counted wrongly, doubled, or nobody's, or a life is known twice."""
        counts: dict[int, int] = {}
        for record in self._records.values():
            placements = record[1:]
            assert placements
            assert all(placement & STATE_MASK for placement in placements)
            assert len({placement >> TIER_SHIFT for placement in placements}) == len(placements)
            for placement in placements:
                index = placement >> PACKED_BITS
                counts[index] = counts.get(index, 0) + 1
        living = {life.index: life.count for life in self._lives.values()}
        assert counts == {index: count for index, count in (living | self._retired).items() if count}
        assert {index: life.count for index, life in self._by_index.items()} == living
        assert not living.keys() & self._retired.keys()
        assert all(life.worker_id == worker_id for worker_id, life in self._lives.items())
        for worker_id, (epoch, _) in self._fences.items():
            assert worker_id not in self._lives or self._lives[worker_id].epoch > epoch
        assert self._interests.sources() <= {
            each for each in self._interests.sources() if self._subscriptions.get(each)
        }
        self._subscriptions.check_integrity()
