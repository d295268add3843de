"""Where an encoding lies: on which worker, in which tier, and in what state."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

from laban.kvstore.encodings import EncodingId


class Tier(IntEnum):
    """From the fastest."""

    DEVICE = 0
    HOST = 1
    DISK = 2


class PlacementState(IntEnum):
    GONE = 0
    LOADING = 1  # on its way there
    READY = 2
    EVICTING = 3  # still there, and on its way out


class PlacementChange(NamedTuple):
    """What became of an encoding in one tier of a worker. Of several, the last one counts."""

    encoding_id: EncodingId
    tier: Tier
    state: PlacementState
    num_tokens: int
    namespace: str = ""  # of the encoding (model, dtype, adapter, tenant); "" where it is not known or told before


class MergedChanges:
    """Changes added up: the last one of each encoding and tier."""

    def __init__(self) -> None:
        self._last: dict[tuple[EncodingId, Tier], PlacementChange] = {}

    def add(self, changes: Iterable[PlacementChange]) -> None:
        for change in changes:
            key = change[:2]
            self._last.pop(key, None)  # so that they leave in the order in which they came
            self._last[key] = change

    def take(self) -> tuple[PlacementChange, ...]:
        """The sum so far; the next one begins with nothing."""
        changes = tuple(self._last.values())
        self._last = {}
        return changes

    def __bool__(self) -> bool:
        return bool(self._last)


# A placement as one number: state (2 bits), tokens (30), tier (2). What comes above is whoever's who packs it.
TOKENS_SHIFT = 2
TIER_SHIFT = 32
PACKED_BITS = 34
MAX_PACKED_TOKENS = (1 << TIER_SHIFT - TOKENS_SHIFT) - 1
STATE_MASK = (1 << TOKENS_SHIFT) - 1
_TIERS = tuple(Tier)
_STATES = tuple(PlacementState)


def pack(tier: int, state: int, num_tokens: int) -> int:
    return tier << TIER_SHIFT | min(num_tokens, MAX_PACKED_TOKENS) << TOKENS_SHIFT | state


def unpack(packed: int) -> tuple[Tier, PlacementState, int]:
    tier = _TIERS[packed >> TIER_SHIFT & 3]
    return tier, _STATES[packed & STATE_MASK], packed >> TOKENS_SHIFT & MAX_PACKED_TOKENS


def shard_of(encoding_id: EncodingId, num_shards: int) -> int:
    """The directory's shard that an encoding belongs to: the same in every process."""
    return crc32(encoding_id.encode()) % num_shards if num_shards > 1 else 0


TIER_NAMES = {Tier.DEVICE: "device", Tier.HOST: "host", Tier.DISK: "disk"}
