"""Who holds what of one call's needs, in sets of workers: read from the directory's view and the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from laban.actors.calls import Source
from laban.cluster.routing.accounts import Account
from laban.cluster.routing.call_view import CallView, bits
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

    def ask(self, call: CallView) -> Question:
        """Where what the call needs lies."""
        ledger, remembered = self._ledger, self._remembered
        if self._version != ledger.version:  # a number may mean another worker now
            remembered.clear()
            self._version = ledger.version
        everyone, coming = ledger.open, ledger.coming
        groups: list[Group] = [(everyone, 0, 0, 0)]
        everywhere = sendable = 0
        peers: dict[int, tuple[bool, int]] = {}
        for at, (encoding_id, num_tokens, _, _) in enumerate(call.needs):
            holders = remembered.get(encoding_id) or self._find(encoding_id, num_tokens)
            device, host, disk, ready = holders
            if encoding_id in coming:
                device |= coming[encoding_id].mask
                host &= ~device
                disk &= ~device
            device &= everyone
            bit = 1 << at
            if device == everyone:
                everywhere |= bit
                continue
            if ready:
                fast = ready & ~holders[2]
                if fast & ~ledger.sending:
                    sendable |= bit
                else:
                    peers[at] = (not fast, self._num_sending(fast or ready))
            held = (device | host | disk) & everyone
            if not held:
                continue
            split: list[Group] = []
            for group in groups:
                inside = group[0] & held
                if not inside:
                    split.append(group)
                    continue
                members, on_device, in_host, on_disk = group
                if inside != members:
                    split.append((members ^ inside, on_device, in_host, on_disk))
                if inside & device:
                    split.append((inside & device, on_device | bit, in_host, on_disk))
                if inside & host:
                    split.append((inside & host, on_device, in_host | bit, on_disk))
                if inside & disk:
                    split.append((inside & disk, on_device, in_host, on_disk | bit))
            groups = split
        return Question(everyone, groups, everywhere, sendable, peers)

    def left(self, call: CallView) -> Left:
        """What each worker leaves elsewhere of what the call's successors will read, there or being made."""
        ledger = self._ledger
        total = 0
        parts: dict[int, int] = {}
        remembered, coming, everyone = self._remembered, ledger.coming, ledger.open
        for encoding_id, tokens in call.successors:
            total += tokens
            device, host, disk, _ = remembered.get(encoding_id) or self._find(encoding_id, tokens)
            there = device | host | disk
            if encoding_id in coming:
                there |= coming[encoding_id].mask
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
