"""How long a call's first token would take at a worker, from what is held where and how fast the worker is.

Each encoding that is missing comes in the cheapest way there is: loaded from the worker's own host memory or disk,
fetched from another worker, or encoded. Loading and encoding go side by side, so what they take is the longer of the
two; then come the call's own tokens, which attend to both. Attention to what is there already is not counted: a call's
view is as long wherever it goes. Times are whole nanoseconds, so that sums do not depend on their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from laban.cluster.routing.call_view import CallView
from laban.cluster.routing.rates import NEVER, Pace


class Estimate(NamedTuple):
    """Without the queue. The sets of needs say how each missing one comes; no need is in two of them.

    `saved_bring_ns`, of load and fetch, and `saved_encode_ns`, of encode, are what copies that pay will save others.
    """

    load_ns: int  # from its own host memory and disk
    fetch_ns: int
    encode_ns: int  # what is missing
    own_ns: int
    saved_bring_ns: int
    saved_encode_ns: int
    from_host: int
    from_disk: int
    fetched: int
    encoded: int
    tokens_host: int
    tokens_disk: int
    tokens_peer: int
    tokens_encode: int  # of what is missing

    @property
    def missing(self) -> int:
        """Needs that will be on the device because of this call."""
        return self.from_host | self.from_disk | self.fetched | self.encoded


Told = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, int]
"""The fields of an Estimate."""


class Estimator:
    """Of one call at workers of one pace.

    Mostly each need's way and its time a token are known beforehand, whatever else is missing, so tokens are added up
    by way. Need by need it goes where what has to be there depends on what has to be encoded (the call's needs are not
    `closed`), where the best peer is busy, and where copies pay.
    """

    def __init__(
        self,
        call: CallView,
        pace: Pace,
        everywhere: int,
        sendable: int,
        peers: Mapping[int, tuple[bool, int]],
        shares: Mapping[int, float],
    ) -> None:
        """`everywhere` are the needs that all workers hold on the device, `sendable` those that another worker has in
        memory and sends at once. `peers` has others that can be fetched: whether from disk, and how many encodings the
        best source sends already. `shares` has the part of a copy's time that counts here, where copies pay
        (replication.py)."""
        self._call, self._pace, self._everywhere, self._sendable = call, pace, everywhere, sendable
        self._peers, self._shares = peers, shares
        self._by_way = call.closed and not shares and not peers
        needed = call.wanted & ~everywhere
        fetched = sendable if pace.peer_ns <= pace.encode_ns else 0
        self._fetched, self._encoded = fetched & needed, needed & ~fetched
        if self._by_way:
            self._tokens_fetched = self._call.tokens_of(self._fetched)
            self._tokens_encoded = self._call.tokens_of(self._encoded)

    def times(self, group: tuple[int, int, int, int]) -> tuple[int, int]:
        """Of a group of workers with what they hold: how long bringing what is missing counts, and encoding it."""
        _, device, host, disk = group
        if host or disk or not self._by_way:
            told = self.estimate(device, host, disk)
            return told[0] + told[1] - told[4], told[2] - told[5]
        pace = self._pace
        tokens_peer, tokens_encode = self._tokens_fetched, self._tokens_encoded
        if device & self._fetched:
            tokens_peer -= self._call.tokens_of(device & self._fetched)
        if device & self._encoded:
            tokens_encode -= self._call.tokens_of(device & self._encoded)
        return tokens_peer * pace.peer_ns, tokens_encode * pace.encode_ns

    def estimate(self, device: int, host: int, disk: int) -> Told:
        """For a worker that holds these needs, each in its best tier: `host` also on their way to the device."""
        if not self._by_way:
            return self._add_up(self._everywhere | device, host, disk)
        call, pace = self._call, self._pace
        held = device | host | disk
        fetched, encoded = self._fetched, self._encoded
        tokens_peer, tokens_encode = self._tokens_fetched, self._tokens_encoded
        from_host = from_disk = tokens_host = tokens_disk = 0
        if held & fetched:
            tokens_peer -= self._call.tokens_of(held & fetched)
            fetched &= ~held
        if held & encoded:
            tokens_encode -= self._call.tokens_of(held & encoded)
            encoded &= ~held
        host &= call.wanted
        if host:
            tokens = self._call.tokens_of(host)
            if pace.host_ns <= pace.encode_ns:
                from_host, tokens_host = host, tokens
            else:
                encoded |= host
                tokens_encode += tokens
        disk &= call.wanted
        if disk:
            if pace.peer_ns < pace.disk_ns:
                better = disk & self._fetched
                fetched |= better
                tokens_peer += self._call.tokens_of(better)
                disk ^= better
            tokens = self._call.tokens_of(disk)
            if pace.disk_ns <= pace.encode_ns:
                from_disk, tokens_disk = disk, tokens
            else:
                encoded |= disk
                tokens_encode += tokens
        return (
            tokens_host * pace.host_ns + tokens_disk * pace.disk_ns,
            tokens_peer * pace.peer_ns,
            tokens_encode * pace.encode_ns,
            call.own_tokens * pace.encode_ns,
            0, 0, from_host, from_disk, fetched, encoded, tokens_host, tokens_disk, tokens_peer, tokens_encode,
        )  # fmt: skip

    def _add_up(self, device: int, host: int, disk: int) -> Told:
        """Need by need."""
        call, pace, shares = self._call, self._pace, self._shares
        needs, encode_ns = call.needs, pace.encode_ns
        seen = call.wanted
        left = seen & ~device
        load = fetch = encode = saved_bring = saved_encode = 0
        from_host = from_disk = fetched = encoded = 0
        tokens_host = tokens_disk = tokens_peer = tokens_encode = 0
        while left:
            # A need's context has lower bits only: what it adds has not been looked at yet.
            at = left.bit_length() - 1
            bit = 1 << at
            left ^= bit
            _, tokens, context, _ = needs[at]
            own_ns = pace.host_ns if host & bit else pace.disk_ns if disk & bit else NEVER
            bring_ns = own_ns
            if not host & bit:
                bring_ns = min(own_ns, self._peer_ns(at))
            again = tokens * encode_ns
            behind = context & ~(seen | device)
            if behind:
                again += self._call.tokens_of(behind) * encode_ns
            bring = tokens * bring_ns
            if bring > again:
                encoded |= bit
                tokens_encode += tokens
                encode += tokens * encode_ns
                seen |= behind
                left |= behind
                if at in shares:
                    saved_encode += _saved(tokens * encode_ns, shares[at])
            elif bring_ns < own_ns:
                fetched |= bit
                tokens_peer += tokens
                fetch += bring
                if at in shares:
                    saved_bring += _saved(bring, shares[at])
            elif host & bit:
                from_host |= bit
                tokens_host += tokens
                load += bring
            else:
                from_disk |= bit
                tokens_disk += tokens
                load += bring
        return (
            load, fetch, encode, call.own_tokens * encode_ns, saved_bring, saved_encode,
            from_host, from_disk, fetched, encoded, tokens_host, tokens_disk, tokens_peer, tokens_encode,
        )  # fmt: skip

    def _peer_ns(self, at: int) -> int:
        """A token of this need, from the best other worker."""
        if self._sendable >> at & 1:
            return self._pace.peer_ns
        sent = self._peers.get(at)
        if sent is None:
            return NEVER
        return (self._pace.peer_disk_ns if sent[0] else self._pace.peer_ns) * (1 + sent[1])


def _saved(nanoseconds: int, share: float) -> int:
    return int(nanoseconds * (1.0 - share))
