"""How much of what an admitted call reads is reused, and where that comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from laban.actors.engine.planning import Plan
from laban.actors.engine.tiers import Way
from laban.kvstore.encodings import EncodingId


@dataclass(frozen=True, slots=True)
class Reuse:
    """In tokens. `num_encoded` of what the device lacks are computed. Of those that the view places `num_reused` are
    not; of these `num_found` were on the device and `num_loaded` come from the host, and the rest is predicted."""

    num_encoded: int
    num_reused: int
    num_found: int
    num_loaded: int


def reuse_of(plan: Plan, brought: Mapping[EncodingId, int]) -> Reuse:
    """`brought` says, of each encoding that the plan has as missing, how many of its first tokens are not encoded: what
    is encoded may begin as another that the device has."""
    ways = {spec.encoding_id: way for spec, way in plan.missing}
    found = loaded = predicted = 0
    for placed in plan.view:
        way = ways.get(placed.encoding_id)
        if way is None:
            found += placed.num_tokens
            continue
        there = max(0, min(placed.end, brought[placed.encoding_id]) - placed.begin)
        if way is Way.ENCODE:
            found += there
        elif way is Way.CORRECT:
            predicted += there
        else:
            loaded += there
    encoded = sum(spec.num_tokens - brought[spec.encoding_id] for spec, _ in plan.missing)
    return Reuse(encoded, found + loaded + predicted, found, loaded)
