"""Tells workers what is to come of the encodings that they hold: each its next use, and for how long it is pinned; and
which were read for the last time.

A worker is told once, and again when the use changes, or when an encoding comes to it. Of encodings that nobody holds
nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from laban.actors.calls import Advice, Prefetch
from laban.cluster.leftovers import Left
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PlacementState, Tier
from laban.kvstore.uses import Use, UseBook


class Holders(Protocol):
    """What is needed of `routing.directory_view.DirectoryView`."""

    @property
    def epochs(self) -> Mapping[str, str]:
        """Of the workers that are up."""

    def holders(self, encoding_id: EncodingId) -> Mapping[str, tuple[tuple[Tier, PlacementState, int], ...]]: ...


@dataclass(slots=True)
class Letter:
    """Advice to one worker, being written."""

    uses: dict[EncodingId, Use | None] = field(default_factory=dict)
    pins: dict[EncodingId, float] = field(default_factory=dict)
    prefetches: list[Prefetch] = field(default_factory=list)
    cancelled: list[EncodingId] = field(default_factory=list)
    over: list[EncodingId] = field(default_factory=list)

    def sealed(self) -> Advice:
        return Advice(
            uses=tuple(self.uses.items()),
            prefetches=tuple(self.prefetches),
            cancelled=tuple(self.cancelled),
            pins=tuple(self.pins.items()),
            over=tuple(self.over),
        )


class Advising:
    """Lives in one event loop. Times in seconds on its owner's clock, on which the uses in `uses` are dated."""

    def __init__(self, uses: UseBook, directory: Holders, send: Callable[[str, Advice], None]) -> None:
        self._uses = uses
        self._directory = directory
        self._send = send
        self._told: dict[EncodingId, dict[str, Use]] = {}  # what each worker was told and was not withdrawn
        self._arrived: dict[tuple[str, EncodingId], None] = {}
        self._pinned: dict[EncodingId, dict[str, float]] = {}  # until when, by who wants it
        self._pins_of: dict[str, Iterable[EncodingId]] = {}
        self._repinned: dict[EncodingId, None] = {}
        self._over: list[tuple[EncodingId, str]] = []
        self._letters: dict[str, Letter] = {}

    def arrived(self, worker_id: str, encoding_id: EncodingId) -> None:
        """The encoding came to a worker that did not have it."""
        self._arrived[worker_id, encoding_id] = None

    def pin(self, source: str, pins: Mapping[EncodingId, float], now_s: float) -> None:
        """Replaces what `source` had pinned: each encoding for so many seconds."""
        for encoding_id in self._pins_of.pop(source, ()):
            wanted = self._pinned[encoding_id]
            del wanted[source]
            if not wanted:
                del self._pinned[encoding_id]
            self._repinned[encoding_id] = None
        for encoding_id, seconds in pins.items():
            self._pinned.setdefault(encoding_id, {})[source] = now_s + seconds
            self._repinned[encoding_id] = None
        if pins:
            self._pins_of[source] = tuple(pins)

    def prefetch(self, worker_id: str, prefetch: Prefetch, now_s: float) -> None:
        """The worker learns of its use before it is asked to bring it."""
        self._tell(worker_id, prefetch.encoding_id, self._uses.nearest(prefetch.encoding_id), now_s)
        self._letter(worker_id).prefetches.append(prefetch)

    def cancel(self, worker_id: str, encoding_id: EncodingId) -> None:
        self._letter(worker_id).cancelled.append(encoding_id)

    def over(self, left: Left) -> None:
        """A source will not read these any more, which it did at these workers."""
        self._over += [(encoding_id, worker_id) for encoding_id, workers in left.items() for worker_id in workers]

    def collect(self, now_s: float) -> None:
        """Put down what has changed since the last time."""
        for encoding_id, use in self._uses.take_changes().items():
            told = self._told.get(encoding_id, {})
            workers = list(told) if use is None else {*told, *self._directory.holders(encoding_id)}
            for worker_id in workers:
                if told.get(worker_id) != use:
                    self._tell(worker_id, encoding_id, use, now_s)
        arrived, self._arrived = self._arrived, {}
        for worker_id, encoding_id in arrived:
            use = self._uses.nearest(encoding_id)
            if use is not None:
                self._tell(worker_id, encoding_id, use, now_s)
            if encoding_id in self._pinned:
                self._letter(worker_id).pins[encoding_id] = self._pin_s(encoding_id, now_s)
        over, self._over = self._over, []
        for encoding_id, worker_id in over:
            if self._uses.nearest(encoding_id) is None:  # nor will another one
                self._letter(worker_id).over.append(encoding_id)
        repinned, self._repinned = self._repinned, {}
        for encoding_id in repinned:
            for worker_id in self._directory.holders(encoding_id):
                self._letter(worker_id).pins[encoding_id] = self._pin_s(encoding_id, now_s)

    def send(self) -> None:
        """What was put down, to those that are up."""
        letters, self._letters = self._letters, {}
        up = self._directory.epochs
        for worker_id, letter in letters.items():
            if worker_id in up:
                self._send(worker_id, letter.sealed())

    def _tell(self, worker_id: str, encoding_id: EncodingId, use: Use | None, now_s: float) -> None:
        told = self._told.setdefault(encoding_id, {})
        if use is None:
            self._letter(worker_id).uses[encoding_id] = None
            told.pop(worker_id, None)
        else:
            self._letter(worker_id).uses[encoding_id] = replace(use, in_s=max(0.0, use.in_s - now_s))
            told[worker_id] = use
        if not told:
            del self._told[encoding_id]

    def _pin_s(self, encoding_id: EncodingId, now_s: float) -> float:
        return max(0.0, max(self._pinned.get(encoding_id, {}).values(), default=now_s) - now_s)

    def _letter(self, worker_id: str) -> Letter:
        return self._letters.setdefault(worker_id, Letter())
