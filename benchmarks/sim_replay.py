"""Calls recorded by a cluster (`routing.record`), as flows that the simulator runs again."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sim_flows import Flow, Message, Step, Workload

from laban.actors.errors import InvalidInput
from laban.cluster.routing.recorder import RecordedCall, read_calls


@dataclass(frozen=True, slots=True)
class _Kept:
    """A call that made something, and how long its line has been there: the file is in the order of their ends."""

    call: RecordedCall
    end_s: float


def replay(path: str | Path) -> Workload:
    """A flow for each source (a workflow or session): its calls, each after those whose messages it reads.

    A call waits as long after the last of these, or after its source's first call, as it was ordered late: for a tool,
    a person, or its author's code. What a call was given whole (it generated nothing) is no step: whoever reads it
    first encodes it. So is what another source made: it is there from the beginning. Failed calls are left out, the
    attempt that succeeded is not. A source that announced uses has declared all its steps.

    Raises NotFound or InvalidInput as `read_calls` does, and InvalidInput for a recording of nothing.
    """
    kept: dict[str, list[_Kept]] = defaultdict(list)
    given: dict[str, RecordedCall] = {}
    made_by: dict[str, str] = {}
    announced: set[str] = set()
    for call in read_calls(path):
        if call.uses:
            announced.add(call.source)
        if call.error:
            continue
        if not call.num_generated:
            given.setdefault(call.encoding_id, call)
        else:
            made_by.setdefault(call.encoding_id, call.source)
            kept[call.source].append(_Kept(call, call.ordered_at + (call.waited_ms + call.wall_ms) / 1000))
    if not kept:
        raise InvalidInput("no call that generated anything", field="recording", value=str(path))
    known = _Messages(given, made_by)
    for calls in kept.values():
        calls.sort(key=lambda each: each.call.ordered_at)
    first_s = min(calls[0].call.ordered_at for calls in kept.values())
    flows = [_flow(source, calls, known, first_s, source in announced) for source, calls in kept.items()]
    return Workload("replay", tuple(sorted(flows, key=lambda flow: flow.arrive_s)))


class _Messages:
    """One for each encoding, and another for those who read what another source made: to them it is there."""

    def __init__(self, given: dict[str, RecordedCall], made_by: dict[str, str]) -> None:
        self._given, self._made_by = given, made_by
        self._own: dict[str, Message] = {}
        self._others: dict[str, Message] = {}

    def made(self, call: RecordedCall) -> Message:
        found = self._own.get(call.encoding_id)
        if found is None:
            needs = tuple(self.read(each.encoding_id, each.num_tokens, call.source) for each in call.reads)
            tokens = call.num_tokens + call.num_generated
            found = self._own[call.encoding_id] = Message(call.encoding_id, tokens, needs=needs)
        return found

    def read(self, name: str, num_tokens: int, source: str) -> Message:
        """As `source` sees it."""
        if self._made_by.get(name) == source and name in self._own:
            return self._own[name]
        found = self._others.get(name)
        if found is None:
            reads = () if name not in self._given else self._given[name].reads
            needs = tuple(self.read(each.encoding_id, each.num_tokens, source) for each in reads)
            found = self._others[name] = Message(name, max(1, num_tokens), fixed=True, needs=needs)
        return found


def _flow(source: str, calls: list[_Kept], known: _Messages, first_s: float, declared: bool) -> Flow:
    steps: list[Step] = []
    made_at: dict[str, int] = {}
    begin_s = calls[0].call.ordered_at
    for number, each in enumerate(calls):
        call = each.call
        reads = tuple({r.encoding_id: known.read(r.encoding_id, r.num_tokens, source) for r in call.reads}.values())
        after = tuple(sorted({made_at[read.name] for read in reads if read.name in made_at}))
        ready_s = max((calls[before].end_s for before in after), default=begin_s)
        steps.append(
            Step(
                kind=call.address.partition("[")[0],
                reads=reads,
                new_tokens=max(1, call.num_tokens),
                output_tokens=call.num_generated,
                output=known.made(call),
                after=after,
                wait_s=max(0.0, call.ordered_at - ready_s),
            )
        )
        made_at.setdefault(call.encoding_id, number)
    return Flow(source, tuple(steps), begin_s - first_s, declared)
