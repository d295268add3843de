"""Encodings on their way from host memory to the device, from the last token to the first.

The tail of a message comes first because the head is what can be encoded meanwhile, without it: where the link is slow
the two go on at once until they meet, and what was prefetched in part is not lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from laban.actors.calls import WorkerRates
from laban.actors.engine.copier import GENTLE_BYTES_PER_S, Copy
from laban.actors.engine.flights import AfterFree, Flights
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.sequence import Sequence
from laban.kvstore.store import Entry

CHUNK_BYTES = 64 << 20
"""Copied at once: large enough for the link's full rate, small enough for something more urgent to come between."""
CHUNK_S = 0.02
IN_FLIGHT_S = 0.03
"""Given to the copier ahead: it must not run dry while the engine is in an iteration."""
IDLE_IN_FLIGHT_S = 0.003
"""The same of what nobody waits for, while nothing runs: the next call's first forward has to let it by."""


@dataclass(slots=True, eq=False)
class Load:
    """Tokens [0, stop) of `source`, a host entry. [issued, stop) was given to the copier, [there, stop) has arrived.

    `mixes` if the head is encoded meanwhile. `wanted` by a call; others yield to those that are. `failed` if a chunk
    has not arrived and never will.
    """

    source: Entry
    stop: int
    mixes: bool = False
    wanted: bool = False
    cancelled: bool = False
    failed: bool = False
    gated: Copy | None = None
    wanted_at_s: float = 0.0
    issued: int = 0
    there: int = 0
    in_flight: list[int] = field(default_factory=list)  # where each chunk under way begins

    def __post_init__(self) -> None:
        self.issued = self.there = self.stop

    @property
    def is_gated(self) -> bool:
        """Whether a forward launched now waits on the card for each layer of it."""
        return self.gated is not None and self.gated.enqueued() and self.gated.problem() is None


class Loads:
    """Gives chunks to the copier: of wanted loads in the order they came, then of prefetches."""

    def __init__(self, flights: Flights, bytes_per_token: int, page_size: int, after: AfterFree) -> None:
        self._flights, self._bytes_per_token, self._page_size, self._after = flights, bytes_per_token, page_size, after
        self.active: list[Sequence] = []
        self._bytes_in_flight = 0

    def start(self, sequence: Sequence, load: Load) -> None:
        sequence.load = load
        self.active.append(sequence)

    @property
    def may_gate(self) -> bool:
        """Whether there is one load, that a call waits for and of which nothing is on its way."""
        loads = [sequence.load for sequence in self.active]
        return len(loads) == 1 and loads[0] is not None and loads[0].wanted and not self._bytes_in_flight

    def queued_bytes(self, *, wanted: bool) -> int:
        """That are still to come, of loads that calls wait for, or of all."""
        loads = [s.load for s in self.active if s.load is not None and (s.load.wanted or not wanted)]
        return sum(load.there for load in loads) * self._bytes_per_token

    def pump(
        self, rates: WorkerRates, *, beside: bool = False, idle: bool = False, gates: LayerGates | None = None
    ) -> None:
        """Issues what keeps the link busy for a while: `beside` decodes gently, `idle` with little at once.

        What nobody waits for goes gently beside a prefill, too: its inputs would wait for all that was issued before.

        `gates` only with a single load, which is then issued whole. What brings a prefix has no gates: who reads it
        all waits for more than that.
        """
        for sequence in sorted(self.active, key=lambda s: not (s.load is not None and s.load.wanted)):
            load = sequence.load
            assert load is not None
            gentle = beside or not (load.wanted or idle)
            rate = min(rates.host_bytes_per_s, GENTLE_BYTES_PER_S) if gentle else rates.host_bytes_per_s
            ahead_s = IDLE_IN_FLIGHT_S if idle and not load.wanted else max(IN_FLIGHT_S, 2 * rates.iteration_s)
            most = int(rate * ahead_s)
            whole = load.issued == load.stop == len(sequence.tokens)
            if gates is not None and whole and load.wanted and not (load.mixes or load.cancelled):
                load.gated = self._issue(sequence, load, 0, gates, gentle=False)
            while not (load.cancelled or load.failed) and self._bytes_in_flight < most:
                front = sequence.num_computed
                if load.issued <= front:
                    break
                begin = load.issued - self._chunk_tokens(min(most - self._bytes_in_flight, rate * CHUNK_S))
                if begin < self._page_size:
                    begin = 0
                self._issue(sequence, load, max(front, begin), None, gentle=gentle)

    def _chunk_tokens(self, num_bytes: float) -> int:
        tokens = int(min(CHUNK_BYTES, num_bytes)) // self._bytes_per_token
        return max(1, tokens // self._page_size) * self._page_size

    def _issue(self, sequence: Sequence, load: Load, begin: int, gates: LayerGates | None, *, gentle: bool) -> Copy:
        num_bytes = (load.issued - begin) * self._bytes_per_token
        end, entry, pages = load.issued, sequence.entry, sequence.entry.pages
        size = self._page_size
        after = self._after(pages[begin // size : -(-end // size)])

        def ended() -> None:
            self._bytes_in_flight -= num_bytes
            load.in_flight.remove(begin)

        def arrived() -> None:
            ended()
            load.there = min(load.there, begin)

        def failed() -> None:
            ended()
            load.failed = True

        load.in_flight.append(begin)
        load.issued = begin
        self._bytes_in_flight += num_bytes
        runs = entry.runs(begin, end), load.source.runs(begin, end)
        return self._flights.start("load", *runs, arrived, failed, after, gates, gentle)

    def arrived(self) -> Iterator[Sequence]:
        """Those with nothing more to come: all there, met by what was encoded, cancelled or failed. They stay until
        `end`, which may be told of any while these are gone over."""
        for sequence in list(self.active):
            load = sequence.load
            if load is None or load.in_flight:
                continue
            if load.there <= sequence.num_computed or load.cancelled or load.failed:
                yield sequence

    def end(self, sequence: Sequence) -> Load:
        """Takes out one of which nothing is under way."""
        load = sequence.load
        assert load is not None
        self.active.remove(sequence)
        sequence.load = None
        return load
