"""A worker leaves: its calls end, and what others will need of it goes to other workers before it is closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from laban.actors.calls import Advice, Prefetch, Source
from laban.cluster.routing.accounts import Sent
from laban.cluster.routing.call_view import view_encoding
from laban.cluster.routing.directory_view import DirectoryView
from laban.cluster.routing.router import Router
from laban.cluster.slots import Slot
from laban.kvstore.encodings import EncodingId, EncodingSpec
from laban.kvstore.placements import PlacementState
from laban.kvstore.uses import Use

logger = logging.getLogger(__name__)

MAX_MOVED = 1024
"""Encodings on their way from one worker at once."""


class Foreseen(Protocol):
    """Who knows what will be read. None of it waits."""

    def next_use(self, encoding_id: EncodingId) -> Use | None:
        """The nearest, from now; None if nobody is known to read it."""
        ...

    def upcoming(self) -> Mapping[EncodingId, Use]:
        """Everything that somebody will read."""
        ...

    def specs_of(self, encoding_id: EncodingId) -> Sequence[EncodingSpec]:
        """How to encode it: itself, last, and all that it depends on. Nothing for one that is unknown."""
        ...


@dataclass(slots=True)
class _Move:
    target: Slot
    sent: Sent


class Mover:
    """Moves what others will need off one worker. `left` are the encodings that are nowhere else yet."""

    def __init__(self, slot: Slot, slots: Mapping[str, Slot], view: DirectoryView, router: Router) -> None:
        """`slots` are all workers that are up, as they come and go."""
        self._slot, self._slots, self._view, self._router = slot, slots, view, router
        self._moves: dict[EncodingId, _Move] = {}
        self._given_up: set[EncodingId] = set()
        self.left: tuple[EncodingId, ...] = ()

    async def run(self, foreseen: Foreseen, deadline_s: float, interval_s: float) -> None:
        """Until nothing is left, or until then on the loop's clock: then others encode it themselves."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._look(foreseen)
                if not self.left:
                    return
                if loop.time() >= deadline_s:
                    logger.warning(
                        "worker %s leaves with %d encodings that others will need",
                        self._slot.info.worker_id,
                        len(self.left),
                    )
                    return
                self._send(foreseen)
                await asyncio.sleep(interval_s)
        finally:
            for move in self._moves.values():
                self._router.ledger.ended(move.sent)
            self._moves.clear()

    def _look(self, foreseen: Foreseen) -> None:
        worker_id = self._slot.info.worker_id
        uses = foreseen.upcoming()
        here = [each for each in uses if each not in self._given_up and self._view.tier_of(worker_id, each) is not None]
        here.sort(key=lambda each: (uses[each].in_s, each))
        self.left = tuple(each for each in here if not self._is_elsewhere(each))
        for encoding_id in [*self._moves]:
            move = self._moves[encoding_id]
            if encoding_id not in self.left or self._slots.get(move.target.info.worker_id) is not move.target:
                self._router.ledger.ended(self._moves.pop(encoding_id).sent)

    def _is_elsewhere(self, encoding_id: EncodingId) -> bool:
        worker_id = self._slot.info.worker_id
        return any(
            state is PlacementState.READY
            for holder, placements in self._view.holders(encoding_id).items()
            if holder != worker_id and holder in self._slots and not self._slots[holder].draining
            for _, state, _ in placements
        )

    def _send(self, foreseen: Foreseen) -> None:
        """Each goes where the router would send a call that encodes it, so what is read together stays together."""
        now: dict[str, list[Prefetch]] = {}
        for encoding_id in self.left:
            if encoding_id in self._moves or len(self._moves) >= MAX_MOVED:
                continue
            specs = tuple(foreseen.specs_of(encoding_id))
            if not specs:
                self._given_up.add(encoding_id)
                continue
            call = view_encoding(f"drain-{self._slot.info.worker_id}/{encoding_id}", specs)
            choice = self._router.choose(call)
            if choice is None:
                return
            self._moves[encoding_id] = _Move(self._slots[choice.worker_id], self._router.send(call, choice))
            info = self._slot.info
            transfer_s = (choice.estimate.fetch_ns or choice.estimate.encode_ns) / 1e9
            source = Source(encoding_id, info.worker_id, info.epoch, transfer_s)
            now.setdefault(choice.worker_id, []).append(Prefetch(encoding_id, specs, (source,)))
        for target_id, prefetches in now.items():
            uses = tuple((each.encoding_id, foreseen.next_use(each.encoding_id)) for each in prefetches)
            self._slots[target_id].port.advise(Advice(uses=uses, prefetches=tuple(prefetches)))
