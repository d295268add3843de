"""What a token of a need counts for at each pace, by the way in which it would come to a worker."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from math import inf

import numpy as np
import numpy.typing as npt

from laban.cluster.routing.rates import NEVER, Pace
from laban.kvstore.placements import Tier

Floats = npt.NDArray[np.float64]

NOWHERE = 3
"""In place of a tier."""

Way = tuple[int, bool, int]
"""How a need stands at a worker: its tier there, whether others have it only on disk, and how many encodings the best
of them sends already; -1 if nobody can send it."""


class Taken(IntEnum):
    """How a need comes that would sooner be encoded than brought."""

    ENCODED = 0
    BROUGHT = 1  # if it can be: what would have to be encoded with it takes longer
    EITHER = 2  # which is not known, so if it can be brought it counts for nothing


class CostTable:
    """Rows are ways, columns `bring_ns` at each pace and then `encode_ns` at each: of the two one is 0, since the
    cheaper way is taken. For one set of paces; nanoseconds are whole, and as floats they stay exact below 2**53."""

    def __init__(self, paces: tuple[Pace, ...]) -> None:
        self.paces = paces
        self.encode_ns = np.array([pace.encode_ns for pace in paces], np.int64)
        self.later_ns = np.array([min(pace.encode_ns, pace.peer_ns) for pace in paces], np.int64)
        self._rows: dict[tuple[Way, Taken], int] = {}
        self._delays: dict[Way, float] = {}
        self._tokens = self._copied = np.zeros((0, 2 * len(paces)))

    def row(self, way: Way, taken: Taken) -> int:
        row = self._rows.get((way, taken))
        return self._add(way, taken) if row is None else row

    def delay(self, way: Way) -> float:
        """How many times as long bringing it takes as encoding it, at the pace where that is most."""
        delay = self._delays.get(way)
        if delay is None:
            times = [
                brought / pace.encode_ns if brought < NEVER else inf
                for brought, pace in zip(self._units(*way)[1], self.paces, strict=True)
            ]
            delay = self._delays[way] = max(times)
        return delay

    def weights(self, rows: Sequence[int], sizes: Floats, saving: Floats | None) -> Floats:
        """What needs of these sizes count for. `saving` is the part of a copy's time that does not count."""
        weights: Floats = self._tokens.take(rows, axis=0)
        weights *= sizes[:, None]
        if saving is not None:
            weights -= np.trunc(weights * saving[:, None]) * self._copied.take(rows, axis=0)
        return weights

    def _units(self, tier: int, from_disk: bool, busy: int) -> tuple[list[int], list[int]]:
        """Nanoseconds a token at each pace: from the worker's own tier, and in the fastest way there is but to
        encode it."""
        own, best = [], []
        for pace in self.paces:
            own_ns = pace.host_ns if tier == Tier.HOST else pace.disk_ns if tier == Tier.DISK else NEVER
            own.append(own_ns)
            if tier != Tier.HOST and busy >= 0:
                own_ns = min(own_ns, (pace.peer_disk_ns if from_disk else pace.peer_ns) * (1 + busy))
            best.append(own_ns)
        return own, best

    def _add(self, way: Way, taken: Taken) -> int:
        num = len(self.paces)
        tokens, copied = [0.0] * (2 * num), [0.0] * (2 * num)
        for at, (own_ns, bring_ns, pace) in enumerate(zip(*self._units(*way), self.paces, strict=True)):
            if bring_ns <= pace.encode_ns or (taken is Taken.BROUGHT and bring_ns < NEVER):
                tokens[at], copied[at] = bring_ns, float(bring_ns < own_ns)
            elif taken is not Taken.EITHER or bring_ns >= NEVER:
                tokens[num + at], copied[num + at] = pace.encode_ns, 1.0
        row = self._rows[way, taken] = len(self._rows)
        self._tokens = np.concatenate((self._tokens, [tokens]))
        self._copied = np.concatenate((self._copied, [copied]))
        return row
