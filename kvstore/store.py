"""The encodings that one worker holds: which pages each has, who is reading it, what goes first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from laban.kvstore.encodings import EncodingId
from laban.kvstore.pages import PageAllocator
from laban.kvstore.placements import MergedChanges, PlacementChange, PlacementState, Tier

_serials = count()


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


class EncodingStore:
    """Encodings by id over a pool of pages, with pins against eviction and eviction by last use.

    Reserving evicts what is unpinned, oldest first; it never touches what is pinned. An entry that is
    not ready has exactly one writer. Not safe for several threads: the engine's thread owns it.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.allocator = PageAllocator(num_pages)
        self._entries: dict[str, Entry] = {}
        self._clock = 0
        self._changes = MergedChanges()

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def ready_ids(self) -> list[tuple[EncodingId, int]]:
        """(id, num_tokens) of every ready encoding."""
        return [(entry.key, entry.num_tokens) for entry in self._entries.values() if entry.ready]

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def num_obtainable(self, keep: Iterable[str] = ()) -> int:
        """Pages that are free or could be made so without evicting anything pinned or in `keep`."""
        kept = set(keep)
        evictable = (len(e.pages) for e in self._entries.values() if e.pins == 0 and e.key not in kept)
        return self.allocator.num_free + sum(evictable)

    def reserve(self, key: str, num_tokens: int) -> Entry:
        """Pages for up to `num_tokens` tokens, pinned once for the caller. Evicts as needed.

        Raises OutOfPages (nothing evicted) or ValueError for a key that is taken.
        """
        if key in self._entries:
            raise ValueError(f"encoding {key} is in the store already")
        count = self.pages_for(num_tokens)
        if count <= self.num_obtainable():
            self._evict_until(count)
        entry = Entry(key, self.allocator.allocate(count), self.page_size, pins=1)
        self._entries[key] = entry
        return entry

    def pin(self, entry: Entry) -> None:
        entry.pins += 1
        self._touch(entry)

    def unpin(self, entry: Entry) -> None:
        if entry.pins < 1:
            raise ValueError(f"encoding {entry.key} is not pinned")
        entry.pins -= 1
        self._touch(entry)

    def publish(self, entry: Entry, key: EncodingId, num_tokens: int) -> Entry:
        """Makes `entry` the ready encoding `key` of `num_tokens` tokens and gives spare pages back.

        If the store has `key` already, the pins move there, the new pages are freed, and that one is returned.
        """
        existing = self._entries.get(key)
        if existing is not None and existing is not entry and existing.ready:
            existing.pins += entry.pins
            self._drop(entry)
            self._touch(existing)
            return existing
        del self._entries[entry.key]
        entry.key, entry.num_tokens, entry.ready = key, num_tokens, True
        used = self.pages_for(num_tokens)
        self.allocator.free(entry.pages[used:])
        del entry.pages[used:]
        # An unready namesake (another call computing the same thing) keeps its pages under a name of its own.
        if existing is not None and existing is not entry:
            existing.key = f"{key}/{id(existing):x}"
            self._entries[existing.key] = existing
        self._entries[key] = entry
        self._touch(entry)
        self._changes.add([PlacementChange(key, Tier.DEVICE, PlacementState.READY, num_tokens)])
        return entry

    def discard(self, entry: Entry) -> None:
        """Forgets an entry, whatever its state, and frees its pages. The caller holds the last pin."""
        if entry.pins > 1:
            raise ValueError(f"encoding {entry.key} has {entry.pins} readers")
        self._drop(entry)

    def take_changes(self) -> tuple[PlacementChange, ...]:
        """What became ready and what went since the last call."""
        return self._changes.take()

    def evict_all(self) -> None:
        """Evicts everything that nobody is reading."""
        self._evict_until(self.num_obtainable())

    def _evict_until(self, num_free: int) -> None:
        if self.allocator.num_free >= num_free:
            return
        for entry in sorted((e for e in self._entries.values() if e.pins == 0), key=lambda e: e.last_use):
            self._drop(entry)
            if self.allocator.num_free >= num_free:
                return

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self.allocator.free(entry.pages)
        if entry.ready:
            self._changes.add([PlacementChange(entry.key, Tier.DEVICE, PlacementState.GONE, 0)])

    def _touch(self, entry: Entry) -> None:
        self._clock += 1
        entry.last_use = self._clock

    def check_integrity(self) -> None:
        """Raises AssertionError if a page has two owners or none, or an entry claims tokens it has no room for."""
        self.allocator.check_integrity()
        owned = [page for entry in self._entries.values() for page in entry.pages]
        assert len(owned) == len(set(owned))
        assert len(owned) + self.allocator.num_free == self.allocator.num_pages
        for key, entry in self._entries.items():
            assert key == entry.key
            assert entry.num_tokens <= entry.capacity
            assert entry.pins >= 0
