"""Who holds what of one call's needs: read from the directory's view and the ledger, as comparison_pass.py takes it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from laban.cluster.routing.call_view import Need
from laban.cluster.routing.comparison_pass import NUMBER_SHIFT, READY, Stream
from laban.cluster.routing.ledger import Ledger
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PlacementState, Tier

MAX_REMEMBERED = 100_000
"""Encodings whose holders are remembered."""

_READY, _LOADING = int(PlacementState.READY), int(PlacementState.LOADING)
_NONE = array("i", [0]).tobytes()


class HolderView(Protocol):
    """What is known of who holds what; directory_view.py has the one that serves."""

    def holders(self, encoding_id: EncodingId) -> Mapping[str, Sequence[tuple[Tier, PlacementState, int]]]:
        """Of each worker that holds something of it: where, in what state, and how many tokens."""
        ...

    def listen(self, changed: Callable[[EncodingId], None]) -> None:
        """`changed` is called for every encoding whose holders have changed."""
        ...


class Holdings:
    """Remembers who holds what until the view says that it has changed, or numbers mean other workers."""

    def __init__(self, view: HolderView, ledger: Ledger) -> None:
        self._view = view
        self._ledger = ledger
        self._remembered: dict[EncodingId, bytes] = {}
        self._version = ledger.version
        view.listen(self._forget)

    def stream(self, needs: Sequence[Need], successors: Sequence[tuple[EncodingId, int]], family: str) -> Stream:
        """Of each need, and then of each successor: how many workers hold it, and these, as `_find` says; on the device
        of how many it will be soon, and these. Then what the family is making, as Ledger.being_made says."""
        ledger, remembered = self._ledger, self._remembered
        if self._version != ledger.version:  # a number may mean another worker now
            remembered.clear()
            self._version = ledger.version
        coming, known = ledger.coming, remembered.get
        parts: list[bytes] = []
        for encoding_id, num_tokens, _, _ in needs:
            parts.append(known(encoding_id) or self._find(encoding_id, num_tokens))
            parts.append(coming[encoding_id].packed if encoding_id in coming else _NONE)
        for encoding_id, num_tokens in successors:
            parts.append(known(encoding_id) or self._find(encoding_id, num_tokens))
            parts.append(coming[encoding_id].packed if encoding_id in coming else _NONE)
        made = ledger.being_made(family)
        parts.append(array("i", [len(made), *[n for item in made.items() for n in item]]).tobytes() if made else _NONE)
        return np.frombuffer(b"".join(parts), np.int32)

    def _find(self, encoding_id: EncodingId, num_tokens: int) -> bytes:
        """How many workers hold all of it, and of each its number, its best tier, and whether others can fetch it
        there. What is on its way to the device counts as in host memory."""
        accounts = self._ledger.accounts
        found = array("i", [0])
        for worker_id, placements in self._view.holders(encoding_id).items():
            account = accounts.get(worker_id)
            if account is None:
                continue
            best, ready = 3, 0
            for tier, state, held_tokens in placements:
                if held_tokens < num_tokens:
                    continue  # a part is of use to the worker that has it, but not counted on
                if state == _READY:
                    ready = READY
                    if tier < best:
                        best = tier
                elif state == _LOADING and tier == 0 and best > 1:
                    best = 1
            if best < 3:
                found.append(account.number << NUMBER_SHIFT | ready | best)
        found[0] = len(found) - 1
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        packed = self._remembered[encoding_id] = found.tobytes()
        return packed

    def _forget(self, encoding_id: EncodingId) -> None:
        self._remembered.pop(encoding_id, None)
