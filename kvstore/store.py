"""The encodings that lie in one tier of a worker: which pages each has, who is reading it, what goes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laban.kvstore.encodings import EncodingId, EncodingSpec, is_common, owner_of
from laban.kvstore.pages import OutOfPages, PageAllocator
from laban.kvstore.placements import MergedChanges, PlacementChange, PlacementState, Tier

_serials = count()

ALWAYS_SORTED = 256
"""Of more entries the order of eviction is kept for a while: sorting thousands for every page would take longer than
what the eviction makes room for."""


@dataclass(slots=True, eq=False)
class Entry:
    """The pages of one encoding. Immutable once ready: nothing writes to its slots again until it is gone.

    `num_tokens` counts the tokens whose keys and values are written. A slot is one token's row of the pool.
    """

    key: str  # the encoding's id; until its tokens are known, the id of the call that makes it
    pages: list[int]
    page_size: int
    num_tokens: int = 0
    ready: bool = False
    pins: int = 0
    last_use: int = 0
    last_use_s: float = 0.0
    tenant: str = ""
    spec: EncodingSpec | None = None
    serial: int = field(default_factory=_serials.__next__)  # unlike any other entry's of this process
    _page_numbers: NDArray[np.int32] | None = None

    @property
    def page_numbers(self) -> NDArray[np.int32]:
        """`pages`, not to be changed."""
        if self._page_numbers is None or len(self._page_numbers) != len(self.pages):
            self._page_numbers = np.array(self.pages, np.int32)
        return self._page_numbers

    @property
    def capacity(self) -> int:
        """Tokens that the pages have room for."""
        return len(self.pages) * self.page_size

    def slots(self, num_tokens: int) -> list[int]:
        """Of the first tokens, one by one."""
        return [first + at for first, length in self.runs(0, num_tokens) for at in range(length)]

    def runs(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The slots of tokens [begin, end), as (first slot, length) of stretches that lie in one piece."""
        runs: list[tuple[int, int]] = []
        at = begin
        while at < end:
            page, within = divmod(at, self.page_size)
            length = min(self.page_size - within, end - at)
            first = self.pages[page] * self.page_size + within
            if runs and sum(runs[-1]) == first:
                runs[-1] = (runs[-1][0], runs[-1][1] + length)
            else:
                runs.append((first, length))
            at += length
        return runs


Order = Callable[[Entry], Any]
"""A sort key of entries: the lowest is evicted first."""


def by_last_use(entry: Entry) -> int:
    return entry.last_use


