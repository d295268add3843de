"""Where an encoding lies: on which worker, in which tier, and in what state."""

from __future__ import annotations

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


TIER_NAMES = {Tier.DEVICE: "device", Tier.HOST: "host", Tier.DISK: "disk"}
