"""What crosses between a shard of the directory, the workers who publish to it and those who subscribe to it.

Frozen dataclasses of plain values. Placements are packed (`placements.pack`): batches carry thousands of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PlacementState, Tier
from laban.kvstore.uses import Use

Epoch = str
"""One life of a worker, issued by the directory: 16 hexadecimal digits, a later one compares greater."""

PackedChange = tuple[EncodingId, int, str]
"""An encoding, its packed placement in one tier, and its namespace, "" where that is not known."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a worker says to one shard.

    Number `number` (from 1, by one) of its epoch: `changes`, or a `snapshot`, everything that it has of this shard's
    encodings. A `heartbeat`, without either, repeats the last number.
    """

    worker_id: str
    epoch: Epoch
    number: int
    kind: Literal["changes", "heartbeat", "snapshot"]
    changes: tuple[PackedChange, ...] = ()


class Answer(Enum):
    """What a shard says to a batch."""

    TAKEN = "taken"
    GAP = "gap"  # something before it is missing: a snapshot must come next
    STALE = "stale"  # of a life that is over


@dataclass(frozen=True, slots=True)
class Watch:
    """What a subscriber wants news of, message number `number` (from 1, by one). `anew` replaces all it said before."""

    subscriber: str
    number: int
    added: tuple[EncodingId, ...] = ()
    removed: tuple[EncodingId, ...] = ()
    anew: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """Number `number` of what a shard says to a subscriber; it counts up with every one that says something.

    First the lives in `gone` lost all they had in this shard. Then each of `encodings` is just where it says: packed
    placements, above whose `PACKED_BITS` is an index into `lives`, the (worker, epoch)s that it speaks of.
    """

    number: int
    lives: tuple[tuple[str, Epoch], ...] = ()
    gone: tuple[tuple[str, Epoch], ...] = ()
    encodings: tuple[tuple[EncodingId, tuple[int, ...]], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.gone or self.encodings)


@dataclass(frozen=True, slots=True)
class Interest:
    """What a source knows of the future of encodings. Replaces what it said of these before, None and 0 by nothing."""

    source: str
    uses: tuple[tuple[EncodingId, Use | None], ...] = ()
    pins: tuple[tuple[EncodingId, float], ...] = ()  # for so many seconds


@dataclass(frozen=True, slots=True)
class HeldPlacement:
    worker_id: str
    epoch: Epoch
    tier: Tier
    state: PlacementState
    num_tokens: int


@dataclass(frozen=True, slots=True)
class EncodingRecord:
    """All that the directory knows of an encoding."""

    encoding_id: EncodingId
    namespace: str  # "" where nobody told
    num_tokens: int  # of its largest placement
    placements: tuple[HeldPlacement, ...]
    pinned_s: float  # for how long from now, at least one source says so
    next_use: Use | None  # the nearest over all sources, counted from now


@dataclass(frozen=True, slots=True)
class WorkerHoldings:
    """What a shard knows of one worker."""

    worker_id: str
    epoch: Epoch
    number: int | None  # of the last batch taken; None while a snapshot is awaited
    num_placements: int


@dataclass(frozen=True, slots=True)
class ShardStatus:
    num_encodings: int
    num_subscribers: int
    workers: tuple[WorkerHoldings, ...]
