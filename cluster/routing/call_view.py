"""What one call needs, in the form that workers are compared by: made once a call, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from laban.actors.calls import Call
from laban.kvstore.encodings import EncodingId, EncodingSpec, View, flatten, make_spec

MAX_SUCCESSORS = 32
"""Encodings that later calls may read, of those that this one does not: the newest are looked at, no more."""


class Need(NamedTuple):
    """An encoding that the call may need. `context` has a bit for each need that must be there to encode it."""

    encoding_id: EncodingId
    num_tokens: int
    context: int
    num_read: int  # tokens of it that the call's own view places


@dataclass(frozen=True, slots=True)
class CallView:
    """`needs` come after all that they depend on; sets of them are integers, with bit i for the i-th.

    `wanted` must be there when the call runs. Of the others some must be, too, if what depends on them has to be
    encoded. `own_tokens` are encoded wherever it goes; those of a prefill are none, since what it makes is a need of
    its own: the last one. `successors` are what else of its workflow later calls will read, with the tokens of each;
    unless `foreseen` that is but a guess.
    """

    call_id: str
    family: str  # the workflow or session that it is of
    rank: int
    needs: tuple[Need, ...]
    wanted: int
    own_tokens: int
    output_tokens: int  # of the message that it makes, at most
    tokens_read: int
    successors: tuple[tuple[EncodingId, int], ...] = ()
    foreseen: bool = False
    reads: tuple[int, ...] = field(init=False)  # the places of the wanted needs

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", tuple(bits(self.wanted)))

    def tokens_of(self, needs: int) -> int:
        """Of a set of needs."""
        return sum([self.needs[at].num_tokens for at in bits(needs)])


def view_call(
    call: Call,
    successors: Mapping[EncodingId, int] | None = None,
    family: Mapping[EncodingId, EncodingSpec] | None = None,
) -> CallView:
    """`successors` are the tokens of what later calls will read; where nobody knows, the newest of `family` are taken.

    KeyError for a view that names unknown specs.
    """
    specs = {spec.encoding_id: spec for spec in call.specs}
    read: dict[EncodingId, int] = {}
    for placement in flatten(call.view, specs):
        read[placement.encoding_id] = read.get(placement.encoding_id, 0) + placement.num_tokens
    contexts = _Contexts()
    needs = [contexts.need(spec, read.get(spec.encoding_id, 0)) for spec in call.specs]
    wanted = contexts.of(call.view)
    own_tokens = output_tokens = len(call.tokens)
    if call.sampling is None and call.tokens:  # without tokens it is a call to come, of which only the view is known
        made = make_spec(call.namespace, call.tokens, call.start, call.view, specs)
        needs.append(Need(made.encoding_id, own_tokens, wanted, 0))
        wanted, own_tokens = 1 << len(needs) - 1, 0
    elif call.sampling is not None:
        output_tokens += call.sampling.most_tokens + len(call.terminator)
    foreseen = successors is not None
    if successors is None:
        successors = _newest(family or {}, specs)
    return CallView(
        call_id=call.call_id,
        family=family_of(call.call_id),
        rank=call.rank,
        needs=tuple(needs),
        wanted=wanted,
        own_tokens=own_tokens,
        output_tokens=output_tokens,
        tokens_read=sum(read.values()),
        successors=tuple(item for item in successors.items() if item[0] not in specs)[:MAX_SUCCESSORS],
        foreseen=foreseen,
    )


def view_encoding(call_id: str, specs: Sequence[EncodingSpec]) -> CallView:
    """Having the last of `specs` on the device, and no more. The others are all that it depends on, each after its own
    dependencies."""
    contexts = _Contexts()
    needs = tuple(contexts.need(spec, 0) for spec in specs)
    wanted = 1 << len(needs) - 1
    return CallView(call_id, family_of(call_id), 0, needs, wanted, 0, 0, 0)


def family_of(call_id: str) -> str:
    """The workflow or session of a call, by the name of its call.

    >>> family_of("wf-1/answer[bob]#2")
    'wf-1'
    """
    return call_id.partition("/")[0]


def bits(mask: int) -> list[int]:
    """
    >>> bits(0b10110)
    [1, 2, 4]
    """
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


class _Contexts:
    """Of specs, each told of after what it depends on."""

    def __init__(self) -> None:
        self._places: dict[EncodingId, int] = {}
        self._contexts: list[int] = []

    def need(self, spec: EncodingSpec, num_read: int) -> Need:
        context = self.of(spec.view)
        self._places[spec.encoding_id] = len(self._contexts)
        self._contexts.append(context)
        return Need(spec.encoding_id, spec.num_tokens, context, num_read)

    def of(self, view: View) -> int:
        """A prefix stands for its whole chain, a placement for itself alone."""
        mask = 0
        if view.prefix_id is not None:
            at = self._places[view.prefix_id]
            mask = self._contexts[at] | 1 << at
        for placement in view.placements:
            mask |= 1 << self._places[placement.encoding_id]
        return mask


def _newest(
    family: Mapping[EncodingId, EncodingSpec], known: Mapping[EncodingId, EncodingSpec]
) -> dict[EncodingId, int]:
    newest: dict[EncodingId, int] = {}
    for encoding_id in reversed(list(family)):
        if encoding_id not in known:
            newest[encoding_id] = family[encoding_id].num_tokens
            if len(newest) == MAX_SUCCESSORS:
                break
    return newest