class EncodingStore:
    """Encodings by id over a pool of pages, with pins against eviction and eviction by `order`.

    Reserving evicts what is unpinned; it never touches what is pinned. An entry that is not ready has exactly one
    writer. One tenant's entries never take more than `tenant_pages`; what is common to several counts for none. Not
    safe for several threads: the engine's thread owns it.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        tier: Tier = Tier.DEVICE,
        order: Order = by_last_use,
        tenant_pages: int | None = None,
        on_evict: Callable[[Entry], None] = lambda entry: None,
        on_free: Callable[[list[int]], None] = lambda pages: None,
    ) -> None:
        """`on_evict` is told of what is about to be evicted, `on_free` of pages that are given back."""
        self.page_size = page_size
        self.tier = tier
        self.allocator = PageAllocator(num_pages)
        self.tenant_pages = num_pages if tenant_pages is None else min(tenant_pages, num_pages)
        self.limits: dict[str, int] = {}  # pages of tenants that may have less
        self.now_s = 0.0  # dates last uses
        self._order, self._on_evict, self._on_free = order, on_evict, on_free
        self._entries: dict[str, Entry] = {}
        self._clock = 0
        self._changes = MergedChanges()
        self._unpinned: Counter[str] = Counter()  # pages, by tenant
        self._taken: Counter[str] = Counter()
        self._sorted: list[tuple[Any, int, Entry]] = []  # the first to go last
        self._num_kept = 0  # evictions until they are sorted again

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def get_ready(self, key: str) -> Entry | None:
        entry = self._entries.get(key)
        return entry if entry is not None and entry.ready else None

    def entries(self) -> Iterable[Entry]:
        return self._entries.values()

    def ready_ids(self) -> list[tuple[EncodingId, int]]:
        """(id, num_tokens) of every ready encoding."""
        return [(entry.key, entry.num_tokens) for entry in self._entries.values() if entry.ready]

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def most_pages(self, tenant: str) -> int:
        """That a tenant may have; all there are for what is nobody's."""
        if is_common(tenant):
            return self.allocator.num_pages
        return min(self.tenant_pages, self.limits.get(owner_of(tenant), self.tenant_pages))

    def taken(self, tenant: str) -> int:
        """Pages that it has."""
        return self._taken[tenant]

    def shrink(self, tenant: str) -> None:
        """Evict what is more than its limit, as far as nobody reads it."""
        if self._taken[tenant] > self.most_pages(tenant):
            self._make_room(0, tenant)

    def num_obtainable(
        self, keep: Iterable[str] = (), tenant: str = "", num_common: int = 0, freed: Iterable[Entry] = ()
    ) -> int:
        """Pages that the tenant can have without evicting anything pinned or in `keep`, if `num_common` of them count
        for no tenant. Once those `freed`, which are pinned now, are given back."""
        everyone, own = self.obtainable(keep, tenant, freed)
        return min(everyone, num_common + own)

    def obtainable(self, keep: Iterable[str] = (), tenant: str = "", freed: Iterable[Entry] = ()) -> tuple[int, int]:
        """Of `num_obtainable` its two bounds: the pages that anyone can have, and those that its share leaves it."""
        tenant = owner_of(tenant)
        kept = [e for key in set(keep) if (e := self._entries.get(key)) is not None and e.pins == 0]
        given: Counter[str] = Counter()  # less what is kept
        for sign, entries in ((-1, kept), (1, freed)):
            for entry in entries:
                given[entry.tenant] += sign * len(entry.pages)
        everyone = self.allocator.num_free + self._unpinned.total() + given.total()
        own = self.most_pages(tenant) - self._taken[tenant] + self._unpinned[tenant] + given[tenant]
        return everyone, own

    def reserve(self, key: str, num_tokens: int, tenant: str = "") -> Entry:
        """Pages for up to `num_tokens` tokens, pinned once for the caller. Evicts as needed.

        Raises OutOfPages (nothing evicted) or ValueError for a key that is taken.
        """
        if key in self._entries:
            raise ValueError(f"encoding {key} is in the store already")
        tenant = owner_of(tenant)
        count = self.pages_for(num_tokens)
        obtainable = self.num_obtainable(tenant=tenant)
        if count > obtainable:
            raise OutOfPages(f"{count} pages asked for, {obtainable} to be had")
        self._make_room(count, tenant)
        entry = Entry(key, self.allocator.allocate(count), self.page_size, pins=1, tenant=tenant)
        self._taken[tenant] += count
        self._entries[key] = entry
        return entry

    def reserve_for(
        self, key: str, num_tokens: int, tenant: str, worth: Any, beside: Order | None = None
    ) -> Entry | None:
        """As `reserve`, but evicts only what its order, or `beside`, puts before `worth`; None if too little."""
        order = beside or self._order
        count = self.pages_for(num_tokens)
        if count > self.num_obtainable(tenant=tenant):
            return None
        for entry in self._victims(count, owner_of(tenant)):
            if order(entry) >= worth:
                return None
        return self.reserve(key, num_tokens, tenant)

    def pin(self, entry: Entry, *, is_use: bool = True) -> None:
        """It stays. With `is_use` it is read for somebody, which dates its last use; else it is only copied, to go."""
        if entry.pins == 0:
            self._unpinned[entry.tenant] -= len(entry.pages)
        entry.pins += 1
        if is_use:
            self.touch(entry)

    def unpin(self, entry: Entry, *, is_use: bool = True) -> None:
        """As it was pinned."""
        if entry.pins < 1:
            raise ValueError(f"encoding {entry.key} is not pinned")
        entry.pins -= 1
        if entry.pins == 0:
            self._unpinned[entry.tenant] += len(entry.pages)
        if is_use:
            self.touch(entry)

    def publish(self, entry: Entry, key: EncodingId, num_tokens: int, spec: EncodingSpec | None = None) -> Entry:
        """Makes `entry` the ready encoding `key` of `num_tokens` tokens and gives spare pages back.

        If the store has `key` already, the pins move there, the new pages are freed, and that one is returned.
        """
        existing = self._entries.get(key)
        if existing is not None and existing is not entry and existing.ready:
            for _ in range(entry.pins):
                self.pin(existing)
            self._drop(entry)
            self.touch(existing)
            return existing
        del self._entries[entry.key]
        entry.key, entry.num_tokens, entry.ready, entry.spec = key, num_tokens, True, spec
        spare = entry.pages[self.pages_for(num_tokens) :]
        del entry.pages[self.pages_for(num_tokens) :]
        self._give_back(entry, spare)
        # An unready namesake (another call computing the same thing) keeps its pages under a name of its own.
        if existing is not None and existing is not entry:
            existing.key = f"{key}/{id(existing):x}"
            self._entries[existing.key] = existing
        self._entries[key] = entry
        self.touch(entry)
        self._tell(entry, PlacementState.READY)
        return entry

    def tell_loading(self, entry: Entry) -> None:
        """An entry that is not ready is being filled from another tier or worker."""
        self._tell(entry, PlacementState.LOADING)

    def discard(self, entry: Entry) -> None:
        """Forgets an entry, whatever its state, and frees its pages. The caller holds the last pin."""
        if entry.pins > 1:
            raise ValueError(f"encoding {entry.key} has {entry.pins} readers")
        self._drop(entry)
        if not entry.ready:
            self._changes.add([PlacementChange(entry.key, self.tier, PlacementState.GONE, 0)])

    def drop(self, key: str) -> bool:
        """Forget an encoding that nobody reads or writes; whether it is not here now."""
        entry = self._entries.get(key)
        if entry is None:
            return True
        if not entry.ready or entry.pins:
            return False
        self._drop(entry)
        return True

    def touch(self, entry: Entry) -> None:
        self._clock += 1
        entry.last_use = self._clock
        entry.last_use_s = self.now_s

    def take_changes(self) -> tuple[PlacementChange, ...]:
        """What became ready and what went since the last call."""
        return self._changes.take()

    def evict_all(self) -> None:
        """Evicts everything that nobody is reading."""
        for entry in [e for e in self._entries.values() if e.pins == 0]:
            self._evict(entry)

    def next_victims(self) -> Iterable[Entry]:
        """Unpinned entries in the order in which they would be evicted; not to be kept over a change."""
        return self._candidates()

    def _make_room(self, num_pages: int, tenant: str) -> None:
        for entry in self._victims(num_pages, tenant):
            self._evict(entry)

    def _victims(self, num_pages: int, tenant: str) -> list[Entry]:
        """What has to go before the tenant can have `num_pages`, in order: first what exceeds its own share."""
        over = self._taken[tenant] + num_pages - self.most_pages(tenant)
        short = num_pages - self.allocator.num_free
        if over <= 0 and short <= 0:
            return []
        victims: dict[int, Entry] = {}
        candidates = list(self._candidates()) if over > 0 else self._candidates()
        for own in (True, False) if over > 0 else (False,):
            for entry in candidates:
                if (over if own else short) <= 0:
                    break
                if entry.serial in victims or (own and entry.tenant != tenant):
                    continue
                victims[entry.serial] = entry
                short -= len(entry.pages)
                if entry.tenant == tenant:
                    over -= len(entry.pages)
        return list(victims.values())

    def _candidates(self) -> Iterable[Entry]:
        """Unpinned entries, the first to go first. Of many, in an order that may be some evictions old."""
        if self._num_kept <= 0 or len(self._entries) <= ALWAYS_SORTED:
            self._sort()
        for _, _, entry in reversed(self._sorted):
            kept = self._entries.get(entry.key)
            if kept is not None and kept.serial == entry.serial and kept.pins == 0:
                yield kept
        sorted_ones = {id(entry) for _, _, entry in self._sorted}
        yield from sorted(
            (e for e in self._entries.values() if e.pins == 0 and id(e) not in sorted_ones), key=self._order
        )

    def _sort(self) -> None:
        unpinned = [(self._order(e), e.serial, e) for e in self._entries.values() if e.pins == 0]
        self._sorted = sorted(unpinned, key=lambda item: item[:2], reverse=True)
        self._num_kept = len(unpinned) // 16

    def _evict(self, entry: Entry) -> None:
        self._num_kept -= 1
        self._on_evict(entry)
        self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.key]
        if entry.pins == 0:
            self._unpinned[entry.tenant] -= len(entry.pages)
        pages, entry.pages = entry.pages, []
        self._give_back(entry, pages)
        entry.pages = pages  # what still names the entry may look up where it was
        if entry.ready:
            self._tell(entry, PlacementState.GONE)

    def _give_back(self, entry: Entry, pages: list[int]) -> None:
        if pages:
            self._taken[entry.tenant] -= len(pages)
            self.allocator.free(pages)
            self._on_free(pages)

    def _tell(self, entry: Entry, state: PlacementState) -> None:
        num_tokens = 0 if state == PlacementState.GONE else entry.num_tokens
        namespace = "" if entry.spec is None else entry.spec.namespace
        self._changes.add([PlacementChange(entry.key, self.tier, state, num_tokens, namespace)])

    def check_integrity(self) -> None:
        """Raises AssertionError if a page has two owners or none, an entry claims tokens it has no room for, or a
        tenant more than its share."""
        self.allocator.check_integrity()
        owned = [page for entry in self._entries.values() for page in entry.pages]
        assert len(owned) == len(set(owned))
        assert len(owned) + self.allocator.num_free == self.allocator.num_pages
        taken: Counter[str] = Counter()
        unpinned: Counter[str] = Counter()
        for key, entry in self._entries.items():
            assert key == entry.key
            assert entry.num_tokens <= entry.capacity
            assert entry.pins >= 0
            taken[entry.tenant] += len(entry.pages)
            unpinned[entry.tenant] += len(entry.pages) if entry.pins == 0 else 0
        assert +self._taken == +taken
        assert +self._unpinned == +unpinned
        assert all(pages <= self.tenant_pages for pages in taken.values())
