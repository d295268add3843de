"""What is learned from: a recorded run, as the graph of its messages under `exact` and under a level that reuses them.

Plain values: made where workflows are known, written to a file, read where the model is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laban.kvstore.encodings import EncodingId, EncodingSpec, closure, flatten


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens [begin, end) of an earlier message, the first of them at `position`."""

    message: int
    position: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Node:
    """A message: its tokens, the position of the first, and what they attend to besides those before them."""

    tokens: tuple[int, ...]
    start: int
    view: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """Tokens [begin, end) of a message, which a step generated; `step` is the step's name."""

    step: str
    message: int
    begin: int
    end: int

    @property
    def num_tokens(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Graph:
    """Messages, each after all that it reads, and which of their tokens count."""

    nodes: tuple[Node, ...]
    said: tuple[Said, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(node.tokens) for node in self.nodes)

    @property
    def num_said(self) -> int:
        return sum(said.num_tokens for said in self.said)


@dataclass(frozen=True, slots=True)
class Lesson:
    """The same tokens said in both graphs, in the same order. `line` is that of the inputs in their file."""

    line: int
    exact: Graph
    level: Graph


def graph_of(said: Iterable[tuple[str, EncodingId, int, int]], specs: Mapping[EncodingId, EncodingSpec]) -> Graph:
    """The graph of the encodings in which something was said (step, encoding, begin, end), and all they depend on."""
    said = list(said)
    ordered = closure([encoding_id for _, encoding_id, _, _ in said], specs)
    number = {spec.encoding_id: place for place, spec in enumerate(ordered)}
    nodes = [
        Node(
            spec.tokens,
            spec.start,
            tuple(Part(number[p.encoding_id], p.position, p.begin, p.end) for p in flatten(spec.view, specs)),
        )
        for spec in ordered
    ]
    return Graph(tuple(nodes), tuple(Said(step, number[of], begin, end) for step, of, begin, end in said))


def joined(graphs: Iterable[Graph]) -> Graph:
    """One graph of several that have nothing to do with each other, in this order."""
    nodes: list[Node] = []
    said: list[Said] = []
    for graph in graphs:
        first = len(nodes)
        for node in graph.nodes:
            view = tuple(Part(first + p.message, p.position, p.begin, p.end) for p in node.view)
            nodes.append(Node(node.tokens, node.start, view))
        said += [Said(each.step, first + each.message, each.begin, each.end) for each in graph.said]
    return Graph(tuple(nodes), tuple(said))


def write_lessons(path: Path, lessons: Iterable[Lesson]) -> None:
    """A JSON document a line."""
    with path.open("w") as file:
        for lesson in lessons:
            file.write(json.dumps([lesson.line, _to_json(lesson.exact), _to_json(lesson.level)]) + "\n")


def read_lessons(path: Path) -> list[Lesson]:
    return list(_read(path))


def _read(path: Path) -> Iterator[Lesson]:
    with path.open() as file:
        for text in file:
            line, exact, level = json.loads(text)
            yield Lesson(line, _from_json(exact), _from_json(level))


def _to_json(graph: Graph) -> list[object]:
    nodes = [[n.tokens, n.start, [(p.message, p.position, p.begin, p.end) for p in n.view]] for n in graph.nodes]
    return [nodes, [(s.step, s.message, s.begin, s.end) for s in graph.said]]


def _from_json(document: Any) -> Graph:
    nodes, said = document
    made = (Node(tuple(tokens), start, tuple(Part(*part) for part in view)) for tokens, start, view in nodes)
    return Graph(tuple(made), tuple(Said(*each) for each in said))
