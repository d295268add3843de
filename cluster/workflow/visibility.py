"""What encodings have seen: leakage through `direct` reads, and reads that never saw each other.

Reading an encoding as it is also reads what it attended to when it was made. An `exact` read does not:
there the message's tokens are encoded again in the reader's own view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from laban.cluster.workflow.blocks import steps_of
from laban.cluster.workflow.diagnostics import Problem
from laban.cluster.workflow.graph import Node, StepGraph, prompt_key

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
    """The sets of what every message's encoding saw, as bit masks, worst case: every read that may happen does."""

    def __init__(self, graph: StepGraph) -> None:
        self.graph = graph
        workflow = graph.workflow
        groups = {**graph.fixed, **{prompt_key(name): (prompt_key(name),) for name in workflow.agents}}
        fixed = [key for keys in groups.values() for key in keys]
        self.bit = {key: 1 << index for index, key in enumerate(fixed)}
        self.groups = {name: sum(self.bit[key] for key in keys) for name, keys in groups.items()}
        for address, node in graph.nodes.items():
            self.bit[address] = 1 << len(self.bit)
            self.groups[node.step.step] = self.groups.get(node.step.step, 0) | self.bit[address]
        self.seen: dict[str, int] = dict.fromkeys(fixed, 0)
        for unit in graph.order:
            if unit in graph.nodes:
                given, through = self.masks(graph.nodes[unit])
                self.seen[unit] = given | through

    def masks(self, node: Node) -> tuple[int, int]:
        """The messages a node is given, and those it reads through `direct` encodings."""
        given = through = 0
        for source in node.sources:
            for key in source.keys:
                given |= self.bit[key]
                if source.fidelity == "direct":
                    through |= self.seen[key]
        return given, through

    def private(self) -> int:
        """The messages marked `private`."""
        workflow = self.graph.workflow
        names = [name for name, message in workflow.messages.items() if message.private]
        names += [prompt_key(name) for name, agent in workflow.agents.items() if agent.private]
        names += [step.step for step in steps_of(workflow) if step.private]
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
        keys = (key for source in node.sources if source.fidelity == "direct" for key in source.keys)
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
                if fidelity == "direct"
                for first, _ in placed[:index]
                if first != second and not self._aware(first, second)
            ]
            if pairs:
                yield Blockage(step, node.address, tuple(pairs[:MAX_PAIRS]), len(pairs))

    def _aware(self, first: str, second: str) -> bool:
        return bool(self.seen[first] & self.bit[second] or self.seen[second] & self.bit[first])


def _num_keys(node: Node) -> int:
    return sum(len(source.keys) for source in node.sources)


def private_leaks(graph: StepGraph) -> list[Problem]:
    """An error for each private message that reaches a reader who was not given it."""
    workflow = graph.workflow
    marked = any(message.private for message in workflow.messages.values())
    marked = marked or any(agent.private for agent in workflow.agents.values())
    marked = marked or any(step.private for step in steps_of(workflow))
    direct = any(source.fidelity == "direct" for node in graph.nodes.values() for source in node.sources)
    if not (marked and direct):
        return []
    return [
        Problem(
            graph.nodes[leak.address].loc,
            f"'{leak.address}' would read the private '{leak.message}' through the encoding of '{leak.through}'",
            expected=f"`exact` for its read of '{leak.through}', or '{leak.message}' among its reads",
        )
        for leak in Visibility(graph).leaks(private_only=True)
    ]
