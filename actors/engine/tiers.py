"""What lies below the device: host memory and disk of one worker, what comes from other workers, and the way back up.

Owned by the engine's thread. Whatever comes from elsewhere arrives in host pages; the device is loaded from those.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from math import inf
from typing import Literal, Protocol

import torch

from laban.actors.calls import Source
from laban.actors.engine.counters import Counters
from laban.actors.engine.direct import DirectMemory
from laban.actors.engine.disk_folder import rows_of
from laban.actors.engine.flights import Flights
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.measured import MeasuredRates
from laban.actors.engine.runs import Runs
from laban.actors.engine.saves import Saves
from laban.actors.engine.spills import Spills
from laban.actors.engine.tallying import Tallying
from laban.kvstore.arrivals import Arrival, Standing
from laban.kvstore.disk import DiskTier
from laban.kvstore.disk_files import Chunk
from laban.kvstore.encodings import EncodingId, EncodingSpec
from laban.kvstore.needs import Needs, encode_tokens
from laban.kvstore.placements import PlacementChange, Tier
from laban.kvstore.store import EncodingStore, Entry, Order

log = logging.getLogger(__name__)

SAVE_BELOW = 0.5
"""Encodings are copied to the host once less than this share of the device's pages is free: till then none goes."""
MIX_ABOVE = 0.15
"""Loading and encoding go on at once if loading alone takes more than this share of encoding alone."""
MIN_MIX_TOKENS = 256
AHEAD_SHARE = 0.5
"""Of the host's pages, for what comes from elsewhere and nobody has asked for: what is lent to others needs some, too.
Where all of them wait for each other to have room, all are refused."""
SPARE_TO_SAVE = 64
"""So many encodings that are to be saved and are gone are kept among the others before they are looked for."""
MAX_EVICTED = 100_000
"""Remembered, to tell what is encoded again from what is encoded for the first time."""


class Way(Enum):
    """How an encoding that the device lacks is had again."""

    ENCODE = auto()
    LOAD = auto()
    MIX = auto()  # the tail is loaded, the head encoded
    RESUME = auto()  # a prefix is loaded, the rest encoded
    WAIT = auto()  # it is on its way to the host
    CORRECT = auto()  # predicted from others of the same tokens


class Fetcher(Protocol):
    """Brings encodings from other workers."""

    def fetch(
        self,
        source: Source,
        num_tokens: int,
        write: Callable[[int, int, torch.Tensor], None],
        runs: Callable[[int, int], Runs],
    ) -> Arrival:
        """Begins. Other threads call `write(begin, end, rows)`, rows as HostPool.write takes them, or write to the
        slots `runs(begin, end)` themselves, until the arrival has ended."""
        ...

    def close(self) -> None:
        """What it has begun has been cancelled."""


@dataclass(slots=True, eq=False)
class _Coming:
    arrival: Arrival
    entry: Entry
    spec: EncodingSpec | None  # None for what another worker wants: nobody here said what it is
    kind: Literal["disk", "peer"]
    source: Source | None
    dropped: bool = False


