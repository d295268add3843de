"""The directory as a service: batches of workers' changes in, holdings out. Plain; `remote` gives it a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laban.actors.calls import StoreDelta
from laban.kvstore.directory import Directory, Holdings
from laban.kvstore.encodings import EncodingId


@dataclass(frozen=True, slots=True)
class DirectoryUpdate:
    """Change number `sequence` (from 1, by one) of a worker's `epoch`."""

    worker_id: str
    epoch: str
    sequence: int
    delta: StoreDelta


class MergedDelta:
    """Changes of a store added up: what came and went again cancels out. Removals are applied before additions."""

    def __init__(self) -> None:
        self._added: dict[EncodingId, int] = {}
        self._removed: dict[EncodingId, None] = {}

    def add(self, delta: StoreDelta) -> None:
        for encoding_id in delta.removed:
            self._added.pop(encoding_id, None)
            self._removed[encoding_id] = None
        self._added.update(delta.added)

    def take(self) -> StoreDelta:
        """The sum so far; the next one begins with nothing."""
        delta = StoreDelta(tuple(self._added.items()), tuple(self._removed))
        self._added, self._removed = {}, {}
        return delta

    def __bool__(self) -> bool:
        return bool(self._added or self._removed)


class DirectoryService:
    """Losing it loses nothing: a new one asks for snapshots, since every update is a gap to it."""

    def __init__(self) -> None:
        self._directory = Directory()

    def apply(self, updates: Sequence[DirectoryUpdate]) -> tuple[str, ...]:
        """Take the updates in order. Returns the workers of which a snapshot is needed."""
        gaps: dict[str, None] = {}
        for update in updates:
            taken = self._directory.apply(
                update.worker_id, update.epoch, update.sequence, update.delta.added, update.delta.removed
            )
            if not taken:
                gaps[update.worker_id] = None
        return tuple(gaps)

    def replace(self, holdings: Sequence[Holdings]) -> None:
        for held in holdings:
            self._directory.replace(held)

    def drop(self, worker_id: str, epoch: str) -> None:
        self._directory.drop(worker_id, epoch)

    def snapshot(self) -> list[Holdings]:
        return self._directory.snapshot()
