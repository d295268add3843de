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
"""An Estimate before it is one: a decision looks at many."""


class Estimator:
    """Of one call at workers of one pace.

    What a worker that holds nothing lacks is added up once; for others, what they hold is taken off. That is not
    possible (`_simple`) where what has to be there depends on what has to be encoded, and that on who holds it.
    """

    def __init__(
        self,
        call: CallView,
        pace: Pace,
        everywhere: int,
        somewhere: int,
        peers: Mapping[int, tuple[bool, int]],
        shares: Mapping[int, float],
    ) -> None:
        """`everywhere` and `somewhere` are the needs that all workers hold on the device, and that some hold at all.
        `peers` has those that the best other worker would send: whether from disk, and how many it sends already.
        `shares` has the part of a copy's time that counts here, where copies pay (replication.py)."""
        self._call, self._pace, self._everywhere = call, pace, everywhere
        self._shares = shares
        self._peer_ns = {
            at: (pace.peer_disk_ns if from_disk else pace.peer_ns) * (1 + num_sending)
            for at, (from_disk, num_sending) in peers.items()
        }
        self._somewhere = somewhere
        self._simple = True
        self._nothing = self._add_up(everywhere, 0, 0, watch=True)
        self._needed = Estimate._make(self._nothing).missing

    def estimate(self, device: int, host: int, disk: int) -> Told:
        """For a worker that holds these needs, each in its best tier: `host` also on their way to the device."""
        held = (device | host | disk) & self._needed
        if not self._simple:
            return self._add_up(self._everywhere | device, host, disk)
        nothing = self._nothing
        if not held:
            return nothing
        (
            load, fetch, encode, own, saved_bring, saved_encode, from_host, from_disk, fetched, encoded,
            tokens_host, tokens_disk, tokens_peer, tokens_encode,
        ) = nothing  # fmt: skip
        needs, pace, shares = self._call.needs, self._pace, self._shares
        encode_ns = pace.encode_ns
        while held:
            at = held.bit_length() - 1
            bit = 1 << at
            held ^= bit
            tokens = needs[at][1]
            peer_ns = self._peer_ns.get(at, NEVER)
            if fetched & bit:
                spent = tokens * peer_ns
                fetch -= spent
                tokens_peer -= tokens
                fetched ^= bit
                if at in shares:
                    saved_bring -= _saved(spent, shares[at])
            else:
                spent = tokens * encode_ns
                encode -= spent
                tokens_encode -= tokens
                encoded ^= bit
                if at in shares:
                    saved_encode -= _saved(spent, shares[at])
            if device & bit:
                continue
            if host & bit:
                own_ns, peer_ns = pace.host_ns, NEVER
            else:
                own_ns = pace.disk_ns
            bring_ns = min(own_ns, peer_ns)
            if bring_ns > encode_ns:
                encode += tokens * encode_ns
                tokens_encode += tokens
                encoded |= bit
                if at in shares:
                    saved_encode += _saved(tokens * encode_ns, shares[at])
            elif bring_ns < own_ns:
                fetch += tokens * bring_ns
                tokens_peer += tokens
                fetched |= bit
                if at in shares:
                    saved_bring += _saved(tokens * bring_ns, shares[at])
            elif host & bit:
                load += tokens * bring_ns
                tokens_host += tokens
                from_host |= bit
            else:
                load += tokens * bring_ns
                tokens_disk += tokens
                from_disk |= bit
        return (
            load, fetch, encode, own, saved_bring, saved_encode, from_host, from_disk, fetched, encoded,
            tokens_host, tokens_disk, tokens_peer, tokens_encode,
        )  # fmt: skip

    def _add_up(self, device: int, host: int, disk: int, watch: bool = False) -> Told:
        """Need by need. With `watch`, sees whether the others can go by the difference."""
        call, pace, shares, peers = self._call, self._pace, self._shares, self._peer_ns
        needs = call.needs
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
            bring_ns = own_ns if host & bit else min(own_ns, peers.get(at, NEVER))
            again = tokens * pace.encode_ns
            behind = context & ~(seen | device)
            if behind:
                if watch and bring_ns > pace.encode_ns and (self._somewhere & bit or at in peers):
                    self._simple = False
                again += self._tokens_of(behind) * pace.encode_ns
            bring = tokens * bring_ns
            if bring > again:
                encoded |= bit
                tokens_encode += tokens
                encode += tokens * pace.encode_ns
                seen |= behind
                left |= behind
                if at in shares:
                    saved_encode += _saved(tokens * pace.encode_ns, shares[at])
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
        return Estimate(
            load, fetch, encode, call.own_tokens * pace.encode_ns, saved_bring, saved_encode,
            from_host, from_disk, fetched, encoded, tokens_host, tokens_disk, tokens_peer, tokens_encode,
        )  # fmt: skip

    def _tokens_of(self, mask: int) -> int:
        tokens = 0
        while mask:
            at = mask.bit_length() - 1
            tokens += self._call.needs[at].num_tokens
            mask ^= 1 << at
        return tokens


def _saved(nanoseconds: int, share: float) -> int:
    return int(nanoseconds * (1.0 - share))
