"""What has to be done before a call can run: which encodings of its view the device lacks, and how each is had."""

from __future__ import annotations

from collections.abc import Collection, Container
from dataclasses import dataclass
from zlib import crc32

from laban.actors.calls import Call, Source
from laban.actors.engine.corrections import Corrections
from laban.actors.engine.tiers import Tiers, Way
from laban.actors.engine.waiting import Waiting
from laban.kvstore.anchors import Mix
from laban.kvstore.encodings import EncodingId, EncodingSpec, Placement, flatten, make_spec
from laban.kvstore.store import EncodingStore

MEASURED = 32
"""Of so many of a step's calls one is encoded whatever is known, so that errors go on being found."""
NEEDS_ITS_VIEW = (Way.ENCODE, Way.MIX, Way.RESUME)
"""Ways that compute some of the encoding, and so need what it reads on the device."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`missing` in an order in which each comes after those it reads. `target` is what a prefill is to encode.

    `kept` names what must not be evicted to make room. `awaits` are on their way to the host: nothing can be done
    before they are there. `mixes` say how what is corrected is predicted.
    """

    specs: dict[EncodingId, EncodingSpec]
    view: list[Placement]
    target: EncodingSpec | None
    missing: list[tuple[EncodingSpec, Way]]
    kept: dict[EncodingId, None]
    awaits: set[EncodingId]
    mixes: dict[EncodingId, Mix]


def plan_call(waiting: Waiting, store: EncodingStore, tiers: Tiers, corrections: Corrections | None) -> Plan:
    """May begin arrivals from disk and other workers. Without `corrections` nothing is predicted."""
    call = waiting.call
    specs = {spec.encoding_id: spec for spec in call.specs}
    view = flatten(call.view, specs)
    ordered = call.specs
    target = target_of(call, specs)
    if target is None:
        needed = {p.encoding_id for p in view}
    else:  # where the answer is there, its view is not needed
        needed = {target.encoding_id}
        ordered = (*ordered, target)
        specs[target.encoding_id] = target
    mixes = {} if corrections is None or is_measured(call) else predicted(call, ordered, specs, store, corrections)
    missing, awaits = ways_to_have(
        needed, ordered, specs, store, tiers, sources=call.sources, refused=waiting.refused, mixes=mixes
    )
    reading = [spec for spec, way in missing if way in NEEDS_ITS_VIEW]
    # In an order of their own: pins date last uses, which all shards of a worker must have alike.
    kept = dict.fromkeys(p.encoding_id for spec in reading for p in flatten(spec.view, specs))
    kept |= dict.fromkeys([target.encoding_id] if target else [p.encoding_id for p in view])
    mixes = {spec.encoding_id: mixes[spec.encoding_id] for spec, way in missing if way is Way.CORRECT}
    kept |= dict.fromkeys(anchor.encoding_id for mix in mixes.values() for anchor, _ in mix.parts)
    return Plan(specs, view, target, missing, kept, awaits, mixes)


def is_measured(call: Call) -> bool:
    """Whether nothing is predicted for it. By its id: the same however often it is planned. Never where distributions
    are compared: that is how an audit asks what predicting changes, and nothing is learnt of it."""
    if not (call.kind and call.slots) or call.spare or call.scoring is not None:
        return False
    return crc32(call.call_id.encode()) % MEASURED == 0


def predicted(
    call: Call,
    ordered: tuple[EncodingSpec, ...],
    specs: dict[EncodingId, EncodingSpec],
    store: EncodingStore,
    corrections: Corrections,
) -> dict[EncodingId, Mix]:
    """How those that the device lacks can be predicted, of all that may be.

    Errors in one view add up, and no read may see more of them than its tolerance. So those go first that err by the
    least a token.
    """
    offered: dict[EncodingId, Mix] = {}
    for spec in ordered:
        if spec.tolerance and spec.encoding_id not in store:
            mix = corrections.choose(spec, specs, call)
            if mix is not None:
                offered[spec.encoding_id] = mix
    if len(offered) < 2:
        return offered
    spent = {name: corrections.spent(specs[name], specs) for name in offered}
    after: dict[EncodingId, list[EncodingId]] = {name: [] for name in offered}  # that read it
    for name in offered:
        for placed in flatten(specs[name].view, specs):
            if placed.encoding_id in after:
                after[placed.encoding_id].append(name)
    chosen: dict[EncodingId, Mix] = {}
    for name in sorted(offered, key=lambda each: offered[each].error / specs[each].num_tokens):
        error = offered[name].error
        sees = {name: spent[name] + error} | {
            each: spent[each] + chosen[each].error + error for each in after[name] if each in chosen
        }
        if all(seen <= specs[each].tolerance for each, seen in sees.items()):
            chosen[name] = offered[name]
            for each in after[name]:
                spent[each] += error
    return chosen


def target_of(call: Call, specs: dict[EncodingId, EncodingSpec]) -> EncodingSpec | None:
    if call.sampling is not None:
        return None
    return make_spec(call.namespace, call.tokens, call.start, call.view, specs)


def ways_to_have(
    needed: set[EncodingId],
    ordered: tuple[EncodingSpec, ...],
    specs: dict[EncodingId, EncodingSpec],
    store: EncodingStore,
    tiers: Tiers,
    *,
    sources: tuple[Source, ...] = (),
    refused: Collection[object] = (),
    wanted: bool = True,
    mixes: Container[EncodingId] = (),
) -> tuple[list[tuple[EncodingSpec, Way]], set[EncodingId]]:
    """How each of `needed` and all that takes is had, and what is waited for. `needed` grows. `mixes` can be predicted.

    Not `wanted`, nothing that is worth more has to make room for it.
    """
    ways: dict[EncodingId, Way] = {}
    for spec in reversed(ordered):
        if spec.encoding_id not in needed or spec.encoding_id in store or spec.encoding_id in ways:
            continue
        way = tiers.way(spec, sources, refused, wanted=wanted, kept=needed)
        if way is Way.MIX and any(p.encoding_id not in store for p in flatten(spec.view, specs)):
            way = Way.LOAD  # its head cannot be encoded with what is there
        if way is Way.ENCODE and spec.encoding_id in mixes:
            way = Way.CORRECT
        ways[spec.encoding_id] = way
        if way in NEEDS_ITS_VIEW:
            needed.update(p.encoding_id for p in flatten(spec.view, specs))
    missing = [(spec, ways.pop(spec.encoding_id)) for spec in ordered if spec.encoding_id in ways]
    return missing, {spec.encoding_id for spec, way in missing if way is Way.WAIT}
