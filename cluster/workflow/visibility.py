"""What encodings have seen: leakage through `direct` reads, and reads that never saw each other.

Reading an encoding as it is also reads what it attended to when it was made. An `exact` read does not:
there the message's tokens are encoded again in the reader's own view.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from laban.cluster.workflow.blocks import steps_of
from laban.cluster.workflow.build import build_graph
from laban.cluster.workflow.diagnostics import Problem
from laban.cluster.workflow.graph import Node, StepGraph, prompt_key
from laban.cluster.workflow.schema import Workflow

MAX_PAIRS = 50  # blocked pairs listed for one step
MAX_KEYS = 400  # of the one view in which they are looked for


@dataclass(frozen=True, slots=True)
class Leak:
    """Instances of `step`, `address` the first, read `message` without being given it, through a read of `through`.

    `message` and `through` are a fixed message's name, `agent:NAME`, or a step's name.
    """

    step: str
    address: str
    message: str
    through: str
    private: bool


@dataclass(frozen=True, slots=True)
class Blockage:
    """In the view of `address`, the fullest of `step`, the messages of each pair were encoded unaware of each other."""

    step: str
    address: str
    pairs: tuple[tuple[str, str], ...]
    num_pairs: int  # those listed and those past the limit


class Visibility:
    """The sets of what every message's encoding saw, as bit masks, worst case: every read that may happen does.

    `given` names messages that are private though the workflow does not say so: whoever runs it does. What is private
    in a workflow that a step runs has a bit of its own.
    """

    def __init__(self, graph: StepGraph, given: Collection[str] = ()) -> None:
        self.graph = graph
        self._given = given
        workflow = graph.workflow
        groups = {**graph.fixed, **{prompt_key(name): (prompt_key(name),) for name in workflow.agents}}
        fixed = [key for keys in groups.values() for key in keys]
        self.bit = {key: 1 << index for index, key in enumerate(fixed)}
        self.groups = {name: sum(self.bit[key] for key in keys) for name, keys in groups.items()}
        for address, node in graph.nodes.items():
            self.bit[address] = 1 << len(self.bit)
            self.groups[node.step.step] = self.groups.get(node.step.step, 0) | self.bit[address]
        self._inside: dict[str, str] = {}  # a workflow with something private in it -> what that is called
        for name, inner in workflow.workflows.items():
            if is_private(inner):
                self._inside[name] = f"messages of {name}"
                self.bit[self._inside[name]] = self.groups[self._inside[name]] = 1 << len(self.bit)
        self.seen: dict[str, int] = dict.fromkeys(fixed, 0)
        for unit in graph.order:
            if unit in graph.nodes:
                read, through = self.masks(graph.nodes[unit])
                inside = self._inside.get(graph.nodes[unit].step.workflow or "")
                self.seen[unit] = read | through | (0 if inside is None else self.bit[inside])

    def masks(self, node: Node) -> tuple[int, int]:
        """The messages a node is given, and those it reads through `direct` encodings."""
        given = through = 0
        for source in node.sources:
            for key in source.keys:
                given |= self.bit[key]
                if source.fidelity != "exact":
                    through |= self.seen[key]
        return given, through

    def private(self) -> int:
        """The messages marked `private`."""
        workflow = self.graph.workflow
        names = [name for name, message in workflow.messages.items() if message.private]
        names += [prompt_key(name) for name, agent in workflow.agents.items() if agent.private]
        names += [step.step for step in steps_of(workflow) if step.private]
        names += [*self._given, *self._inside.values()]
        mask = 0
        for name in names:
            mask |= self.groups[name]
        return mask

    def leaks(self, *, private_only: bool = False) -> Iterator[Leak]:
        """Each message (step by step) that each step reads without being given it."""
        private = self.private()
        reported: set[tuple[str, str]] = set()
        for address, node in self.graph.nodes.items():
            given, through = self.masks(node)
            leaked = through & ~given
            if private_only:
                leaked &= private
            if not leaked:
                continue
            for group, mask in self.groups.items():
                if leaked & mask and (node.step.step, group) not in reported:
                    reported.add((node.step.step, group))
                    via = self._through(node, leaked & mask)
                    yield Leak(node.step.step, address, group, via, bool(mask & private))

    def _through(self, node: Node, leaked: int) -> str:
        keys = (key for source in node.sources if source.fidelity != "exact" for key in source.keys)
        key = next(key for key in keys if self.seen[key] & leaked)
        return self.graph.nodes[key].step.step if key in self.graph.nodes else key

    def blockages(self) -> Iterator[Blockage]:
        """For each step, the reads of its fullest view that never saw each other."""
        fullest: dict[str, Node] = {}
        for node in self.graph.nodes.values():
            best = fullest.get(node.step.step)
            if best is None or _num_keys(node) > _num_keys(best):
                fullest[node.step.step] = node
        for step, node in fullest.items():
            placed = [(key, source.fidelity) for source in node.sources for key in source.keys][:MAX_KEYS]
            pairs = [
                (first, second)
                for index, (second, fidelity) in enumerate(placed)
                if fidelity != "exact"
                for first, _ in placed[:index]
                if first != second and not self._aware(first, second)
            ]
            if pairs:
                yield Blockage(step, node.address, tuple(pairs[:MAX_PAIRS]), len(pairs))

    def _aware(self, first: str, second: str) -> bool:
        return bool(self.seen[first] & self.bit[second] or self.seen[second] & self.bit[first])


def _num_keys(node: Node) -> int:
    return sum(len(source.keys) for source in node.sources)


def is_private(workflow: Workflow) -> bool:
    """Whether anything in it is, or in the workflows in it."""
    marked = any(message.private for message in workflow.messages.values())
    marked = marked or any(agent.private for agent in workflow.agents.values())
    marked = marked or any(step.private for step in steps_of(workflow))
    return marked or any(map(is_private, workflow.workflows.values()))


def private_leaks(graph: StepGraph, given: Collection[str] = ()) -> list[Problem]:
    """An error for each private message that reaches a reader who was not given it, here or in a workflow within."""
    direct = any(source.fidelity != "exact" for node in graph.nodes.values() for source in node.sources)
    if not (given or is_private(graph.workflow)):
        return []
    own = _own_leaks(graph, given) if direct else []
    own += _corrected(graph)
    return [*own, *(problem for name in graph.workflow.workflows for problem in _leaks_within(graph, name, given))]


def _corrected(graph: StepGraph) -> list[Problem]:
    """Corrected reads, of a workflow in which something is private: one of each step."""
    found: dict[str, Node] = {}
    for node in graph.nodes.values():
        if any(source.fidelity == "corrected" for source in node.sources):
            found.setdefault(node.step.step, node)
    return [
        Problem(
            node.loc,
            f"'{step}' reads `corrected`, which is predicted from what the same text was after other messages and may"
            " carry traces of these, and something in this workflow is private",
            expected="another fidelity, or nothing private",
        )
        for step, node in found.items()
    ]


def _leaks_within(graph: StepGraph, name: str, given: Collection[str]) -> list[Problem]:
    """Those in one of its workflows, as the steps that run it hand it their messages."""
    handed = set()
    private = Visibility(graph, given)
    mask = private.private()
    for node in graph.nodes.values():
        if node.step.workflow == name:
            bound = node.bindings.items()
            handed |= {inner for inner, source in bound if any(private.bit[key] & mask for key in source.keys)}
    inside, _ = build_graph(graph.workflow.workflows[name])
    if inside is None or not (handed or is_private(inside.workflow)):
        return []
    return [replace(p, loc=("workflows", name, *p.loc)) for p in private_leaks(inside, handed)]


def _own_leaks(graph: StepGraph, given: Collection[str]) -> list[Problem]:
    return [
        Problem(
            graph.nodes[leak.address].loc,
            f"'{leak.address}' would read the private '{leak.message}' through the encoding of '{leak.through}'",
            expected=f"`exact` for its read of '{leak.through}', or '{leak.message}' among its reads",
        )
        for leak in Visibility(graph, given).leaks(private_only=True)
    ]
