"""Where an encoding lies: on which worker, in which tier, and in what state."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

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


TIER_NAMES = {Tier.DEVICE: "device", Tier.HOST: "host", Tier.DISK: "disk"}
