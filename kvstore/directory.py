"""Which worker holds which encodings: a cache of what workers said, never the truth.

Workers number their changes within an epoch (one life of the worker). The directory takes them in order,
says when it missed one, ignores what an earlier life still had to say, and forgets the dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PlacementChange, PlacementState, Tier

MAX_RETIRED = 16
"""Former epochs remembered for each worker, so that late news of them is recognised."""

_NOTHING: Mapping[EncodingId, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Holdings:
    """Everything a worker holds, as (id, tokens), after change number `sequence` of its `epoch`."""

    worker_id: str
    epoch: str
    sequence: int
    entries: tuple[tuple[EncodingId, int], ...]


@dataclass(slots=True)
class _Worker:
    epoch: str
    sequence: int = 0
    entries: dict[EncodingId, int] = field(default_factory=dict)


class Directory:
    """Not safe for threads: one owner calls it."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._retired: dict[str, list[str]] = {}

    def begin(self, worker_id: str, epoch: str) -> None:
        """A new life of the worker, holding nothing. Its changes will be numbered from 1."""
        self._retire(worker_id)
        self._workers[worker_id] = _Worker(epoch)

    def apply(
        self,
        worker_id: str,
        epoch: str,
        sequence: int,
        changes: Iterable[PlacementChange],
    ) -> bool:
        """Take one change. False if it does not follow the last one taken: `replace` must come next.

        A change of a former epoch, or one taken before, is ignored and gives True.
        """
        if self._is_retired(worker_id, epoch):
            return True
        worker = self._workers.get(worker_id)
        if worker is None or worker.epoch != epoch:
            return False
        if sequence <= worker.sequence:
            return True
        if sequence != worker.sequence + 1:
            return False
        worker.sequence = sequence
        for change in changes:
            if change.tier is Tier.DEVICE:
                if change.state is PlacementState.READY:
                    worker.entries[change.encoding_id] = change.num_tokens
                else:
                    worker.entries.pop(change.encoding_id, None)
        return True

    def replace(self, holdings: Holdings) -> None:
        """Take a snapshot. One older than what is known, or of a former epoch, is ignored."""
        if self._is_retired(holdings.worker_id, holdings.epoch):
            return
        worker = self._workers.get(holdings.worker_id)
        if worker is None or worker.epoch != holdings.epoch:
            self.begin(holdings.worker_id, holdings.epoch)
            worker = self._workers[holdings.worker_id]
        elif holdings.sequence < worker.sequence:
            return
        worker.sequence = holdings.sequence
        worker.entries.clear()  # in place: views of it are out there
        worker.entries.update(holdings.entries)

    def drop(self, worker_id: str, epoch: str) -> None:
        """The worker died: its entries vanish. Nothing happens if it has begun another life since."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.epoch == epoch:
            self._retire(worker_id)

    def held_by(self, worker_id: str) -> Mapping[EncodingId, int]:
        """The worker's encodings and their tokens; a live, read-only view. Empty for an unknown worker."""
        worker = self._workers.get(worker_id)
        return _NOTHING if worker is None else MappingProxyType(worker.entries)

    def holders(self, encoding_id: EncodingId) -> list[str]:
        return sorted(worker_id for worker_id, worker in self._workers.items() if encoding_id in worker.entries)

    def snapshot(self) -> list[Holdings]:
        return [
            Holdings(worker_id, worker.epoch, worker.sequence, tuple(worker.entries.items()))
            for worker_id, worker in sorted(self._workers.items())
        ]

    def _retire(self, worker_id: str) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            retired = self._retired.setdefault(worker_id, [])
            retired.append(worker.epoch)
            del retired[:-MAX_RETIRED]

    def _is_retired(self, worker_id: str, epoch: str) -> bool:
        return epoch in self._retired.get(worker_id, ())
