"""Encodings that are to be nowhere on a worker any more: somebody deleted what they were of."""

from __future__ import annotations

from collections.abc import Iterable

from laban.actors.engine.tiers import Tiers
from laban.kvstore.encodings import EncodingId
from laban.kvstore.store import EncodingStore


class Forgetting:
    """What is read or copied goes once that is over: `go_on`, between iterations, tries again until all has gone."""

    def __init__(self, device: EncodingStore, tiers: Tiers) -> None:
        self._device, self._tiers = device, tiers
        self._left: dict[EncodingId, None] = {}

    def forget(self, encoding_ids: Iterable[EncodingId]) -> None:
        self._left.update(dict.fromkeys(encoding_ids))

    @property
    def is_busy(self) -> bool:
        return bool(self._left)

    def go_on(self) -> None:
        for encoding_id in list(self._left):
            # From the device down: nothing is copied to a tier that has been cleared.
            on_device = self._device.drop(encoding_id)
            if self._tiers.drop(encoding_id) and on_device:
                del self._left[encoding_id]
