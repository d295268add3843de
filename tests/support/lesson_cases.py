"""Random graphs of messages to learn from, and the loss on them by the definition."""

from __future__ import annotations

import random

import torch
from engine_reference import MAX_CONTEXT, VOCAB_SIZE, Interpreter, Placed, Recorded
from torch import Tensor

from laban.actors.tuning.lessons import Graph, Lesson, Node, Part, Said


def random_graph(draw: random.Random, sizes: list[int]) -> Graph:
    """Messages of these sizes, each reading some of those before it anywhere, in part or whole; the last two say most
    of their tokens."""
    nodes: list[Node] = []
    for number, size in enumerate(sizes):
        parts = []
        for parent in draw.sample(range(number), draw.randint(min(1, number), min(3, number))):
            length = len(nodes[parent].tokens)
            begin = draw.choice([0, draw.randrange(length)])
            end = draw.choice([length, draw.randint(begin + 1, length)])
            parts.append(Part(parent, draw.choice([nodes[parent].start + begin, draw.randrange(200)]), begin, end))
        start = draw.randrange(MAX_CONTEXT - size)
        tokens = tuple(draw.randrange(VOCAB_SIZE) for _ in range(size))
        nodes.append(Node(tokens, start, tuple(parts)))
    said = [Said("a", len(sizes) - 2, 2, sizes[-2]), Said("b", len(sizes) - 1, 1, sizes[-1] - 1)]
    return Graph(tuple(nodes), tuple(said))


def random_lesson(draw: random.Random) -> Lesson:
    """Two graphs that say the same."""
    level = random_graph(draw, [20, 12, 5, 9, 8])
    exact = random_graph(draw, [30, 9, 8])
    nodes = [*exact.nodes[:-2]]
    for own, other in zip(exact.nodes[-2:], level.nodes[-2:], strict=True):
        nodes.append(Node(other.tokens, own.start, own.view))
    said = [Said("a", 1, 2, 9), Said("b", 2, 1, 7)]
    return Lesson(1, Graph(tuple(nodes), tuple(said)), level)


def said_logits(oracle: Interpreter, graph: Graph) -> tuple[Tensor, Tensor]:
    """logits [num_said, vocab_size] before each token said, and the tokens, message by message."""
    recorded: list[Recorded] = []
    for node in graph.nodes:
        view = [Placed(recorded[part.message], part.position, part.begin, part.end) for part in node.view]
        recorded.append(oracle.encode_differentiably(list(node.tokens), node.start, view))
    logits = [recorded[said.message].logits[said.begin - 1 : said.end - 1] for said in graph.said]
    tokens = [token for said in graph.said for token in graph.nodes[said.message].tokens[said.begin : said.end]]
    return torch.cat(logits), torch.tensor(tokens)


def reference_loss(exact: Tensor, own: Tensor, tokens: Tensor, hard: float) -> Tensor:
    taught, said = exact.double().log_softmax(-1), own.double().log_softmax(-1)
    kl = (taught.exp() * (taught - said)).sum()
    return (1 - hard) * kl - hard * said[torch.arange(len(tokens)), tokens].sum()
