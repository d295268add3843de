"""Who holds what of one call's needs, in sets of workers: read from the directory's view and the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from laban.actors.calls import Source
from laban.cluster.routing.accounts import Account
from laban.cluster.routing.call_view import CallView, Need, bits
from laban.cluster.routing.estimate import Estimate
from laban.cluster.routing.ledger import Ledger
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import PlacementState, Tier

MAX_REMEMBERED = 100_000
"""Encodings whose holders are remembered as sets."""

_READY, _LOADING = int(PlacementState.READY), int(PlacementState.LOADING)


class HolderView(Protocol):
    """What is known of who holds what; directory_view.py has the one that serves."""

    def holders(self, encoding_id: EncodingId) -> Mapping[str, Sequence[tuple[Tier, PlacementState, int]]]:
        """Of each worker that holds something of it: where, in what state, and how many tokens."""
        ...

    def listen(self, changed: Callable[[EncodingId], None]) -> None:
        """`changed` is called for every encoding whose holders have changed."""
        ...


Holders = tuple[int, int, int, int]
"""Sets of workers, by the best tier in which each has a whole encoding: on the device, in host memory or on its way to
the device, on disk; and of all these, those that others can fetch it from."""


Group = tuple[int, int, int, int]
"""A set of workers, and the needs that each of them holds on its device, in host memory and on disk."""


@dataclass(slots=True)
class Survey:
    """Where some of a call's needs lie: the workers that hold each on the device, in host memory and on disk, by its
    place in the call. Those that all open workers hold on the device are `everywhere` and not among the `states`; what
    the call can count on besides is as in Question."""

    states: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    everywhere: int = 0
    sendable: int = 0
    peers: dict[int, tuple[bool, int]] = field(default_factory=dict)

    def peer(self, at: int) -> tuple[bool, int]:
        """Whether others have it only on disk, and how many encodings the best of them sends; -1 if nobody has it."""
        return (False, 0) if self.sendable >> at & 1 else self.peers.get(at, (False, -1))

    def group_of(self, number: int) -> Group:
        """Of the worker with that number alone."""
        on_device = in_host = on_disk = 0
        for at, (device, host, disk) in self.states.items():
            if device >> number & 1:
                on_device |= 1 << at
            elif host >> number & 1:
                in_host |= 1 << at
            elif disk >> number & 1:
                on_disk |= 1 << at
        return 1 << number, on_device, in_host, on_disk


class Question(NamedTuple):
    """`groups` are the open `workers` by what they hold of a call's needs, and this what that call can count on.

    `everywhere` are the needs that all of them hold on the device. `sendable` are those that some worker which sends
    nothing now has in memory; `peers` has the others that can be fetched: whether only from disk, and how many
    encodings the best source sends already.
    """

    workers: int
    groups: list[Group]
    everywhere: int
    sendable: int
    peers: dict[int, tuple[bool, int]]


class Left(NamedTuple):
    """Tokens that workers leave elsewhere: `tokens`, but for those in `apart`, which are in one of `parts` each."""

    tokens: int
    apart: int
    parts: list[tuple[int, int]]  # a set of workers, and their tokens

    def at(self, bit: int) -> int:
        """Of one worker."""
        if bit & self.apart:
            for members, tokens in self.parts:
                if members & bit:
                    return tokens
        return self.tokens


class Holdings:
    """Remembers the sets of holders until the view says that they have changed, or numbers mean other workers."""

    def __init__(self, view: HolderView, ledger: Ledger) -> None:
        self._view = view
        self._ledger = ledger
        self._remembered: dict[EncodingId, Holders] = {}
        self._version = ledger.version
        view.listen(self._forget)

    def survey(self, call: CallView, among: int, survey: Survey) -> None:
        """Find where these of its needs lie."""
        ledger, remembered = self._ledger, self._remembered
        if self._version != ledger.version:  # a number may mean another worker now
            remembered.clear()
            self._version = ledger.version
        everyone, coming, idle = ledger.open, ledger.coming, ~ledger.sending
        while among:
            bit = among & -among
            among ^= bit
            at = bit.bit_length() - 1
            encoding_id, num_tokens, _, _ = call.needs[at]
            device, host, disk, ready = remembered.get(encoding_id) or self._find(encoding_id, num_tokens)
            memory = ready & ~disk
            if encoding_id in coming:
                device |= coming[encoding_id].mask
                host &= ~device
                disk &= ~device
            if device & everyone == everyone:
                survey.everywhere |= bit
                continue
            survey.states[at] = (device, host, disk)
            if memory & idle:
                survey.sendable |= bit
            elif ready:
                survey.peers[at] = (not memory, self._num_sending(memory or ready))

    def on_device(self, need: Need) -> int:
        """Who holds it there, or will soon. After a survey of the same call."""
        device = self._holders(need.encoding_id, need.num_tokens)[0]
        coming = self._ledger.coming.get(need.encoding_id)
        return device if coming is None else device | coming.mask

    def ask(self, call: CallView) -> Question:
        """Where all that the call needs lies, and the open workers by what they hold."""
        survey, everyone = Survey(), self._ledger.open
        self.survey(call, (1 << len(call.needs)) - 1, survey)
        groups: list[Group] = [(everyone, 0, 0, 0)]
        for at, (device, host, disk) in survey.states.items():
            if (device | host | disk) & everyone:
                groups = _split(groups, 1 << at, device, host, disk)
        return Question(everyone, groups, survey.everywhere, survey.sendable, survey.peers)

    def there(self, call: CallView) -> list[int]:
        """Of each of the call's successors the workers where it lies, in whatever tier, or is being made."""
        remembered, coming = self._remembered, self._ledger.coming
        found = []
        for encoding_id, tokens in call.successors:
            device, host, disk, _ = remembered.get(encoding_id) or self._find(encoding_id, tokens)
            there = device | host | disk
            if encoding_id in coming:
                there |= coming[encoding_id].mask
            found.append(there)
        return found

    def left(self, call: CallView) -> Left:
        """What each worker leaves elsewhere of what the call's successors will read, there or being made."""
        ledger = self._ledger
        total = 0
        parts: dict[int, int] = {}
        everyone = ledger.open
        for (_, tokens), there in zip(call.successors, self.there(call), strict=True):
            total += tokens
            there &= everyone
            if there:
                parts = _add(parts, there, tokens) if parts else {tokens: there}
        for number, tokens in ledger.being_made(call.family).items():
            total += tokens
            if ledger.open >> number & 1:
                parts = _add(parts, 1 << number, tokens)
        return Left(total, sum(parts.values()), [(members, total - tokens) for tokens, members in parts.items()])

    def _num_sending(self, members: int) -> int:
        """How many encodings the one of these sends that sends the fewest."""
        return min([self._ledger.by_bit[1 << number].num_fetching for number in bits(members)])

    def sources(
        self, call: CallView, chosen: Account, told: Estimate
    ) -> tuple[tuple[Source, ...], tuple[Account, ...]]:
        """Whom the chosen worker is to fetch what from: who has it in memory, and of these who sends the fewest."""
        found, accounts = [], []
        sending: dict[int, int] = {}  # because of this very call
        for at in bits(told.fetched):
            need = call.needs[at]
            _, _, disk, ready = self._holders(need.encoding_id, need.num_tokens)
            ready &= ~chosen.bit
            fast = ready & ~disk
            among = [self._ledger.by_bit[1 << number] for number in bits(fast or ready)]
            if len(among) > 1:
                among.sort(key=lambda each: (each.num_fetching + sending.get(each.number, 0), each.worker_id))
            source = among[0]
            busy = source.num_fetching + sending.get(source.number, 0)
            sending[source.number] = sending.get(source.number, 0) + 1
            token_ns = chosen.pace.peer_ns if fast else chosen.pace.peer_disk_ns
            transfer_s = need.num_tokens * token_ns * (1 + busy) / 1e9
            found.append(Source(need.encoding_id, source.worker_id, source.epoch, transfer_s))
            accounts.append(source)
        return tuple(found), tuple(accounts)

    def _holders(self, encoding_id: EncodingId, num_tokens: int) -> Holders:
        return self._remembered.get(encoding_id) or self._find(encoding_id, num_tokens)

    def _find(self, encoding_id: EncodingId, num_tokens: int) -> Holders:
        accounts = self._ledger.accounts
        device = host = disk = ready = 0
        for worker_id, placements in self._view.holders(encoding_id).items():
            account = accounts.get(worker_id)
            if account is None:
                continue
            bit = account.bit
            best = 3
            for tier, state, held_tokens in placements:
                if held_tokens < num_tokens:
                    continue  # a part is of use to the worker that has it, but not counted on
                if state == _READY:
                    ready |= bit
                    if tier < best:
                        best = tier
                elif state == _LOADING and tier == 0 and best > 1:
                    best = 1
            if best == 0:
                device |= bit
            elif best == 1:
                host |= bit
            elif best == 2:
                disk |= bit
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.clear()
        found = self._remembered[encoding_id] = (device, host, disk, ready)
        return found

    def _forget(self, encoding_id: EncodingId) -> None:
        self._remembered.pop(encoding_id, None)


def _split(groups: Sequence[Group], bit: int, device: int, host: int, disk: int) -> list[Group]:
    """By who of them holds one more need, and where."""
    held = device | host | disk
    split: list[Group] = []
    for group in groups:
        members, on_device, in_host, on_disk = group
        inside = members & held
        if not inside:
            split.append(group)
            continue
        if inside != members:
            split.append((members ^ inside, on_device, in_host, on_disk))
        if inside & device:
            split.append((inside & device, on_device | bit, in_host, on_disk))
        if inside & host:
            split.append((inside & host, on_device, in_host | bit, on_disk))
        if inside & disk:
            split.append((inside & disk, on_device, in_host, on_disk | bit))
    return split


def _add(parts: dict[int, int], members: int, tokens: int) -> dict[int, int]:
    """Sets of workers by a number, those in `members` with so much more. Who is in none has 0."""
    sums: dict[int, int] = {}
    for before, among in parts.items():
        inside = among & members
        if inside != among:
            sums[before] = sums.get(before, 0) | among ^ inside
        if inside:
            sums[before + tokens] = sums.get(before + tokens, 0) | inside
            members ^= inside
    if members:
        sums[tokens] = sums.get(tokens, 0) | members
    return sums
