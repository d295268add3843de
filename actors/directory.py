"""The directory as a service: batches of workers' changes in, holdings out. Plain; `remote` gives it a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laban.kvstore.directory import Directory, Holdings
from laban.kvstore.placements import PlacementChange


@dataclass(frozen=True, slots=True)
class DirectoryUpdate:
    """Change number `sequence` (from 1, by one) of a worker's `epoch`."""

    worker_id: str
    epoch: str
    sequence: int
    changes: tuple[PlacementChange, ...] = ()


class DirectoryService:
    """Losing it loses nothing: a new one asks for snapshots, since every update is a gap to it."""

    def __init__(self) -> None:
        self._directory = Directory()

    def apply(self, updates: Sequence[DirectoryUpdate]) -> tuple[str, ...]:
        """Take the updates in order. Returns the workers of which a snapshot is needed."""
        gaps: dict[str, None] = {}
        for update in updates:
            if not self._directory.apply(update.worker_id, update.epoch, update.sequence, update.changes):
                gaps[update.worker_id] = None
        return tuple(gaps)

    def replace(self, holdings: Sequence[Holdings]) -> None:
        for held in holdings:
            self._directory.replace(held)

    def drop(self, worker_id: str, epoch: str) -> None:
        self._directory.drop(worker_id, epoch)

    def snapshot(self) -> list[Holdings]:
        return self._directory.snapshot()
