"""Pins and next uses of encodings as several sources say, each by itself; what a source said goes with it."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from laban.kvstore.encodings import EncodingId
from laban.kvstore.uses import Use

OVERDUE_S = 600.0
"""A use so long overdue will not come: its source has forgotten to say so."""

T = TypeVar("T")


class Interests:
    """Not safe for threads. Times are seconds on the owner's clock."""

    def __init__(self) -> None:
        self._uses: dict[str, dict[EncodingId, Use]] = {}  # dated: `in_s` is a time on the clock
        self._pins: dict[str, dict[EncodingId, float]] = {}  # until then

    def put_use(self, source: str, encoding_id: EncodingId, use: Use | None, now_s: float) -> None:
        """None: the source knows of no use any more."""
        if use is None:
            self._take(self._uses, source, encoding_id)
        else:
            self._uses.setdefault(source, {})[encoding_id] = replace(use, in_s=now_s + use.in_s)

    def put_pin(self, source: str, encoding_id: EncodingId, for_s: float, now_s: float) -> None:
        """0 lets go."""
        if for_s <= 0:
            self._take(self._pins, source, encoding_id)
        else:
            self._pins.setdefault(source, {})[encoding_id] = now_s + for_s

    def drop(self, source: str) -> None:
        self._uses.pop(source, None)
        self._pins.pop(source, None)

    def expire(self, now_s: float) -> None:
        """Forget the pins whose time is over, and uses long overdue."""
        for source, pins in list(self._pins.items()):
            for encoding_id in [each for each, until_s in pins.items() if until_s <= now_s]:
                self._take(self._pins, source, encoding_id)
        for source, uses in list(self._uses.items()):
            for encoding_id in [each for each, use in uses.items() if use.in_s + OVERDUE_S <= now_s]:
                self._take(self._uses, source, encoding_id)

    def next_use(self, encoding_id: EncodingId, now_s: float) -> Use | None:
        """The nearest over all sources, counted from now; one that is overdue is due now."""
        nearest: Use | None = None
        for uses in self._uses.values():
            use = uses.get(encoding_id)
            if use is not None:
                nearest = use if nearest is None else nearest.nearer(use)
        return None if nearest is None else replace(nearest, in_s=max(nearest.in_s - now_s, 0.0))

    def pinned_s(self, encoding_id: EncodingId, now_s: float) -> float:
        """For how long from now, by the source that says longest."""
        until_s = max((pins.get(encoding_id, 0.0) for pins in self._pins.values()), default=0.0)
        return max(until_s - now_s, 0.0)

    def sources(self) -> set[str]:
        return self._uses.keys() | self._pins.keys()

    @staticmethod
    def _take(kept: dict[str, dict[EncodingId, T]], source: str, encoding_id: EncodingId) -> None:
        of_source = kept.get(source)
        if of_source is not None and of_source.pop(encoding_id, None) is not None and not of_source:
            del kept[source]
