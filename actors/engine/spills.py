"""What of a worker's encodings lies on disk: what goes there from host memory, what has to go from there, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from laban.actors.engine.counters import Counters
from laban.actors.engine.disk_folder import chunk_of
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.tallying import Tallying
from laban.kvstore.arrivals import Arrival, Standing
from laban.kvstore.disk import DiskTier
from laban.kvstore.disk_files import Chunk
from laban.kvstore.encodings import EncodingId, EncodingSpec, owner_of
from laban.kvstore.needs import Needs
from laban.kvstore.placements import MergedChanges, PlacementChange, PlacementState, Tier
from laban.kvstore.store import EncodingStore, Entry

SPILL_BELOW = 0.25
"""Encodings are written to disk once less than this share of the host's pages is free: till then none goes."""
MAX_SPILLS = 2
SPILL_EVERY_S = 0.05


@dataclass(slots=True, eq=False)
class _Write:
    arrival: Arrival
    entry: Entry
    num_bytes: int
    dropped: bool = False


class Spills:
    """Owned by the engine's thread; the disk's own threads read and write.

    Shards of a worker have a Spills each, over a disk of their own, and the same is on all disks: all go by their own
    count of what they gave them, and by the standings of writes that are made of all shards'.
    """

    def __init__(
        self,
        disk: DiskTier,
        host: EncodingStore,
        pool: HostPool,
        needs: Needs,
        counters: Counters,
        tallying: Tallying,
        *,
        encode_s: Callable[[int], float],
        encode_again_s: Callable[[Entry], float],
        is_coming: Callable[[EncodingId], bool],
        on_evict: Callable[[EncodingId], None],
    ) -> None:
        """`encode_s` of so many tokens and `encode_again_s` of an entry are what losing it would cost. What `is_coming`
        from disk is not dropped; `on_evict` is told of what is."""
        self.disk, self._host, self._pool, self._needs = disk, host, pool, needs
        self._counters, self._tallying = counters, tallying
        self._encode_s, self._encode_again_s = encode_s, encode_again_s
        self._is_coming, self._on_evict = is_coming, on_evict
        self.limits: dict[str, int] = {}  # bytes of tenants that may have so many
        self.changes = MergedChanges()
        self._held: dict[EncodingId, tuple[int, int, str]] = dict(disk.held())  # tokens, bytes, namespace
        self._taken: Counter[str] = Counter()
        self._writing: dict[EncodingId, _Write] = {}
        self.used_bytes = 0  # by what is there, what is being written and what cannot be deleted
        self._stuck_bytes = 0  # the last of these, in the shard that has the most
        self._refused: set[EncodingId] = set()  # of the host's, what is not written
        self._again_s = self._paused_until_s = 0.0
        for encoding_id, (num_tokens, num_bytes, namespace) in self._held.items():
            self._tell(encoding_id, PlacementState.READY, num_tokens, namespace)
            self._taken[owner_of(namespace)] += num_bytes
            self.used_bytes += num_bytes

    def __contains__(self, encoding_id: object) -> bool:
        return encoding_id in self._held

    @property
    def is_busy(self) -> bool:
        return bool(self._writing)

    def is_writing(self, encoding_id: EncodingId) -> bool:
        return encoding_id in self._writing

    def tokens_and_namespace(self, encoding_id: EncodingId) -> tuple[int, str]:
        """Of one that is there."""
        num_tokens, _, namespace = self._held[encoding_id]
        return num_tokens, namespace

    def run(self) -> None:
        """Begins to write what the host will lose next if it is nearly full."""
        host, now_s = self._host, self._needs.now_s
        if host.allocator.num_free >= SPILL_BELOW * host.allocator.num_pages or now_s < self._paused_until_s:
            self._refused.clear()
            return
        if len(self._writing) >= MAX_SPILLS or now_s < self._again_s:
            return
        self._again_s = now_s + SPILL_EVERY_S
        for entry in host.next_victims():
            if len(self._writing) >= MAX_SPILLS:
                return
            spec = entry.spec
            if spec is None or entry.num_tokens < spec.num_tokens or entry.key in self._held:
                continue
            if entry.key in self._writing or entry.key in self._refused:
                continue
            if not self._make_room(entry, spec):
                self._refused.add(entry.key)
                continue
            host.pin(entry, is_use=False)  # it is still what goes first
            num_bytes = self._bytes_for(entry, spec)
            self.used_bytes += num_bytes
            self._writing[entry.key] = _Write(self._write(entry, spec), entry, num_bytes)

    @property
    def under_way(self) -> list[Arrival]:
        return [write.arrival for write in self._writing.values()]

    def take_written(self, standings: Sequence[Standing]) -> None:
        """What became of `under_way`."""
        for (encoding_id, write), standing in zip(list(self._writing.items()), standings, strict=True):
            if standing.failed:  # in another shard too: no more of it is wanted here
                write.arrival.cancel()
            if not standing.ended:
                continue
            if standing.stuck_bytes > self._stuck_bytes:  # they never get fewer
                self.used_bytes += standing.stuck_bytes - self._stuck_bytes
                self._stuck_bytes = standing.stuck_bytes
            del self._writing[encoding_id]
            self._host.unpin(write.entry, is_use=False)
            if standing.pauses:
                self._paused_until_s = self._needs.now_s + self.disk.pause_s
            if standing.failed or write.dropped:
                self.used_bytes -= write.num_bytes
                self.disk.drop(encoding_id)  # if it was written here
                self._refused.add(encoding_id)
                self._tallying.add("num_saves_failed", int(not write.dropped))
                continue
            entry = write.entry
            namespace = "" if entry.spec is None else entry.spec.namespace
            self._held[encoding_id] = entry.num_tokens, write.num_bytes, namespace
            self._taken[owner_of(namespace)] += write.num_bytes
            self._counters.add("bytes_saved_disk", entry.num_tokens * self._needs.bytes_per_token)
            self._tell(encoding_id, PlacementState.READY, entry.num_tokens, namespace)

    def _bytes_for(self, entry: Entry, spec: EncodingSpec) -> int:
        return self.disk.bytes_for(entry.key, spec.namespace, entry.num_tokens)

    def _write(self, entry: Entry, spec: EncodingSpec) -> Arrival:
        def read(begin: int, end: int) -> Chunk:
            return chunk_of(self._pool.read(entry.runs(begin, end)))

        return self.disk.save(entry.key, spec.namespace, entry.num_tokens, read)

    def _make_room(self, entry: Entry, spec: EncodingSpec) -> bool:
        """Drops files that are worth less until there is room; False if there are none such."""
        disk = self.disk
        needed = self._bytes_for(entry, spec)
        if needed + self._stuck_bytes > disk.max_bytes:
            return False
        tenant = owner_of(spec.namespace)
        if tenant in self.limits and self._taken[tenant] + needed > self.limits[tenant]:
            return False
        over = self.used_bytes + needed - disk.max_bytes
        if over <= 0:
            return True
        again_s = self._encode_again_s(entry)
        worth = self._needs.order_of(entry.key, entry.num_tokens, entry.last_use_s, again_s)
        for key_worth, key, num_bytes in self._by_worth():
            if over <= 0:
                break
            if key_worth >= worth:
                return False
            self._evict(key)
            over -= num_bytes
        return over <= 0

    def shrink(self, tenant: str) -> None:
        """Drop what is more than its limit, what is worth least first."""
        over = self._taken[tenant] - self.limits[tenant]
        for _, key, num_bytes in self._by_worth(tenant) if over > 0 else ():
            if over <= 0:
                break
            self._evict(key)
            over -= num_bytes

    def _by_worth(self, tenant: str | None = None) -> list[tuple[tuple[float, ...], EncodingId, int]]:
        """The files, or those of a tenant, what is worth least first; without those that are being read."""
        return sorted(
            (self._needs.order_of(key, num_tokens, 0.0, self._encode_s(num_tokens)), key, num_bytes)
            for key, (num_tokens, num_bytes, namespace) in self._held.items()
            if (tenant is None or owner_of(namespace) == tenant) and not self._is_coming(key)
        )

    def _evict(self, encoding_id: EncodingId) -> None:
        self.drop(encoding_id)
        self._on_evict(encoding_id)
        self._counters.add("num_evicted_disk", 1)

    def drop(self, encoding_id: EncodingId) -> None:
        """Forget it; a write of it ends soon."""
        self.disk.drop(encoding_id)
        if encoding_id in self._writing:
            self._writing[encoding_id].dropped = True
        gone = self._held.pop(encoding_id, None)
        if gone is not None:
            self._taken[owner_of(gone[2])] -= gone[1]
            self.used_bytes -= gone[1]
            self._tell(encoding_id, PlacementState.GONE, 0, "")

    def left_host(self, encoding_id: EncodingId) -> None:
        self._refused.discard(encoding_id)

    def _tell(self, encoding_id: EncodingId, state: PlacementState, num_tokens: int, namespace: str) -> None:
        self.changes.add([PlacementChange(encoding_id, Tier.DISK, state, num_tokens, namespace)])
