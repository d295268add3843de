"""How far what a graph says is from what the other one says, token by token, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from laban.actors.engine.runner import logits_of
from laban.actors.tuning.lessons import Graph
from laban.actors.tuning.packed import Packed

ROWS_AT_ONCE = 256
"""Of logits: a row is a number for every word of the vocabulary, in float32, several times over."""


@dataclass(frozen=True, slots=True)
class Measured:
    """An item a token said, on the host."""

    kl: Tensor  # [num_said] KL(exact || level), nats
    agrees: Tensor  # [num_said] whether both like the same token best


def rows_of(graph: Graph) -> tuple[list[int], list[int]]:
    """For each token said the row of the pack that it comes after, and the token."""
    first = [0]
    for node in graph.nodes:
        first.append(first[-1] + len(node.tokens))
    places = [(said.message, at) for said in graph.said for at in range(said.begin, said.end)]
    return [first[message] + at - 1 for message, at in places], [graph.nodes[m].tokens[at] for m, at in places]


def said_hidden(packed: Packed, graph: Graph) -> tuple[Tensor, Tensor]:
    """hidden [num_said, hidden_size] of the rows before the tokens said, and these [num_said]."""
    rows, tokens = rows_of(graph)
    hidden = packed.hidden(graph)
    return hidden[torch.tensor(rows, device=hidden.device)], torch.tensor(tokens, device=hidden.device)


def divergence(packed: Packed, taught: Tensor, hidden: Tensor, tokens: Tensor, hard: float) -> Tensor:
    """The sum over tokens of (1 - hard) * KL(taught || own) + hard * (negative log-likelihood of the token said).

    Args:
        taught, hidden: [num_said, hidden_size], of the teacher (without a gradient) and of what is trained.
        tokens: [num_said]
    """
    head = packed.model

    def part(own: Tensor, teacher: Tensor, said: Tensor) -> Tensor:
        log_own = logits_of(head, own).log_softmax(-1)
        total = log_own.new_zeros(())
        if hard < 1:
            with torch.no_grad():
                log_taught = logits_of(head, teacher).log_softmax(-1)
            total = total + (1 - hard) * (log_taught.exp() * (log_taught - log_own)).sum()
        if hard > 0:
            total = total - hard * log_own.gather(-1, said[:, None]).sum()
        return total

    return _in_parts(part, hidden, taught, tokens)


def _in_parts(part: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    total = tensors[0].new_zeros((), dtype=torch.float32)
    for begin in range(0, tensors[0].shape[0], ROWS_AT_ONCE):
        own = [each[begin : begin + ROWS_AT_ONCE] for each in tensors]
        total = total + checkpoint(part, *own, use_reentrant=False)
    return total


@torch.no_grad()
def measure(packed: Packed, taught: Tensor, hidden: Tensor) -> Measured:
    """`taught` and `hidden` as for `divergence`."""
    kl, agrees = [], []
    for begin in range(0, hidden.shape[0], ROWS_AT_ONCE):
        teacher, own = (logits_of(packed.model, x[begin : begin + ROWS_AT_ONCE]) for x in (taught, hidden))
        log_taught, log_own = teacher.log_softmax(-1), own.log_softmax(-1)
        kl.append((log_taught.exp() * (log_taught - log_own)).sum(-1).cpu())
        agrees.append((teacher.argmax(-1) == own.argmax(-1)).cpu())
    return Measured(torch.cat(kl), torch.cat(agrees))
