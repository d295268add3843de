"""What one simulated worker holds, in three tiers, and what goes first from each: the eviction policies that serve."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from sim_costs import Costs
from sim_device import Link
from sim_flows import Message
from sim_foresight import Told

from laban.kvstore.eviction import Evictable, EvictionPolicy
from laban.kvstore.placements import Tier

ABSENT, LOADING, READY = range(3)
SLACK = 0.02  # of host memory: so much is made free at once
LATE_S = 2.0  # writes to disk that have to wait so long are not made


class Oracle(Protocol):
    """What a store asks of the world around it."""

    def exists(self, message: Message) -> bool:
        """Whether it has been written."""

    def told_of(self, name: str) -> Told:
        """What is expected of it."""

    def true_use_of(self, name: str) -> float | None: ...

    def placed(self, worker_id: str, message: Message, tier: Tier, there: bool) -> None:
        """It came there, or went."""


@dataclass(slots=True, eq=False)
class Entry:
    """An encoding on one worker, in whichever tiers."""

    message: Message
    num_bytes: int
    device: int = ABSENT
    host_ready_s: float = inf  # since when there is a copy in host memory
    disk_ready_s: float = inf
    pins: int = 0
    last_use_s: float = -1.0
    waiting: list[Callable[[float], None]] = field(default_factory=list)
    apart: tuple[Message, ...] = ()  # of what it needs, what its last reader did not read as well
    told_before: int = 0  # versions of what was told of it before it was here
    returns_before: int = 0
    since_s: float = -1.0  # first on the device; less than 0: never yet
    evictable: Evictable | None = None  # as last made for a policy; None: something has changed since
    version: int = 0  # of what had been told then


@dataclass(slots=True)
class Counters:
    tokens_hit: int = 0
    tokens_loaded: int = 0
    tokens_fetched: int = 0  # from other workers
    tokens_encoded_again: int = 0  # had been somewhere
    tokens_encoded_first: int = 0
    bytes_saved: float = 0.0
    num_evicted: int = 0
    num_keys: int = 0  # computed to evict


class Store:
    """`sample`: how many candidates are looked at for each eviction; 0: all. `knows`: the policy asks the future."""

    def __init__(
        self,
        worker_id: str,
        oracle: Oracle,
        costs: Costs,
        policy: EvictionPolicy,
        rng: random.Random,
        *,
        sample: int = 0,
        knows: bool = False,
    ) -> None:
        self._worker_id = worker_id
        self._oracle = oracle
        self._costs = costs
        self._policy = policy
        self._rng = rng
        self._sample = sample
        self._knows = knows
        self.entries: dict[str, Entry] = {}
        self._idle: dict[str, Entry] = {}  # on the device, ready, unpinned
        self._hosted: dict[str, Entry] = {}
        self._disked: dict[str, Entry] = {}
        self._apart: dict[str, set[str]] = {}  # what is read without these, by their names
        self._idle_bytes = 0
        self.device_free = costs.device_bytes
        self._host_free = costs.host_bytes
        self._disk_free = costs.disk_bytes
        self.saves = Link(costs.link_bytes_per_s)
        self.disk_writes = Link(costs.disk_write_bytes_per_s)
        self.counters = Counters()

    @property
    def state(self) -> tuple[float, int]:
        """Changes whenever there may be more room than before."""
        return self.device_free, len(self._idle)

    def entry(self, message: Message) -> Entry:
        found = self.entries.get(message.name)
        if found is None:
            told = self._oracle.told_of(message.name)
            found = self.entries[message.name] = Entry(
                message,
                self._costs.num_bytes(message.num_tokens),
                told_before=told.version,
                returns_before=told.num_returns + (told.version > 0 and told.use is None),
            )
        return found

    def read(self, entries: list[Entry]) -> None:
        """By one call, together."""
        read = {entry.message for entry in entries}
        for entry in entries:
            apart = tuple(need for need in entry.message.needs if need not in read)
            if apart != entry.apart:
                entry.apart = apart
                entry.evictable = None
                for need in apart:
                    self._apart.setdefault(need.name, set()).add(entry.message.name)

    def pin(self, entry: Entry) -> None:
        entry.pins += 1
        if self._idle.pop(entry.message.name, None) is not None:
            self._idle_bytes -= entry.num_bytes

    def unpin(self, entry: Entry, now_s: float) -> None:
        entry.pins -= 1
        if entry.pins == 0:
            if entry.device == READY:
                entry.last_use_s = now_s
                entry.evictable = None
                self._add_idle(entry)
            else:
                self._forget(entry)

    def _add_idle(self, entry: Entry) -> None:
        self._idle[entry.message.name] = entry
        self._idle_bytes += entry.num_bytes

    def arrived(self, entry: Entry, now_s: float) -> None:
        """It is on the device now; its room has been taken before."""
        entry.device = READY
        entry.last_use_s = now_s
        if entry.since_s < 0:
            entry.since_s = now_s
        self._changed(entry)
        if entry.pins == 0:
            self._add_idle(entry)
        self._oracle.placed(self._worker_id, entry.message, Tier.DEVICE, True)
        self._save(entry, now_s)
        waiting, entry.waiting = entry.waiting, []
        for tell in waiting:
            tell(now_s)

    # What having it again takes

    def held_s(self, entry: Entry, now_s: float) -> tuple[float, float]:
        """From which tier below it can be loaded, as the seconds from disk, and from host memory. Infinite: from none."""  # noqa: E501
        copy_s = entry.num_bytes / self._costs.link_bytes_per_s
        if entry.host_ready_s <= now_s:
            return 0.0, copy_s
        if entry.disk_ready_s <= now_s:
            return entry.num_bytes / self._costs.disk_read_bytes_per_s, copy_s
        return inf, inf

    def encode_s(self, entry: Entry, now_s: float, needs: tuple[Message, ...]) -> float:
        """With those of `needs` that are not there."""
        costs = self._costs
        total_s = costs.encode_s(entry.message.num_tokens)
        for need in needs:
            held = self.entries.get(need.name)
            if (held is None or held.device == ABSENT) and self._oracle.exists(need):
                need_s = costs.encode_s(need.num_tokens)
                total_s += need_s if held is None else min(need_s, sum(self.held_s(held, now_s)))
        return total_s

    def _bring_back_s(self, entry: Entry, now_s: float, tier: Tier) -> float:
        """What losing it from the tier would cost: ways that begin there or above are none."""
        encode_s = self.encode_s(entry, now_s, entry.apart)
        if tier is Tier.DEVICE:
            load_s = sum(self.held_s(entry, now_s))
        elif tier is Tier.HOST and entry.disk_ready_s <= now_s:
            load_s = entry.num_bytes / self._costs.disk_read_bytes_per_s
        else:
            return encode_s
        if load_s == inf:
            return encode_s
        if self._costs.mixing:
            return load_s * encode_s / (load_s + encode_s)
        return min(load_s, encode_s)

    # Room

    def take_room(self, num_bytes: float) -> None:
        self.device_free -= num_bytes

    def make_room(self, num_bytes: float, now_s: float) -> bool:
        """On the device. False, and nothing has gone, if it cannot be."""
        if num_bytes <= self.device_free:
            return True
        if num_bytes > self.device_free + self._idle_bytes:
            return False
        for entry in self._victims(self._idle, Tier.DEVICE, now_s):
            entry.device = ABSENT
            del self._idle[entry.message.name]
            self._idle_bytes -= entry.num_bytes
            self.device_free += entry.num_bytes
            self.counters.num_evicted += 1
            self._changed(entry)
            self._oracle.placed(self._worker_id, entry.message, Tier.DEVICE, False)
            self._forget(entry)
            if num_bytes <= self.device_free:
                break
        return True

    def _victims(self, among: dict[str, Entry], tier: Tier, now_s: float) -> Iterator[Entry]:
        """In the order in which they go; of a sample, the first of it each time."""
        if not self._sample or len(among) <= self._sample:
            yield from sorted(among.values(), key=lambda entry: self._key(entry, tier, now_s))
            return
        names = list(among)
        while among:
            drawn = [name for name in self._rng.choices(names, k=self._sample) if name in among]
            if not drawn:
                names = list(among)
                continue
            yield min((among[name] for name in drawn), key=lambda entry: self._key(entry, tier, now_s))

    def _key(self, entry: Entry, tier: Tier, now_s: float) -> tuple[float, ...]:
        self.counters.num_keys += 1
        if self._knows or tier is not Tier.DEVICE or now_s < entry.host_ready_s < inf:
            return self._policy.key(self._evictable(entry, tier, now_s), now_s)
        seen, version = entry.evictable, self._oracle.told_of(entry.message.name).version
        if seen is None or entry.version != version:
            seen = entry.evictable = self._evictable(entry, tier, now_s)
            entry.version = version
        return self._policy.key(seen, now_s)

    def _evictable(self, entry: Entry, tier: Tier, now_s: float) -> Evictable:
        name = entry.message.name
        told = self._oracle.told_of(name)
        use = told.use
        return Evictable(
            encoding_id=name,
            num_tokens=entry.message.num_tokens,
            num_bytes=entry.num_bytes,
            last_use_s=entry.last_use_s,
            next_use_s=None if use is None else use.in_s,
            steps=None if use is None else use.steps,
            likelihood=0.0 if use is None else use.likelihood,
            fixed=use is not None and use.fixed,
            bring_back_s=self._bring_back_s(entry, now_s, tier),
            true_next_use_s=self._oracle.true_use_of(name) if self._knows else None,
            withdrawn=use is None and told.version > entry.told_before,
            num_returns=max(0, told.num_returns - entry.returns_before),
            since_s=max(told.since_s, entry.since_s, 0.0),
        )

    def _changed(self, entry: Entry) -> None:
        """What it, and what is read without it, takes to bring back may be another thing now."""
        entry.evictable = None
        for name in self._apart.get(entry.message.name, ()):
            if name in self.entries:
                self.entries[name].evictable = None

    def _forget(self, entry: Entry) -> None:
        """What is in no tier, and only one flow reads."""
        gone = entry.device == ABSENT and entry.host_ready_s == inf and entry.disk_ready_s == inf and entry.pins == 0
        if gone and not entry.message.fixed:
            self.entries.pop(entry.message.name, None)
            self._apart.pop(entry.message.name, None)

    # The tiers below

    def _save(self, entry: Entry, now_s: float) -> None:
        """To host memory, from behind, if there is room to be made."""
        if entry.host_ready_s < inf or entry.num_bytes > self._costs.host_bytes:
            return
        if entry.num_bytes > self._host_free:
            enough = max(entry.num_bytes, SLACK * self._costs.host_bytes)  # who goes is looked for among all of them
            for victim in self._victims(self._hosted, Tier.HOST, now_s):
                self._unhost(victim, now_s)
                if enough <= self._host_free:
                    break
        self._host_free -= entry.num_bytes
        self._hosted[entry.message.name] = entry
        entry.host_ready_s = self.saves.copy(entry.num_bytes, now_s)
        self._changed(entry)
        self.counters.bytes_saved += entry.num_bytes
        self._oracle.placed(self._worker_id, entry.message, Tier.HOST, True)

    def _unhost(self, entry: Entry, now_s: float) -> None:
        del self._hosted[entry.message.name]
        entry.host_ready_s = inf
        self._host_free += entry.num_bytes
        self._changed(entry)
        self._oracle.placed(self._worker_id, entry.message, Tier.HOST, False)
        if entry.disk_ready_s == inf and entry.num_bytes <= self._costs.disk_bytes:
            self._write(entry, now_s)
        self._forget(entry)

    def _write(self, entry: Entry, now_s: float) -> None:
        if self.disk_writes.wait_s(now_s) > LATE_S:
            return
        victims = self._victims(self._disked, Tier.DISK, now_s)
        while entry.num_bytes > self._disk_free:
            victim = next(victims)
            del self._disked[victim.message.name]
            victim.disk_ready_s = inf
            self._disk_free += victim.num_bytes
            self._changed(victim)
            self._forget(victim)
        self._disk_free -= entry.num_bytes
        self._disked[entry.message.name] = entry
        entry.disk_ready_s = self.disk_writes.copy(entry.num_bytes, now_s)

    def check_integrity(self, reserved: float = 0.0) -> None:
        """`reserved`: bytes of the device that running calls keep for what they write.

        Raises AssertionError if a tier holds more than its budget, or another amount than it counts.
        """
        costs = self._costs
        on_device = sum(entry.num_bytes for entry in self.entries.values() if entry.device != ABSENT)
        assert abs(costs.device_bytes - self.device_free - on_device - reserved) < 1
        assert self._idle_bytes == sum(entry.num_bytes for entry in self._idle.values())
        assert all(entry.device == READY and not entry.pins for entry in self._idle.values())
        for among, free, budget in (
            (self._hosted, self._host_free, costs.host_bytes),
            (self._disked, self._disk_free, costs.disk_bytes),
        ):
            assert abs(budget - free - sum(entry.num_bytes for entry in among.values())) < 1
        assert min(self.device_free, self._host_free, self._disk_free) >= 0
        assert all(entry.pins >= 0 for entry in self.entries.values())
