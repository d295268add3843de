"""Random step graphs with joins, votes, branches and loops, and runs of them moved by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import assume, event
from hypothesis import strategies as st

from laban.cluster.workflow.build import build_graph
from laban.cluster.workflow.diagnostics import WorkflowErrors
from laban.cluster.workflow.graph import Gate, GateUse, StepGraph
from laban.cluster.workflow.parse import parse_dict
from laban.cluster.workflow.progress import Progress
from laban.cluster.workflow.states import Tally


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, Any]:
    """Two to seven entries: steps with joins, rounds, votes and `when`; blocks with `otherwise`; loops."""
    names: dict[str, dict[str, Any]] = {}
    entries = [draw(_entry(names)) for _ in range(draw(st.integers(2, 5)))]
    entries.append(draw(_step(names)))
    return {"version": 1, "name": "random", "messages": {"m": "hello"}, "agents": {"ann": {}}, "steps": entries}


@st.composite
def _entry(draw: st.DrawFn, names: dict[str, dict[str, Any]], inside: bool = False) -> dict[str, Any]:
    kind = draw(st.sampled_from(["step", "step", "when"] if inside else ["step", "step", "step", "when", "loop"]))
    if kind == "step":
        return draw(_step(names, inside))
    if kind == "when":
        block = {"when": draw(_condition(names)), "steps": draw(_entries(names, inside))}
        return block | ({"otherwise": draw(_entries(names, inside))} if draw(st.booleans()) else {})
    loop: dict[str, Any] = {"max": draw(st.integers(1, 3))}
    block: dict[str, Any] = {"loop": loop}
    if not draw(st.integers(0, 3)):
        block["when"] = draw(_condition(names))
    block["steps"] = draw(_entries(names, True))
    if draw(st.integers(0, 3)):
        loop["until"] = draw(_condition(names))
        loop["on_max"] = draw(st.sampled_from(["continue", "continue", "fail"]))
    return block


@st.composite
def _entries(draw: st.DrawFn, names: dict[str, dict[str, Any]], inside: bool) -> list[dict[str, Any]]:
    steps = [draw(_step(names, inside)) for _ in range(draw(st.integers(1, 2)))]
    return steps + ([draw(_entry(names, inside))] if not inside and not draw(st.integers(0, 4)) else [])


@st.composite
def _step(draw: st.DrawFn, names: dict[str, dict[str, Any]], inside: bool = False) -> dict[str, Any]:
    name = f"s{len(names)}"
    step: dict[str, Any] = {"step": name, "read": ["m"]}
    earlier = draw(st.lists(st.sampled_from(list(names)), max_size=3, unique=True)) if names else []
    step["read"] += [draw(_read(other, names[other])) for other in earlier]
    if not draw(st.integers(0, 2)):
        step["for_each"] = draw(st.integers(1, 3))
    if not inside and not draw(st.integers(0, 3)):
        step["rounds"] = draw(st.integers(1, 3))
    if (inside or "rounds" in step) and draw(st.booleans()):
        step["read"].append(f"{name}[{'all,' if 'for_each' in step else ''}previous]")
    elif earlier and draw(st.booleans()):
        step["join"] = draw(st.sampled_from(["any", {"at_least": 1}, {"at_least": 1, "rest": "cancel"}]))
        if len(earlier) > 1:
            step["join"] = draw(st.sampled_from([step["join"], {"at_least": 2}, {"at_least": 2}]))
    if not draw(st.integers(0, 3)):
        step["when"] = draw(_condition(names))
    wide = [other for other, each in names.items() if "for_each" in each and "inside" not in each]
    if wide and "when" not in step and not inside and draw(st.booleans()):
        step["vote"] = {"over": draw(st.sampled_from(wide))}
        step["vote"] |= {"quorum": 1} if draw(st.booleans()) else {}
    names[name] = {**step, **({"inside": True} if inside else {})}
    return step


@st.composite
def _read(draw: st.DrawFn, name: str, step: Mapping[str, Any]) -> str:
    voters = [] if "inside" in step or "for_each" not in step else ["winner"]
    chosen = draw(st.sampled_from(["", "", *voters]))
    return f"{name}[{chosen}]" if chosen else name


@st.composite
def _condition(draw: st.DrawFn, names: dict[str, dict[str, Any]]) -> str:
    if not names or not draw(st.integers(0, 3)):
        return "1 == 1"
    return f"{draw(st.sampled_from(list(names)))}.text is defined"


def built(data: dict[str, Any]) -> StepGraph:
    """Its graph; a winner is of the last vote over what is read, and the whole fan-out if there is none."""
    voters: dict[str, str] = {}

    def settle(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            settle(entry.get("steps", []))
            settle(entry.get("otherwise", []))
            reads = entry.get("read", [])
            for at, read in enumerate(reads):
                if read.endswith("[winner]"):
                    voter = voters.get(read[: -len("[winner]")])
                    reads[at] = read.replace("winner", f"winner({voter})" if voter else "all")
            if "vote" in entry:
                voters[entry["vote"]["over"]] = entry["step"]

    settle(data["steps"])
    try:
        graph, _ = build_graph(parse_dict(data))
    except WorkflowErrors:
        graph = None
    event("refused" if graph is None else "understood")
    assume(graph is not None)
    assert graph is not None
    return graph


class Played:
    """A run moved by hand: its gates decide as they are told."""

    def __init__(self, graph: StepGraph, decisions: Mapping[str, bool]) -> None:
        self.graph, self.texts = graph, set[str]()
        self.decisions = decisions
        self.progress = Progress(graph, self._decide, self._count)

    def finish(self, address: str) -> None:
        if self.progress.states[address] == "running":
            self.texts.add(address)
            self.progress.finish(address)

    def _decide(self, gate: Gate) -> bool:
        return gate.condition is not None and self.decisions.get(gate.unit, False)

    def _count(self, step: str) -> Tally | None:
        vote = self.graph.votes[step]
        standing = [candidate for candidate in vote.candidates if candidate in self.texts]
        enough = len(self.texts.intersection(vote.voters)) >= vote.quorum
        return Tally(step, standing[0], (), 0) if standing and enough else None


def part_way(graph: StepGraph, random: Any, num_done: int) -> tuple[Played, list[str]]:
    """A run in which some instances, in any order, have run; and which."""
    played = Played(graph, {unit: random.random() < 0.5 for unit in graph.gates})
    running, order = played.progress.take_ready(), list[str]()
    for _ in range(num_done):
        running = sorted(address for address in running if played.progress.states[address] == "running")
        if not running or played.progress.state != "running":
            break
        order.append(random.choice(running))
        played.finish(order[-1])
        running += played.progress.take_ready()
    return played, order


def independent(graph: StepGraph, now: Progress) -> set[str]:
    """Instances of which everything that leads there hangs on gates of its own: no gate in two ways."""
    votes = {vote.unit: vote for vote in graph.votes.values()}
    hangs: dict[str, frozenset[str]] = {}  # on these gates, undecided, it hangs whether and when a unit ends
    needs: dict[str, frozenset[GateUse]] = {}
    clean: set[str] = set()
    for unit in graph.order:
        hangs[unit], needs[unit] = frozenset(), frozenset()
        if unit in now.outcomes:
            clean.add(unit)
            continue
        if unit in graph.loops:
            gates = graph.loops[unit].gates
            hangs[unit], needs[unit] = frozenset().union(*(hangs[gate] for gate in gates)), needs[gates[0]]
            clean |= {unit} if clean.issuperset(gates) else set()
            continue
        each = votes.get(unit) or graph.nodes.get(unit) or graph.gates[unit]
        uses = getattr(each, "gates", ())
        needs[unit] = frozenset(uses).union(*(needs[use.gate] for use in uses))
        if unit not in graph.gates and each.waits:
            needs[unit] |= frozenset.intersection(*(needs[wait] for wait in each.waits))
        fixed = {use.gate for use in needs[unit]}
        around = frozenset().union(*(hangs[use.gate] for use in uses))
        parts = [hangs[wait] for wait in each.waits]
        hangs[unit] = around.union(*parts, [unit] if unit in graph.gates else [])
        parts = [part - fixed for part in (*parts, around)]
        disjoint = sum(map(len, parts)) == len(frozenset().union(*parts))
        agree = all(
            hangs[before] & fixed - {before} <= {use.gate for use in needs[before] & needs[unit]}
            for before in (*each.waits, *(use.gate for use in uses))
            if before not in now.outcomes
        )
        empty = any(
            _may_bring_nothing(graph, now, unit, wait, needs, hangs) for wait in each.waits if wait in graph.loops
        )
        if disjoint and agree and not empty and clean.issuperset((*each.waits, *(use.gate for use in uses))):
            clean.add(unit)
    return clean & graph.nodes.keys()


def _may_bring_nothing(
    graph: StepGraph,
    now: Progress,
    reader: str,
    loop: str,
    needs: Mapping[str, frozenset[GateUse]],
    hangs: Mapping[str, frozenset[str]],
) -> bool:
    """Whether a loop may end without any of the steps in it that `reader` reads: then the reader does not run, while
    the look-ahead takes the loop's end for enough."""
    node = graph.nodes.get(reader)
    keys = [key for source in node.sources if loop in source.waits for key in source.keys] if node is not None else []
    own = {*graph.loops[loop].gates, *(use.gate for use in needs[loop])}
    return any(now.outcomes.get(key, "there") != "there" or hangs[key] - own for key in keys)
