"""Predicting keys and values of tokens under a view from those that the same tokens have under others.

KVCOMM (arXiv 2510.12872) adds to an encoding the deviation that was seen of it elsewhere. Of the same tokens, the
encoding plus weighted deviations is the weighted mean of the true encodings, whatever they deviate from. So an *anchor*
is no copy: it is an encoding that the store has anyway, dense under its own view, and here only its surroundings are
kept. Deviations of other tokens are not used: they made things worse wherever it was measured (docs/fidelity.md).

What is predicted is used only where its error is known to be small: errors are measured on the pool, each anchor
predicted from the others, as the divergence of what a reader says (nats a token). Distances alone accept nothing.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from laban.kvstore.encodings import EncodingId, EncodingSpec, adapter_of, owner_of
from laban.kvstore.error_bounds import MIN_ERRORS, upper_bound
from laban.kvstore.message_slots import SlotErrors, SlotKey
from laban.kvstore.surroundings import Digests, Surroundings, distance

MAX_MIXED = 4
"""Anchors that one prediction is made from, at most."""
MAX_ANCHORS = 16
"""Of the same tokens."""
MAX_ERRORS = 32
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ANCHOR_BYTES = 600
PIECE_BYTES = 200
SLOTS_SHARE = 16
"""One part in so many of a tenant's bytes is for errors by slot."""

Tokens = tuple[str, str]
"""Whose they are (`owner_of`), and their digest with the adapter that encodes them."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """`start` is where its first token was encoded."""

    encoding_id: EncodingId
    start: int
    around: Surroundings

    @property
    def num_bytes(self) -> int:
        return ANCHOR_BYTES + PIECE_BYTES * len(self.around.pieces)


@dataclass(frozen=True, slots=True)
class Mix:
    """Anchors and their weights, which add up to 1, the largest first. `distance` is their weighted mean.

    `error` is the reader's expected divergence at most, in nats a token: 0 of the same tokens under the same view.
    With a `slot` the error is that of what is predicted there.
    """

    parts: tuple[tuple[Anchor, float], ...]
    distance: float
    error: float = math.inf
    slot: SlotKey | None = None


@dataclass(slots=True)
class _Known:
    """Of the same tokens. `gaps` are mean squared differences of the values of two anchors, by their ids in order."""

    anchors: OrderedDict[EncodingId, Anchor] = field(default_factory=OrderedDict)  # the longest unused first
    gaps: dict[tuple[EncodingId, EncodingId], float] = field(default_factory=dict)
    errors: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_ERRORS))  # distance, nats
    temperature: float = TEMPERATURES[0]

    @property
    def num_bytes(self) -> int:
        return sum(anchor.num_bytes for anchor in self.anchors.values())


class AnchorPool:
    """Anchors by the tokens that they encode. Owned by one thread; what is put in is in whole, or not at all.

    Of more than `tenant_bytes` (of what is kept here, not of keys and values) a tenant loses what it has not used for
    longest. 0 holds nothing, so that nothing is predicted.
    """

    def __init__(self, tenant_bytes: int = 8 << 20) -> None:
        self._tenant_bytes = tenant_bytes
        self._known: OrderedDict[Tokens, _Known] = OrderedDict()  # the longest unused first
        self._tokens_of: dict[EncodingId, Tokens] = {}
        self._bytes: dict[str, int] = {}  # by tenant
        self.digests = Digests()
        self.slots = SlotErrors(tenant_bytes // SLOTS_SHARE)

    @property
    def num_anchors(self) -> int:
        return len(self._tokens_of)

    @property
    def num_bytes(self) -> int:
        return sum(self._bytes.values()) + self.slots.num_bytes

    def __contains__(self, encoding_id: object) -> bool:
        return encoding_id in self._tokens_of

    def anchors(self, spec: EncodingSpec) -> list[Anchor]:
        """Of the spec's tokens and owner."""
        known = self._known.get(tokens_of(spec, self.digests))
        return [] if known is None else list(known.anchors.values())

    def add(self, spec: EncodingSpec, around: Surroundings, gaps: Mapping[EncodingId, float]) -> None:
        """`spec` is encoded densely now. `gaps` are its mean squared differences from other anchors of its tokens."""
        key, encoding_id = tokens_of(spec, self.digests), spec.encoding_id
        if encoding_id in self._tokens_of:
            return
        anchor = Anchor(encoding_id, spec.start, around)
        if anchor.num_bytes > self._tenant_bytes:
            return
        known = self._known.setdefault(key, _Known())
        self._known.move_to_end(key)
        known.anchors[encoding_id] = anchor
        known.gaps |= {_pair(encoding_id, other): gap for other, gap in gaps.items() if other in known.anchors}
        self._tokens_of[encoding_id] = key
        self._bytes[key[0]] = self._bytes.get(key[0], 0) + anchor.num_bytes
        if len(known.anchors) > MAX_ANCHORS:
            self.forget(next(iter(known.anchors)))
        while self._bytes[key[0]] > self._tenant_bytes:
            oldest = next(tokens for tokens in self._known if tokens[0] == key[0])
            self.forget(next(iter(self._known[oldest].anchors)))
        known.temperature = _fitted(known)

    def forget(self, encoding_id: EncodingId) -> None:
        """It is not to be used any more. With the last anchor goes what was learnt of its tokens."""
        key = self._tokens_of.pop(encoding_id, None)
        if key is None:
            return
        known = self._known[key]
        anchor = known.anchors.pop(encoding_id)
        known.gaps = {pair: gap for pair, gap in known.gaps.items() if encoding_id not in pair}
        self._bytes[key[0]] -= anchor.num_bytes
        if not self._bytes[key[0]]:
            del self._bytes[key[0]]
        if not known.anchors:
            del self._known[key]

    def predict(
        self,
        spec: EncodingSpec,
        around: Surroundings,
        usable: Callable[[EncodingId], bool],
        *,
        leave_out: bool = False,
    ) -> Mix | None:
        """The best mix for `spec` of the anchors that are `usable`, without a word on its error; None if there is none.

        With `leave_out` those under this very view do not count: what would be said if it had not been seen.
        """
        known = self._known.get(tokens_of(spec, self.digests))
        return None if known is None else _predicted(known, around, usable, leave_out)

    def choose(
        self, spec: EncodingSpec, around: Surroundings, tolerance: float, usable: Callable[[EncodingId], bool]
    ) -> Mix | None:
        """A mix for `spec` whose error is known to be at most `tolerance`; None: nothing is known to be so good."""
        key = tokens_of(spec, self.digests)
        known = self._known.get(key)
        mix = None if known is None else _predicted(known, around, usable)
        if known is None or mix is None:
            return None
        error = 0.0 if mix.distance == 0.0 else _bound(known, mix.distance)
        if error > tolerance:
            return None
        self._known.move_to_end(key)
        for anchor, _ in reversed(mix.parts):
            known.anchors.move_to_end(anchor.encoding_id)
        return Mix(mix.parts, mix.distance, error)

    def learn(self, spec: EncodingSpec, far: float, error: float) -> None:
        """A prediction of the spec's tokens from anchors at a distance `far` made a reader diverge by `error`."""
        known = self._known.get(tokens_of(spec, self.digests))
        if known is not None:
            known.errors.append((far, error))

    def bound(self, spec: EncodingSpec, far: float) -> float:
        """What a prediction from so `far` errs by at most, 19 times of 20; infinite while too little is known.

        Only errors made from as far or farther count.
        """
        known = self._known.get(tokens_of(spec, self.digests))
        return math.inf if known is None else _bound(known, far)

    def check_integrity(self) -> None:
        """Raises AssertionError if the books do not agree."""
        by_tenant: dict[str, int] = {}
        listed: dict[EncodingId, Tokens] = {}
        for key, known in self._known.items():
            assert 0 < len(known.anchors) <= MAX_ANCHORS, key
            assert len(known.errors) <= MAX_ERRORS, key
            assert {i for pair in known.gaps for i in pair} <= set(known.anchors), key
            by_tenant[key[0]] = by_tenant.get(key[0], 0) + known.num_bytes
            for encoding_id, anchor in known.anchors.items():
                assert anchor.encoding_id == encoding_id
                assert encoding_id not in listed, encoding_id
                listed[encoding_id] = key
        assert listed == self._tokens_of
        assert by_tenant == self._bytes
        assert all(num_bytes <= self._tenant_bytes for num_bytes in by_tenant.values())


