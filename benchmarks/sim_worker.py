"""One worker in the simulator, at the grain of whole calls.

A call is admitted, in order of rank and arrival, when there is room for all that it reads and writes; it waits for what
has to be loaded or encoded again, its own tokens are encoded, and it decodes beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any, Protocol

from sim_costs import Costs
from sim_device import Clock, Device, Link
from sim_flows import Message, Step
from sim_store import ABSENT, LOADING, READY, Entry, Store

_serials = count()


@dataclass(slots=True, eq=False)
class SimCall:
    """A step on its way through a worker. Times are seconds on the virtual clock."""

    step: Step
    flow: int
    number: int  # of the step
    rank: int
    reads: tuple[Message, ...]
    ready_s: float
    serial: int = field(default_factory=_serials.__next__)
    admitted_s: float = 0.0
    there_s: float = 0.0  # since when all that it reads is on the device
    first_s: float = 0.0
    work_s: float = 0.0  # what was loaded and encoded again for it takes, by itself
    num_missing: int = 0
    pinned: list[Entry] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)  # encodings that other workers would send
    sent: Any = None  # its place in the router's books
    tokens_expected: int = 0  # to be found, by the router
    tokens_encoded: int = 0  # again
    worker: SimWorker | None = None


class Surroundings(Protocol):
    """Who is told what becomes of calls."""

    def exists(self, message: Message) -> bool: ...
    def sender(self, call: SimCall, name: str) -> SimWorker | None:
        """Another worker that has it now and will send it."""

    def began(self, call: SimCall, now_s: float) -> None: ...
    def first_token(self, call: SimCall, now_s: float) -> None: ...
    def finished(self, call: SimCall, now_s: float) -> None: ...


class SimWorker:
    def __init__(
        self, worker_id: str, clock: Clock, around: Surroundings, costs: Costs, store: Store, *, fixed: bool = False
    ) -> None:
        """`fixed`: what is missing is there at once, and only counted, so that time goes on alike for every policy."""
        self._fixed = fixed
        self.worker_id = worker_id
        self.store = store
        self.device = Device(clock, costs)
        self.loads = Link(costs.link_bytes_per_s)
        self.fetches = Link(costs.peer_bytes_per_s)
        self.sends = Link(costs.peer_bytes_per_s)
        self.disk_reads = Link(costs.disk_read_bytes_per_s)
        self.alive = True
        self.outstanding: dict[int, SimCall] = {}
        self._clock = clock
        self._around = around
        self._costs = costs
        self._queue: list[tuple[int, int, SimCall]] = []
        self.num_admitted = 0
        self._blocked: tuple[int, tuple[float, int]] | None = None  # a call that did not fit, and when

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    def submit(self, call: SimCall, now_s: float) -> None:
        call.worker = self
        self.outstanding[call.serial] = call
        heappush(self._queue, (call.rank, call.serial, call))
        self._pump(now_s)

    def stop(self) -> list[SimCall]:
        """It dies; returns the calls that die with it."""
        self.alive = False
        self.device.stop()
        return list(self.outstanding.values())

    # Calls

    def _pump(self, now_s: float) -> None:
        """Admit calls, in order, as long as there is room for the next one."""
        while self._queue and self.num_admitted < self._costs.max_running:
            call = self._queue[0][2]
            if self._blocked == (call.serial, self.store.state) or not self._admit(call, now_s):
                return
            heappop(self._queue)

    def _admit(self, call: SimCall, now_s: float) -> bool:
        store = self.store
        reads = [store.entry(message) for message in call.reads]
        missing: dict[str, Entry] = {}
        for entry in reads:
            self._collect(entry, missing, call, now_s)
        needed = [*reads, *(entry for entry in missing.values() if entry not in reads)]
        for entry in needed:
            store.pin(entry)
        made_bytes = self._costs.num_bytes(call.step.output.num_tokens)
        room = made_bytes + sum(entry.num_bytes for entry in missing.values())
        if not store.make_room(room, now_s):
            for entry in needed:
                store.unpin(entry, now_s)
            if self.num_admitted == 0:
                raise MemoryError(f"{call.step.kind}: {room / 1e9:.1f} GB do not fit on {self.worker_id}")
            self._blocked = call.serial, store.state
            return False
        store.take_room(room)
        store.read(reads)
        self.num_admitted += 1
        call.admitted_s = now_s
        call.pinned = needed
        self._around.began(call, now_s)
        store.counters.tokens_hit += sum(entry.message.num_tokens for entry in reads if entry.device == READY)
        if self._fixed:
            self._bring_at_once(missing.values(), call, now_s)
        call.num_missing = 1
        brought = [] if self._fixed else list(missing.values())
        for entry in brought:
            entry.device = LOADING
        for entry in brought:
            self._bring(entry, call, now_s)
        for entry in needed:
            if entry.device == LOADING:
                call.num_missing += 1
                entry.waiting.append(partial(self._came, call))
        self._came(call, now_s)
        return True

    def _came(self, call: SimCall, now_s: float) -> None:
        call.num_missing -= 1
        if call.num_missing == 0:
            call.there_s = now_s
            self.device.encode(call.step.new_tokens, partial(self._first_token, call), now_s)

    def _first_token(self, call: SimCall, now_s: float) -> None:
        call.first_s = now_s
        self._around.first_token(call, now_s)
        if call.step.output_tokens > 1:
            self.device.decode(call.step.output_tokens - 1, call.serial, partial(self._finish, call))
        else:
            self._finish(call, now_s)

    def _finish(self, call: SimCall, now_s: float) -> None:
        self.num_admitted -= 1
        del self.outstanding[call.serial]
        made = self.store.entry(call.step.output)
        if made.device == ABSENT:
            self.store.arrived(made, now_s)
        else:
            self.store.take_room(-made.num_bytes)
        for entry in call.pinned:
            self.store.unpin(entry, now_s)
        self._around.finished(call, now_s)
        self._pump(now_s)

    # Having what is read

    def _collect(self, entry: Entry, missing: dict[str, Entry], call: SimCall, now_s: float) -> None:
        """What is to be brought for `entry` to be there: it, and what it needs if it is to be encoded."""
        if entry.device != ABSENT or entry.message.name in missing:
            return
        needs = entry.message.needs
        if needs and not self._fixed and self._load_s(entry, call, now_s) > self.store.encode_s(entry, now_s, needs):
            for need in needs:
                if self._around.exists(need):
                    self._collect(self.store.entry(need), missing, call, now_s)
        missing[entry.message.name] = entry

    def _load_s(self, entry: Entry, call: SimCall, now_s: float) -> float:
        """From the fastest place that has it; infinite if none does."""
        own_s = sum(self.store.held_s(entry, now_s))
        if own_s == inf and self._around.sender(call, entry.message.name) is not None:
            return self.fetches.copy_s(entry.num_bytes)
        return own_s

    def _bring(self, entry: Entry, call: SimCall, now_s: float) -> None:
        """Load it, encode it, or both from either end; whoever waits for it is told."""
        tokens = entry.message.num_tokens
        load_s, encode_s = self._load_s(entry, call, now_s), self._costs.encode_s(tokens)
        queued_s = self._costs.encode_s(self.device.queued_tokens)
        head = tokens
        if load_s < inf:
            wait_s = self.loads.wait_s(now_s)
            if self._costs.mixing:
                # The ends meet: queued + head = wait + rest.
                meet = (wait_s + load_s - queued_s) / (encode_s + load_s)
                head = min(tokens, int(tokens * meet)) if meet > 0.05 else 0
            else:
                head = tokens if queued_s + encode_s < wait_s + load_s else 0
        parts = (head > 0) + (head < tokens)

        def came(now_s: float) -> None:
            nonlocal parts
            parts -= 1
            if parts == 0 and self.alive:
                self.store.arrived(entry, now_s)

        if head < tokens:
            self._clock.at(self._load(entry, call, tokens - head, now_s), came)
            call.work_s += load_s * (tokens - head) / tokens
        if head > 0:
            call.tokens_encoded += head
            if entry.since_s >= 0:
                self.store.counters.tokens_encoded_again += head
            else:
                self.store.counters.tokens_encoded_first += head
            call.work_s += encode_s * head / tokens
            self._encode(entry, head, came, now_s)

    def _bring_at_once(self, missing: Iterable[Entry], call: SimCall, now_s: float) -> None:
        for entry in missing:
            load_s = self._load_s(entry, call, now_s)
            encode_s = self.store.encode_s(entry, now_s, entry.message.needs)
            if load_s < inf:
                call.work_s += load_s * encode_s / (load_s + encode_s) if self._costs.mixing else min(load_s, encode_s)
                self.store.counters.tokens_loaded += entry.message.num_tokens
            else:
                call.work_s += encode_s
                self.store.counters.tokens_encoded_again += entry.message.num_tokens
            self.store.arrived(entry, now_s)

    def _load(self, entry: Entry, call: SimCall, num_tokens: int, now_s: float) -> float:
        """When it will have been."""
        part = entry.num_bytes * num_tokens / entry.message.num_tokens
        from_disk_s, copy_s = self.store.held_s(entry, now_s)
        if copy_s < inf:
            self.store.counters.tokens_loaded += num_tokens
            return self.loads.copy(part, self.disk_reads.copy(part, now_s) if from_disk_s else now_s)
        sender = self._around.sender(call, entry.message.name)
        assert sender is not None
        self.store.counters.tokens_fetched += num_tokens
        # It leaves one worker and reaches the other: as fast as the busier of the two.
        return max(self.fetches.copy(part, now_s), sender.sends.copy(part, now_s))

    def _encode(self, entry: Entry, num_tokens: int, then: Callable[[float], None], now_s: float) -> None:
        """Once what it needs is there."""
        left = 1

        def one(now_s: float) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.device.encode(num_tokens, then, now_s)

        for need in entry.message.needs:
            held = self.store.entries.get(need.name)
            if held is not None and held.device == LOADING and held is not entry:
                left += 1
                held.waiting.append(one)
        one(now_s)
