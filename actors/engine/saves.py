"""Encodings on their way from the device to host memory, before the device has to let them go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from laban.actors.calls import WorkerRates
from laban.actors.engine.copier import GENTLE_BYTES_PER_S
from laban.actors.engine.counters import Counters
from laban.actors.engine.flights import Flights
from laban.actors.engine.loads import CHUNK_BYTES, IDLE_IN_FLIGHT_S, IN_FLIGHT_S
from laban.kvstore.store import EncodingStore, Entry


@dataclass(slots=True, eq=False)
class _Save:
    """Tokens [0, issued) of an entry of the device were given to the copier, `ended` of them were copied or failed."""

    entry: Entry
    room: Entry
    device: EncodingStore
    issued: int = 0
    ended: int = 0
    failed: bool = False


class Saves:
    """In the order in which they were asked for."""

    def __init__(self, flights: Flights, host: EncodingStore, bytes_per_token: int, counters: Counters) -> None:
        self._flights, self._host, self._bytes_per_token, self._counters = flights, host, bytes_per_token, counters
        self._waiting: deque[_Save] = deque()
        self._bytes_in_flight = 0

    def __bool__(self) -> bool:
        """Whether something is still to be given to the copier."""
        return bool(self._waiting)

    def begin(self, entry: Entry, room: Entry, device: EncodingStore) -> None:
        """From an entry of the device to `room`, the host's pages for it, which are pinned."""
        device.pin(entry, is_use=False)
        self._waiting.append(_Save(entry, room, device))

    def pump(
        self, rates: WorkerRates, last_write: Callable[[], torch.cuda.Event | None], *, beside: bool, idle: bool
    ) -> None:
        """Gives the copier what keeps the link busy; `beside` decodes gently, `idle` with little at once."""
        rate = min(rates.host_bytes_per_s, GENTLE_BYTES_PER_S) if beside else rates.host_bytes_per_s
        most = int(rate * (IDLE_IN_FLIGHT_S if idle else IN_FLIGHT_S))
        while self._waiting and self._bytes_in_flight < most:
            save = self._waiting[0]
            size = save.device.page_size
            pages = max(1, min(CHUNK_BYTES, most - self._bytes_in_flight) // (self._bytes_per_token * size))
            end = min(save.entry.num_tokens, save.issued + pages * size)
            self._issue(save, end, last_write(), gentle=beside)
            if end == save.entry.num_tokens:
                self._waiting.popleft()

    def _issue(self, save: _Save, end: int, after: torch.cuda.Event | None, *, gentle: bool) -> None:
        begin, entry, room = save.issued, save.entry, save.room
        num_bytes = (end - begin) * self._bytes_per_token
        save.issued = end
        self._bytes_in_flight += num_bytes

        def done() -> None:
            self._bytes_in_flight -= num_bytes
            save.ended += end - begin
            if save.failed:
                self._give_up(save)
            elif save.ended == entry.num_tokens:
                self._counters.add("bytes_saved_host", entry.num_tokens * self._bytes_per_token)
                save.device.unpin(entry, is_use=False)
                self._host.publish(room, entry.key, entry.num_tokens, entry.spec)
                self._host.unpin(room)

        def failed() -> None:
            save.failed = True
            done()

        runs = entry.runs(begin, end), room.runs(begin, end)
        self._flights.start("save", *runs, done, failed, after, gentle=gentle)

    def _give_up(self, save: _Save) -> None:
        """Nothing more is copied; the room is free once nothing is under way to it."""
        if save in self._waiting:
            self._waiting.remove(save)
        if save.ended == save.issued:
            save.device.unpin(save.entry, is_use=False)
            self._host.discard(save.room)
