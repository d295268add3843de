"""What a worker knows of when its encodings are needed, and by that the order in which they go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from laban.kvstore.encodings import EncodingId, EncodingSpec
from laban.kvstore.eviction import Evictable, EvictionPolicy
from laban.kvstore.store import Entry
from laban.kvstore.uses import Use

FORGET_AFTER_S = 3600.0
"""A use that is overdue by so much is forgotten: whoever announced it may be gone."""
MAX_USES = 1_000_000
SPARE_PINS = 64
"""So many pins whose time is over are kept among the others before they are looked for."""
NEVER_S = float("-inf")
"""The last use of what was not used yet."""


class Needs:
    """The next use of each encoding and what is pinned, on the clock of `now_s`, which its owner moves."""

    def __init__(self, policy: EvictionPolicy, bytes_per_token: int) -> None:
        self.policy = policy
        self.bytes_per_token = bytes_per_token
        self.now_s = 0.0
        self._uses: dict[EncodingId, Use] = {}  # `in_s` on our clock
        self._withdrawn: dict[EncodingId, bool] = {}  # nobody will read them; whether a run said it read them last
        self._returns: dict[EncodingId, tuple[int, float]] = {}  # uses after that, and when it first was so
        self._pinned_until_s: dict[EncodingId, float] = {}
        self._most_pins = SPARE_PINS

    def take_uses(self, uses: Iterable[tuple[EncodingId, Use | None]]) -> None:
        for encoding_id, use in uses:
            before = self._uses.pop(encoding_id, None)  # the latest news last
            if use is None:
                if before is not None:
                    self._withdraw(encoding_id)
            else:
                if self._withdrawn.pop(encoding_id, None) is not None:
                    self._count_return(encoding_id)
                self._uses[encoding_id] = replace(use, in_s=self.now_s + use.in_s)
        self._bound()

    def take_over(self, encoding_ids: Iterable[EncodingId]) -> None:
        """A run has read these for the last time. Each run says so once: where one had said so before, and nobody was
        known to come back, the second one has."""
        for encoding_id in encoding_ids:
            if encoding_id in self._uses:
                continue
            if encoding_id not in self._withdrawn:
                self._withdraw(encoding_id)
            elif self._withdrawn[encoding_id]:
                self._count_return(encoding_id)
            self._withdrawn[encoding_id] = True
        self._bound()

    def _withdraw(self, encoding_id: EncodingId) -> None:
        self._withdrawn[encoding_id] = False
        self._returns.setdefault(encoding_id, (0, self.now_s))

    def _count_return(self, encoding_id: EncodingId) -> None:
        num_returns, since_s = self._returns.pop(encoding_id, (0, self.now_s))
        self._returns[encoding_id] = num_returns + 1, since_s

    def _bound(self) -> None:
        for known in (self._uses, self._withdrawn, self._returns):
            while len(known) > MAX_USES:
                del known[next(iter(known))]

    def take_pins(self, pins: Iterable[tuple[EncodingId, float]]) -> None:
        """Each for so many seconds from now; 0 lets go."""
        pinned = self._pinned_until_s
        for encoding_id, seconds in pins:
            if seconds > 0:
                pinned[encoding_id] = self.now_s + seconds
            else:
                pinned.pop(encoding_id, None)
        if len(pinned) > self._most_pins:  # nobody may ask for those that are not here
            self._pinned_until_s = {i: until_s for i, until_s in pinned.items() if until_s > self.now_s}
            self._most_pins = 2 * len(self._pinned_until_s) + SPARE_PINS

    def use(self, encoding_id: EncodingId) -> Use | None:
        """Its `in_s` is on our clock."""
        use = self._uses.get(encoding_id)
        if use is not None and self.now_s - use.in_s > FORGET_AFTER_S:
            del self._uses[encoding_id]
            return None
        return use

    def is_pinned(self, encoding_id: EncodingId) -> bool:
        until_s = self._pinned_until_s.get(encoding_id)
        if until_s is not None and until_s <= self.now_s:
            del self._pinned_until_s[encoding_id]
            until_s = None
        return until_s is not None

    def order_of(
        self,
        encoding_id: EncodingId,
        num_tokens: int,
        last_use_s: float,
        bring_back_s: float,
        there_s: float = NEVER_S,
    ) -> tuple[float, ...]:
        """The sort key by which it leaves its tier: what is pinned after all else, then as the policy has it. A read
        before `there_s`, when it will be there, gains nothing by it."""
        use = self.use(encoding_id)
        num_returns, since_s = self._returns.get(encoding_id, (0, 0.0))
        item = Evictable(
            encoding_id=encoding_id,
            num_tokens=num_tokens,
            num_bytes=max(1, num_tokens * self.bytes_per_token),
            last_use_s=last_use_s,
            next_use_s=None if use is None else max(use.in_s, there_s),
            steps=None if use is None else use.steps,
            likelihood=0.0 if use is None else use.likelihood,
            fixed=use is not None and use.fixed,
            bring_back_s=bring_back_s,
            withdrawn=use is None and encoding_id in self._withdrawn,
            num_returns=num_returns,
            since_s=since_s,
        )
        return (float(self.is_pinned(encoding_id)), *self.policy.key(item, self.now_s))

    def order(self, bring_back_s: Callable[[Entry], float]) -> Callable[[Entry], tuple[float, ...]]:
        """The order of a tier's entries, for a store."""
        return lambda entry: self.order_of(
            entry.key, entry.num_tokens or entry.capacity, entry.last_use_s, bring_back_s(entry)
        )

    def worth_bringing(
        self, encoding_id: EncodingId, num_tokens: int, bring_back_s: float, bring_s: float
    ) -> tuple[float, ...]:
        """The key of what nobody has asked for and would be here in `bring_s`, next to those of `order_beside`."""
        return self.order_of(encoding_id, num_tokens, NEVER_S, bring_back_s, self.now_s + bring_s)

    def order_beside(self, bring_back_s: Callable[[Entry], float]) -> Callable[[Entry], tuple[float, ...]]:
        """The order of a tier's entries as what is to be brought ahead is held against them.

        How long ago something was used says how far off its announced use may be. Of what is not here yet that is not
        known, which would make it seem the surer: of two that are needed at once each would drive out the other. So
        the last use counts for neither, unless nobody announced a next one (do no harm: Cao et al., SIGMETRICS 1995).
        """

        def key(entry: Entry) -> tuple[float, ...]:
            last_use_s = entry.last_use_s if self.use(entry.key) is None else NEVER_S
            return self.order_of(entry.key, entry.num_tokens or entry.capacity, last_use_s, bring_back_s(entry))

        return key


def encode_tokens(spec: EncodingSpec, is_there: Callable[[EncodingId], bool]) -> int:
    """Tokens to encode to have `spec` again: its own, and those that it attends to and that are gone, too."""
    tokens = spec.num_tokens
    if spec.view.prefix_id is not None and not is_there(spec.view.prefix_id):
        tokens += spec.start  # of a prefix without placements exactly what its chain holds, as far as it is gone
    return tokens + sum(p.num_tokens for p in spec.view.placements if not is_there(p.encoding_id))