class Tiers:
    """One for each engine; `pool` None has no room for anything, and every way is to encode."""

    def __init__(
        self,
        pool: HostPool | None,
        flights: Flights | None,
        needs: Needs,
        rates: MeasuredRates,
        counters: Counters,
        *,
        tenant_share: float = 1.0,
        disk: DiskTier | None = None,
        direct: DirectMemory | None = None,
        tallying: Tallying | None = None,
    ) -> None:
        self.direct = direct or DirectMemory(None)
        self.pool, self.flights, self.needs, self.rates, self.disk = pool, flights, needs, rates, disk
        self.counters, self.tallying = counters, tallying or Tallying()
        self.fetcher: Fetcher | None = None
        self.mixes = True  # else what is loaded is loaded whole: for comparison
        num_pages = 0 if pool is None else pool.allocator.num_pages
        self.host: EncodingStore | None = None
        if pool is not None:
            self.host = EncodingStore(
                num_pages,
                pool.page_size,
                tier=Tier.HOST,
                order=needs.order(self._bring_back_to_host_s),
                tenant_pages=max(1, int(num_pages * tenant_share)),
                on_evict=self._host_evicts,
            )
        self._coming: dict[EncodingId, _Coming] = {}
        self._to_save: deque[Entry] = deque()
        self._most_to_save = SPARE_TO_SAVE
        self._evicted: OrderedDict[EncodingId, None] = OrderedDict()
        self._saves: Saves | None = None
        self._spills: Spills | None = None
        if self.host is not None and flights is not None:
            self._saves = Saves(flights, self.host, needs.bytes_per_token, counters)
        if self.host is not None and pool is not None and disk is not None:
            self._spills = Spills(
                disk,
                self.host,
                pool,
                needs,
                counters,
                self.tallying,
                encode_s=self.encode_s,
                encode_again_s=self._encode_again_s,
                is_coming=self.is_coming,
                on_evict=partial(self._tally_eviction, Tier.DISK),
            )

    # What having something again takes

    def load_s(self, num_tokens: int) -> float:
        return num_tokens * self.needs.bytes_per_token / self.rates.expected.host_bytes_per_s

    def encode_s(self, num_tokens: int) -> float:
        return num_tokens / self.rates.expected.encode_tokens_per_s

    def bring_back_s(self, entry: Entry) -> float:
        """To the device, for an entry of the device."""
        encode_s = self._encode_again_s(entry)
        if self.host is not None and self.host.get_ready(entry.key) is not None:
            return min(encode_s, self.load_s(entry.num_tokens))
        if self.is_on_disk(entry.key):
            return min(encode_s, self._disk_s(entry.num_tokens) + self.load_s(entry.num_tokens))
        return encode_s

    def _bring_back_to_host_s(self, entry: Entry) -> float:
        encode_s = self._encode_again_s(entry)
        return min(encode_s, self._disk_s(entry.num_tokens)) if self.is_on_disk(entry.key) else encode_s

    def _encode_again_s(self, entry: Entry) -> float:
        """With its evicted ancestors only if a read of it is expected: an answer nobody reads is not kept for those."""
        if entry.spec is None or self.needs.use(entry.key) is None:
            return self.encode_s(entry.num_tokens or entry.capacity)
        return self.encode_s(encode_tokens(entry.spec, self._is_somewhere))

    def _is_somewhere(self, encoding_id: EncodingId) -> bool:
        return self.is_on_device(encoding_id) or (self.host is not None and encoding_id in self.host)

    is_on_device: Callable[[EncodingId], bool] = staticmethod(lambda encoding_id: False)
    last_write: Callable[[], torch.cuda.Event | None] = staticmethod(lambda: None)
    """After it all that was published stands on the device: an iteration under way may write its last tokens."""

    def _disk_s(self, num_tokens: int) -> float:
        return num_tokens * self.needs.bytes_per_token / self.rates.expected.disk_bytes_per_s

    # The way up

    def way(
        self,
        spec: EncodingSpec,
        sources: Iterable[Source],
        refused: Collection[object],
        *,
        wanted: bool = True,
        kept: Iterable[EncodingId] = (),
    ) -> Way:
        """How `spec`, which the device lacks, should be had, as far as it may: `refused` are sources not to be asked.

        WAIT begins an arrival if none is under way; it evicts none of `kept` and, unless `wanted` by a call, nothing
        that is worth more.
        """
        if self.host is None:
            return Way.ENCODE
        if spec.encoding_id in self._coming:
            return Way.WAIT
        held = self.host.get_ready(spec.encoding_id)
        if held is not None:
            return Way.ENCODE if from_host(spec.encoding_id) in refused else self._way_of_held(spec, held)
        if self._begin_arrival(spec, sources, refused, wanted, kept):
            return Way.WAIT
        return Way.ENCODE

    def mixing_pays(self, num_tokens: int) -> bool:
        """Whether to encode from the front of what is still to be loaded."""
        return (
            self.mixes
            and num_tokens >= MIN_MIX_TOKENS
            and self.load_s(num_tokens) > MIX_ABOVE * self.encode_s(num_tokens)
        )

    def held_tokens(self, encoding_id: EncodingId) -> int:
        """That the host has of an encoding, from the first on."""
        held = None if self.host is None else self.host.get_ready(encoding_id)
        return 0 if held is None else held.num_tokens

    def take_source(self, encoding_id: EncodingId) -> Entry:
        """The host's entry, pinned for a load."""
        assert self.host is not None
        source = self.host.get_ready(encoding_id)
        assert source is not None
        self.host.pin(source)
        return source

    def put_source(self, source: Entry) -> None:
        assert self.host is not None
        self.host.unpin(source)

    def was_here(self, encoding_id: EncodingId) -> bool:
        """Whether the device had it before."""
        return encoding_id in self._evicted

    def _way_of_held(self, spec: EncodingSpec, held: Entry) -> Way:
        load_s = self.load_s(held.num_tokens)
        if held.num_tokens < spec.num_tokens:
            return Way.RESUME if load_s < self.encode_s(held.num_tokens) else Way.ENCODE
        if self.mixing_pays(spec.num_tokens):
            return Way.MIX
        if not self.mixes:
            return Way.LOAD
        return Way.LOAD if load_s < self.encode_s(encode_tokens(spec, self._is_somewhere)) else Way.ENCODE

    def _begin_arrival(
        self,
        spec: EncodingSpec,
        sources: Iterable[Source],
        refused: Collection[object],
        wanted: bool,
        kept: Iterable[EncodingId],
    ) -> bool:
        """The fastest of disk and other workers, if that is faster than encoding and there is room in the host."""
        encode_s = self.encode_s(encode_tokens(spec, self._is_somewhere))
        options: list[tuple[float, Source | None]] = []
        if self.is_on_disk(spec.encoding_id) and ("disk", spec.encoding_id) not in refused:
            options.append((self._disk_s(spec.num_tokens), None))
        if self.fetcher is not None:
            options += [(s.transfer_s, s) for s in sources if s.encoding_id == spec.encoding_id and s not in refused]
        options.sort(key=lambda option: option[0])
        for seconds, source in options:
            if seconds + self.load_s(spec.num_tokens) < encode_s and self._arrive(spec, source, wanted, kept):
                return True
        return False

    def _arrive(self, spec: EncodingSpec, source: Source | None, wanted: bool, kept: Iterable[EncodingId]) -> bool:
        assert self.host is not None
        worth: tuple[float, ...] = (inf,)
        beside: Order | None = None
        if not wanted:
            if not self._may_come_ahead(spec.num_tokens):
                return False
            again_s = self.encode_s(spec.num_tokens)
            bring_s = self._disk_s(spec.num_tokens) if source is None else source.transfer_s
            worth = self.needs.worth_bringing(spec.encoding_id, spec.num_tokens, again_s, bring_s)
            beside = self.needs.order_beside(self._bring_back_to_host_s)
        pinned = [entry for each in kept if (entry := self.host.get_ready(each)) is not None]
        for entry in pinned:
            self.host.pin(entry)
        began = self._begin(spec.encoding_id, spec.num_tokens, tenant_of(spec), spec, source, worth, beside)
        for entry in pinned:
            self.host.unpin(entry)
        return began

    def _may_come_ahead(self, num_tokens: int) -> bool:
        """Beside what is on its way; something larger than their share alone."""
        assert self.host is not None
        taken = sum(len(coming.entry.pages) for coming in self._coming.values())
        return not taken or taken + self.host.pages_for(num_tokens) <= AHEAD_SHARE * self.host.allocator.num_pages

    def bring_for_others(self, encoding_id: EncodingId) -> bool:
        """Begins to bring what is on disk to the host, where other workers can read it; False if it has no room."""
        if self._spills is None or encoding_id not in self._spills:
            return False
        num_tokens, tenant = self._spills.tokens_and_namespace(encoding_id)
        worth = self.needs.order_of(encoding_id, num_tokens, self.needs.now_s, self._disk_s(num_tokens))
        return self._begin(encoding_id, num_tokens, tenant, None, None, worth)

    def _begin(
        self,
        encoding_id: EncodingId,
        num_tokens: int,
        tenant: str,
        spec: EncodingSpec | None,
        source: Source | None,
        worth: tuple[float, ...],
        beside: Order | None = None,
    ) -> bool:
        assert self.host is not None
        assert self.pool is not None
        pool = self.pool
        entry = self.host.reserve_for(encoding_id, num_tokens, tenant, worth, beside)
        if entry is None:
            return False
        entry.spec = spec

        def write(begin: int, end: int, rows: torch.Tensor) -> None:
            pool.write(entry.runs(begin, end), rows)

        def write_chunk(begin: int, end: int, chunk: Chunk) -> None:
            write(begin, end, rows_of(chunk, pool.k.dtype))

        if source is None:
            assert self.disk is not None
            arrival = self.disk.load(encoding_id, write_chunk)
        else:
            assert self.fetcher is not None
            arrival = self.fetcher.fetch(source, num_tokens, write, entry.runs)
        kind: Literal["disk", "peer"] = "disk" if source is None else "peer"
        self._coming[encoding_id] = _Coming(arrival, entry, spec, kind, source)
        self.host.tell_loading(entry)
        return True

    @property
    def num_coming(self) -> int:
        return len(self._coming)

    def loaded(self, num_bytes: int, seconds: float) -> None:
        """From the host to the device, at full rate."""
        self.rates.loaded(num_bytes, seconds)
        self.tallying.copied("host", num_bytes, seconds)

    def is_coming(self, encoding_id: EncodingId) -> bool:
        return encoding_id in self._coming

    def is_on_disk(self, encoding_id: EncodingId) -> bool:
        return self._spills is not None and encoding_id in self._spills

    def comes_from_peer(self, encoding_id: EncodingId) -> bool:
        return encoding_id in self._coming and self._coming[encoding_id].kind == "peer"

    @property
    def under_way(self) -> list[Arrival]:
        """What brings encodings to the host and what takes them to disk, in the same order in all shards."""
        writes = [] if self._spills is None else self._spills.under_way
        return [*(coming.arrival for coming in self._coming.values()), *writes]

    def take_arrivals(self, standings: Sequence[Standing]) -> list[tuple[EncodingId, object, bool]]:
        """Encodings that have come to the host, or will not: (id, who was asked for it, whether that failed).

        `standings` are those of `under_way`. What has come of one that broke off is kept: a prefix.
        """
        ended: list[tuple[EncodingId, object, bool]] = []
        num_coming = len(self._coming)
        if self._spills is not None:
            self._spills.take_written(standings[num_coming:])
        for (encoding_id, coming), standing in zip(list(self._coming.items()), standings[:num_coming], strict=True):
            if standing.failed:  # in another shard too: no more of it is wanted here
                coming.arrival.cancel()
            if not standing.ended:
                continue
            del self._coming[encoding_id]
            self._take_arrival(encoding_id, coming, standing)
            asked = ("disk", encoding_id) if coming.source is None else coming.source
            ended.append((encoding_id, asked, standing.failed))
        return ended

    def _take_arrival(self, encoding_id: EncodingId, coming: _Coming, standing: Standing) -> None:
        assert self.host is not None
        done = standing.num_tokens_done
        failed = standing.failed and not coming.dropped
        waited_s = coming.arrival.waited_s
        took_s = standing.seconds + waited_s  # whoever chooses between this and encoding waits for both
        self.rates.copied(coming.kind, standing.num_bytes, took_s)
        if coming.kind == "peer":  # a transport that does not serve is as slow as what served in its place
            self.rates.copied(coming.arrival.link, standing.num_bytes, took_s)
        link = "disk" if coming.kind == "disk" else coming.arrival.via
        self.tallying.copied(link, standing.num_bytes, standing.seconds, failed=failed, waited_s=waited_s)
        self.counters.add(f"tokens_loaded_{coming.kind}", done)
        if done:
            self.host.publish(coming.entry, encoding_id, done, coming.spec)
            self.host.unpin(coming.entry)
        else:
            self.host.discard(coming.entry)
        if not standing.failed:
            return
        why = coming.arrival.problem or "another shard's part did not come"
        log.debug("%s came only in part (%d of %d tokens): %s", encoding_id, done, coming.arrival.num_tokens, why)
        if coming.source is None and self._spills is not None:
            self._spills.drop(encoding_id)

    # The way down

    def published(self, entry: Entry) -> None:
        """An encoding stands on the device: a candidate to be saved."""
        if self.host is None or self.host_has(entry):
            return
        self._to_save.append(entry)
        if len(self._to_save) > self._most_to_save:  # the device may have let go of some, or all
            self._to_save = deque(e for e in self._to_save if self.is_on_device(e.key))
            self._most_to_save = 2 * len(self._to_save) + SPARE_TO_SAVE

    def save(self, device: EncodingStore) -> None:
        """Copies to the host what the device may have to let go soon, and from there to disk."""
        if self.host is None:
            return
        allocator = device.allocator
        while self._to_save and allocator.num_free < SAVE_BELOW * allocator.num_pages:
            entry = self._to_save.popleft()
            if device.get(entry.key) is entry and not self.host_has(entry) and not self.save_one(device, entry):
                break
        if self._spills is not None:
            self._spills.run()

    def host_has(self, entry: Entry) -> bool:
        """Whether as much of an entry of the device is in the host, or coming. A part that was kept of a transfer which
        broke off, and that nobody reads, makes room for the whole."""
        held = None if self.host is None else self.host.get(entry.key)
        return held is not None and not (held.ready and held.pins == 0 and held.num_tokens < entry.num_tokens)

    def save_one(self, device: EncodingStore, entry: Entry) -> Entry | None:
        """Begins to copy an entry of the device, which the host does not have, to it, if it has room; returns the
        host's, which is not ready."""
        assert self.host is not None
        assert self._saves is not None
        self.host.drop(entry.key)
        worth = self.needs.order_of(entry.key, entry.num_tokens, entry.last_use_s, self.encode_s(entry.num_tokens))
        room = self.host.reserve_for(entry.key, entry.num_tokens, entry.tenant, worth)
        if room is None:
            return None
        self._saves.begin(entry, room, device)
        return room

    def pump_saves(self, *, beside: bool, idle: bool) -> None:
        """Issues saves; `beside` decodes gently, `idle` with little at once."""
        if self._saves:
            self._saves.pump(self.rates.expected, self.last_write, beside=beside, idle=idle)

    def drop(self, encoding_id: EncodingId) -> bool:
        """Forget an encoding in the host's memory and on disk; whether it is gone. What is being copied goes later."""
        coming = self._coming.get(encoding_id)
        if coming is not None:
            coming.dropped = True
            coming.arrival.cancel()
        elif self._spills is not None:
            self._spills.drop(encoding_id)
        on_host = self.host is not None and not self.host.drop(encoding_id)
        if self._spills is not None and not on_host:
            self._spills.left_host(encoding_id)
        return not (on_host or coming or (self._spills is not None and self._spills.is_writing(encoding_id)))

    def limit_disk(self, limits: dict[str, int]) -> None:
        """Bytes of tenants that may have so many; `shrink_disk` sees to it."""
        if self._spills is not None:
            self._spills.limits = limits

    def shrink_disk(self, tenant: str) -> None:
        """Drop what is more than its limit, what is worth least first."""
        if self._spills is not None:
            self._spills.shrink(tenant)

    def device_evicts(self, entry: Entry) -> None:
        self._tally_eviction(Tier.DEVICE, entry.key)
        self.counters.add("num_evicted_device", 1)
        self._evicted[entry.key] = None
        if len(self._evicted) > MAX_EVICTED:
            self._evicted.popitem(last=False)

    def _host_evicts(self, entry: Entry) -> None:
        self._tally_eviction(Tier.HOST, entry.key)
        self.counters.add("num_evicted_host", 1)
        if self._spills is not None:
            self._spills.left_host(entry.key)

    def _tally_eviction(self, tier: Tier, encoding_id: EncodingId) -> None:
        use = self.needs.use(encoding_id)
        if use is not None:
            self.tallying.observe(f"evicted_steps_{tier.name.lower()}", use.steps)

    # What the engine asks

    def date(self, now_s: float) -> None:
        self.needs.now_s = now_s
        if self.host is not None:
            self.host.now_s = now_s

    @property
    def host_bytes(self) -> int:
        return 0 if self.pool is None else self.pool.num_bytes

    @property
    def disk_bytes(self) -> int:
        return 0 if self.disk is None else self.disk.max_bytes

    @property
    def is_busy(self) -> bool:
        """Whether something is under way of which the engine should hear soon."""
        in_flight = self.flights is not None and len(self.flights)
        return bool(self._coming or self._saves or in_flight or (self._spills is not None and self._spills.is_busy))

    @property
    def host_bytes_used(self) -> int:
        if self.host is None:
            return 0
        allocator = self.host.allocator
        return (allocator.num_pages - allocator.num_free) * self.host.page_size * self.needs.bytes_per_token

    @property
    def disk_bytes_used(self) -> int:
        return 0 if self._spills is None else self._spills.used_bytes

    def take_changes(self) -> tuple[PlacementChange, ...]:
        below = () if self.host is None else self.host.take_changes()
        return below if self._spills is None else (*below, *self._spills.changes.take())

    def close(self) -> None:
        for coming in self._coming.values():
            coming.arrival.cancel()
        if self.fetcher is not None:
            self.fetcher.close()
        self.direct.close()
        if self.disk is not None:
            self.disk.close()
        if self.flights is not None:
            self.flights.close()


def from_host(encoding_id: EncodingId) -> object:
    """What is refused where it could not be copied from the host."""
    return "host", encoding_id


def tenant_of(spec: EncodingSpec) -> str:
    """Whose it is: what the control plane put behind the model's own namespace."""
    return spec.namespace
