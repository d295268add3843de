"""The nodes and gates of the step graph, out of what its steps, blocks and loops were understood to mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from laban.cluster.workflow.blocks import Condition, Guard, Layout, LoopPlace, Placed, condition_unit
from laban.cluster.workflow.fidelity import Fidelity
from laban.cluster.workflow.graph import (
    Bound,
    Gate,
    GateUse,
    LoopNode,
    Node,
    Source,
    asked_unit,
    until_unit,
    when_unit,
)
from laban.cluster.workflow.models import adapter_of, model_of
from laban.cluster.workflow.resolve import Selection, Shape
from laban.cluster.workflow.schema import Workflow
from laban.cluster.workflow.sources import (
    Entry,
    Meant,
    Reader,
    Scope,
    bound_to,
    chosen_source,
    own_names,
    sources_of,
    waits_of,
)


@dataclass(frozen=True, slots=True)
class Understood:
    """Everything that one step says about other steps."""

    placed: Placed
    entries: list[Entry]
    when: Meant | None
    arguments: Mapping[str, object]  # a Meant, or a plain value
    bindings: Mapping[str, Selection | str]  # a Selection, or a fixed message's name

    def selections(self) -> Iterator[Selection | None]:
        """All that each instance looks up, None for one message."""
        yield from (entry.chosen for entry in self.entries)
        meant = [self.when, *self.arguments.values(), *(entry.order for entry in self.entries)]
        yield from (chosen for each in meant if isinstance(each, Meant) for chosen in each.selections())
        yield from (None if isinstance(chosen, str) else chosen for chosen in self.bindings.values())


def understand_step(scope: Scope, placed: Placed) -> Understood:
    """Adds to the scope's problems whatever is wrong."""
    step, loc, reader = placed.step, placed.loc, scope.shapes.get(placed.step.step)
    if reader is None:
        return Understood(placed, [], None, {}, {})
    own = own_names(placed)
    entries = scope.entries(placed)
    when = None if step.when is None else scope.mean(step.when, reader, (*loc, "when"), own)
    given = step.external.args if step.external is not None else step.inputs
    path = (*loc, "external", "args") if step.external is not None else (*loc, "inputs")
    if isinstance(step.choices, str):
        given, path = {"choices": step.choices}, loc
    arguments = {
        name: scope.mean(value, reader, (*path, name), own) if isinstance(value, str) else value
        for name, value in given.items()
    }
    bindings: dict[str, Selection | str] = {}
    for name, message in step.messages.items():
        chosen = scope.understand(message.read, reader, (*loc, "messages", name, "read"))
        bindings[name] = message.read.strip() if chosen is None else chosen
    return Understood(placed, entries, when, arguments, bindings)


