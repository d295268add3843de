"""Keeps the shared directory up to date with the local copy, from behind: nothing waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from laban.actors.directory import DirectoryUpdate
from laban.actors.ports import DirectoryPort
from laban.kvstore.directory import Directory, Holdings
from laban.kvstore.placements import MergedChanges, PlacementChange

logger = logging.getLogger(__name__)


class DirectoryMirror:
    """Changes are added up and sent in one batch every `interval_s`, so memory is bounded by what workers hold.

    While the shared directory is down nothing is kept for it: when it is back it asks for snapshots.
    """

    def __init__(
        self, port: DirectoryPort, local: Directory, *, interval_s: float = 0.05, retry_s: float = 1.0
    ) -> None:
        self._port = port
        self._local = local
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._epochs: dict[str, str] = {}
        self._sequences: dict[str, int] = {}
        self._changes: dict[str, MergedChanges] = {}
        self._dropped: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def begin(self, worker_id: str, epoch: str) -> None:
        self._epochs[worker_id] = epoch
        self._sequences[worker_id] = 0
        self._changes[worker_id] = MergedChanges()
        # An empty change makes a gap, which brings the new epoch there.
        self._changed.set()

    def record(self, worker_id: str, changes: Sequence[PlacementChange]) -> None:
        if changes:
            self._changes[worker_id].add(changes)
            self._changed.set()

    def drop(self, worker_id: str) -> None:
        epoch = self._epochs.pop(worker_id, None)
        if epoch is not None:
            self._dropped.append((worker_id, epoch))
            del self._changes[worker_id], self._sequences[worker_id]
            self._changed.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(self._interval_s)
            self._changed.clear()
            try:
                await self._send()
            except ConnectionError as error:
                logger.warning("the directory is down, trying again: %s", error)
                await asyncio.sleep(self._retry_s)
                self._changed.set()

    async def _send(self) -> None:
        while self._dropped:
            await self._port.drop(*self._dropped[0])
            self._dropped.pop(0)
        updates = []
        for worker_id, changes in self._changes.items():
            self._sequences[worker_id] += 1
            updates.append(
                DirectoryUpdate(worker_id, self._epochs[worker_id], self._sequences[worker_id], changes.take())
            )
        # Taken and then lost on the way is a gap, and mended like one.
        epochs = dict(self._epochs)
        sequences = dict(self._sequences)
        gaps = await self._port.apply(updates)
        holdings = [self._holdings(worker_id, epochs, sequences) for worker_id in gaps]
        await self._port.replace([held for held in holdings if held is not None])

    def _holdings(self, worker_id: str, epochs: Mapping[str, str], sequences: Mapping[str, int]) -> Holdings | None:
        if self._epochs.get(worker_id) != epochs[worker_id]:
            return None  # it died meanwhile
        # Whatever came since then will be sent again as a change; taking it twice does no harm.
        entries = tuple(self._local.held_by(worker_id).items())
        return Holdings(worker_id, epochs[worker_id], sequences[worker_id], entries)
