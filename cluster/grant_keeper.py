"""Keeps what is granted encoded on every worker, whoever asks for it and whether anybody does.

So nobody can tell by timing whether another tenant was there before: what all may share is always there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from laban.cluster.grants import Grants
from laban.cluster.records import WorkerStatus
from laban.kvstore.encodings import EncodingId, EncodingSpec
from laban.kvstore.uses import Use

KEEP_S = 120.0  # what workers are told holds for so long, and is said again after half of it
AGAIN_S = 10.0  # until what was ordered and did not come is ordered again
AT_ONCE = Use(steps=0, in_s=0.0)


class Held(Protocol):
    """`routing.directory_view.DirectoryView`."""

    def held_by(self, worker_id: str) -> Mapping[EncodingId, int]: ...


class Fleet(Protocol):
    """`cluster.dispatch.Dispatcher`."""

    @property
    def directory(self) -> Held: ...

    def workers(self) -> tuple[WorkerStatus, ...]: ...


class Foreseer(Protocol):
    """`cluster.foresight.Foresight`."""

    def hint(
        self,
        source: str,
        uses: Mapping[EncodingId, Use],
        pins: Mapping[EncodingId, float],
        specs: Sequence[EncodingSpec],
        ttl_s: float,
        *,
        prefetch: bool,
    ) -> None: ...

    def bring(self, worker_id: str, encoding_id: EncodingId) -> bool: ...


class GrantKeeper:
    """Lives in one event loop. `tick` every second or so."""

    def __init__(
        self, grants: Grants, fleet: Fleet, foreseer: Foreseer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._grants, self._fleet, self._foreseer, self._clock = grants, fleet, foreseer, clock
        self._say_at_s = clock()
        self._ordered: dict[tuple[str, EncodingId], float] = {}
        self.num_ready: dict[tuple[str, str], int] = {}
        """By model and grant: how many workers have all of it."""

    def tick(self) -> None:
        if not self._grants:
            return
        now_s = self._clock()
        if now_s >= self._say_at_s:
            self._say_at_s = now_s + KEEP_S / 2
            for chain in self._grants.chains:
                ids = [spec.encoding_id for spec in chain.specs]
                source = f"grant {chain.grant} {chain.model} {chain.fingerprint}"
                pins = dict.fromkeys(ids, KEEP_S)
                uses = dict.fromkeys(ids, AT_ONCE)
                # No call to come: `bring` orders what is missing, and those are looked after a few at once.
                self._foreseer.hint(source, uses, pins, chain.specs, KEEP_S, prefetch=False)
        self.num_ready = {(chain.model, chain.grant): 0 for chain in self._grants.chains}
        ordered: dict[tuple[str, EncodingId], float] = {}
        for worker in self._fleet.workers():
            if worker.alive and not worker.draining:
                self._see_to(worker, now_s, ordered)
        self._ordered = ordered

    def _see_to(self, worker: WorkerStatus, now_s: float, ordered: dict[tuple[str, EncodingId], float]) -> None:
        held = self._fleet.directory.held_by(worker.worker_id)
        grants: dict[str, bool] = {}
        for chain in self._grants.chains_of(worker.model):
            lacking = [spec.encoding_id for spec in chain.specs if spec.encoding_id not in held]
            grants[chain.grant] = grants.get(chain.grant, True) and not lacking
            for encoding_id in lacking:
                key = worker.worker_id, encoding_id
                since_s = ordered.get(key, self._ordered.get(key))
                if (since_s is None or since_s + AGAIN_S <= now_s) and self._foreseer.bring(*key):
                    since_s = now_s
                if since_s is not None:
                    ordered[key] = since_s
        for grant, has_all in grants.items():
            self.num_ready[worker.model, grant] += has_all