@dataclass(frozen=True, slots=True)
class Builder:
    """Makes nodes and gates. `values` are those of the inputs that are known."""

    workflow: Workflow
    layout: Layout
    shapes: Mapping[str, Shape]
    values: Mapping[str, object]
    fidelity: Fidelity | None

    def nodes(self, understood: Understood) -> Iterator[tuple[Node, list[Gate]]]:
        """The instances of one step, round by round, each with the gates of its own."""
        step, shape = understood.placed.step, self.shapes[understood.placed.step.step]
        shared: dict[tuple[str, ...], tuple[str, ...]] = {}
        for round_ in range(1, shape.rounds + 1) if shape.rounds else (None,):
            for place, member in enumerate(shape.members if shape.members is not None else (None,), start=1):
                agent = member if isinstance(member, str) else step.agent
                own = self._own(understood.placed, agent, None if member is None else place, round_)
                reader = Reader(member, agent, round_, own)
                found = sources_of(self.workflow, step, understood.entries, reader, self.fidelity)
                sources = tuple(_share(source, shared) for source in found)
                bindings = {n: self._binding(chosen, reader) for n, chosen in understood.bindings.items()}
                arguments = {
                    name: bound_to(value, reader) if isinstance(value, Meant) else value
                    for name, value in understood.arguments.items()
                }
                asked = tuple(unit for value in arguments.values() if isinstance(value, Bound) for unit in value.waits)
                orders = (source.order.waits for source in sources if source.order is not None)
                asked = tuple(dict.fromkeys((*asked, *chain.from_iterable(orders))))
                waits = waits_of((*sources, *bindings.values()))
                if step.join.at_least is None:
                    waits = tuple(dict.fromkeys((*waits, *asked)))
                waits = shared.setdefault(waits, waits)
                needed = len(waits) if step.join.at_least is None else min(step.join.at_least, len(waits))
                address = shape.address(member, round_)
                gates = self._gates(understood.placed.guards, understood.placed.loop, round_)
                own_gates = []
                if understood.when is not None:
                    bound = bound_to(understood.when, reader)
                    own_gates.append(Gate(when_unit(address), bound, bound.waits, gates))
                    gates = (*gates, GateUse(when_unit(address), True))
                if step.join.at_least is not None and asked:
                    # A join on some of the reads is still one on all that expressions look at.
                    own_gates.append(Gate(asked_unit(address), None, asked, gates, asked))
                    gates = (*gates, GateUse(asked_unit(address), False))
                index, cancels = None if member is None else place, step.join.rest == "cancel"
                node = Node(
                    address, step, understood.placed.loc, agent, member, index, round_, (*sources, *bindings.values()),
                    waits, needed, cancels, gates, own, arguments, bindings, model_of(self.workflow, step, agent),
                    adapter_of(self.workflow, step, agent),
                )  # fmt: skip
                yield node, own_gates

    def conditions(self, condition: Condition, meant: Meant) -> Iterator[Gate]:
        """The gates of a block's `when`: one, or in a loop one a round."""
        for round_ in self._rounds(condition.loop):
            reader = Reader(round=round_, own={} if round_ is None else {"round": round_})
            bound = bound_to(meant, reader)
            gates = self._gates(condition.guards, condition.loop, round_)
            yield Gate(condition_unit(condition, round_), bound, bound.waits, gates)

    def untils(self, place: LoopPlace, meant: Meant | None, members: Mapping[int, Sequence[str]]) -> Iterator[Gate]:
        """The gates of a loop, one for each round; `members` are the instances of each."""
        for round_ in range(1, place.loop.max + 1):
            bound = None if meant is None else bound_to(meant, Reader(round=round_, own={"round": round_}))
            waits = tuple(dict.fromkeys((*members.get(round_, ()), *(() if bound is None else bound.waits))))
            yield Gate(until_unit(place.name, round_), bound, waits, self._gates(place.guards, place.name, round_))

    def loop_node(self, place: LoopPlace) -> LoopNode:
        units = tuple(until_unit(place.name, round_) for round_ in range(1, place.loop.max + 1))
        return LoopNode(place.name, units, place.loop.on_max == "fail", place.loc)

    def _rounds(self, loop: str | None) -> Sequence[int | None]:
        return (None,) if loop is None else range(1, self.layout.loops[loop].loop.max + 1)

    def _gates(self, guards: Sequence[Guard], loop: str | None, round_: int | None) -> tuple[GateUse, ...]:
        """What must be decided before something in this round may run: the blocks around it, and the round before."""
        conditions = self.layout.conditions
        units = [GateUse(condition_unit(conditions[g.condition], round_), g.holds) for g in guards]
        if loop is not None and round_ is not None and round_ > 1:
            units.append(GateUse(until_unit(loop, round_ - 1), False))
        return tuple(units)

    def _binding(self, chosen: Selection | str, reader: Reader) -> Source:
        if isinstance(chosen, str):
            return Source((chosen,), "exact", fixed=True)
        return chosen_source(chosen, reader, "exact")

    def _own(self, placed: Placed, agent: str | None, index: int | None, round_: int | None) -> dict[str, object]:
        """`step`, and where they mean something `agent`, `index` (the member's number, from 1), `item`, `round`."""
        own: dict[str, object] = {"step": placed.step.step}
        if agent is not None:
            own["agent"] = agent
        if index is not None:
            own["index"] = index
            name = placed.step.for_each.input if placed.step.for_each is not None else None
            items = None if name is None else self.values.get(name)
            if isinstance(items, list | tuple):
                own["item"] = items[index - 1]
        if round_ is not None:
            own["round"] = round_
        return own


def _share(source: Source, shared: dict[tuple[str, ...], tuple[str, ...]]) -> Source:
    """Equal selections of many instances are one tuple."""
    keys = shared.setdefault(source.keys, source.keys)
    return replace(source, keys=keys, waits=shared.setdefault(source.waits, source.waits))