def tokens_of(spec: EncodingSpec, digests: Digests) -> Tokens:
    return owner_of(spec.namespace), digests.of(spec) + adapter_of(spec.namespace)


def _predicted(
    known: _Known, around: Surroundings, usable: Callable[[EncodingId], bool], leave_out: bool = False
) -> Mix | None:
    there = [anchor for anchor in known.anchors.values() if usable(anchor.encoding_id)]
    found = [(distance(around, anchor.around), anchor) for anchor in there]
    if leave_out:
        found = [each for each in found if each[0] > 0.0]
    if not found:
        return None
    found.sort(key=lambda each: (each[0], each[1].encoding_id))
    weights = _weights([far for far, _ in found[:MAX_MIXED]], known.temperature)
    parts = tuple((anchor, weight) for (_, anchor), weight in zip(found, weights, strict=False))
    return Mix(parts, sum(far * weight for (far, _), weight in zip(found, weights, strict=False)))


def _bound(known: _Known, far: float) -> float:
    return upper_bound(error for distance, error in known.errors if distance >= far - 1e-9)


def _pair(one: EncodingId, other: EncodingId) -> tuple[EncodingId, EncodingId]:
    return (one, other) if one < other else (other, one)


def _weights(distances: list[float], temperature: float) -> list[float]:
    """Of distances in ascending order. What is at none takes all, however many there are."""
    if distances[0] == 0.0:
        return [1.0]
    raw = [math.exp((distances[0] - each) / temperature) for each in distances]
    return [each / sum(raw) for each in raw]


def _fitted(known: _Known) -> float:
    """The temperature at which anchors are predicted best from the others, by their values.

    The squared error of a mean of values v_j from v is sum w_j |v_j - v|^2 - sum w_j w_k |v_j - v_k|^2 / 2.
    """
    names = list(known.anchors)
    if len(names) < MIN_ERRORS:
        return known.temperature

    def gap(one: EncodingId, other: EncodingId) -> float | None:
        return 0.0 if one == other else known.gaps.get(_pair(one, other))

    def error(name: EncodingId, temperature: float) -> float:
        around = known.anchors[name].around
        others = [(distance(around, known.anchors[j].around), j) for j in names if gap(name, j) is not None]
        near = sorted(each for each in others if each[1] != name)[:MAX_MIXED]
        if not near:
            return 0.0
        mixed = list(zip(_weights([far for far, _ in near], temperature), (j for _, j in near), strict=False))
        spread = sum(w * x * (gap(j, k) or 0.0) for w, j in mixed for x, k in mixed)
        return sum(w * (gap(name, j) or 0.0) for w, j in mixed) - spread / 2

    return min(TEMPERATURES, key=lambda each: sum(error(name, each) for name in names))
