"""The step graph: every instance of every step, what it reads, and how much of it must be there first.

Three kinds of unit wait for others: an instance, a vote (`winner(STEP)`: settled once its voters and
candidates are) and an output (`outputs.NAME`). `build.py` makes the graph; it never changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from laban.cluster.workflow.resolve import Member
from laban.cluster.workflow.schema import Step, Workflow

Fidelity = Literal["exact", "direct"]


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of a view: the messages `keys`, in order, or with `vote` the one of them that wins.

    `fixed`: they are fixed messages or prompts, there from the start.
    """

    keys: tuple[str, ...]
    fidelity: Fidelity
    fixed: bool
    vote: str | None = None
    begin: int | None = None
    end: int | None = None
    index: int | None = None  # of the read in the step; None: the agent's prompt, put first
    num_chosen: int = 0  # with `vote`: how many of the keys are the winner's, one a round
    waits: tuple[str, ...] = ()  # the units behind it: its keys, or its vote and what that does not wait for


@dataclass(frozen=True, slots=True)
class Node:
    """An instance. It runs once `required` of the units `waits` are there."""

    address: str
    step: Step
    step_index: int
    agent: str | None
    member: Member | None
    index: int | None  # of the member, from 1
    round: int | None
    sources: tuple[Source, ...]
    waits: tuple[str, ...]
    required: int
    cancels_rest: bool

    @property
    def kind(self) -> Literal["generate", "external"]:
        return "generate" if self.step.external is None else "external"


@dataclass(frozen=True, slots=True)
class VoteNode:
    """A vote: decided when all `waits` have ended, `quorum` voters and one candidate of them well.

    `candidates` maps each candidate's address to the member that ballots name.
    """

    step: str
    voters: tuple[str, ...]
    candidates: Mapping[str, Member]
    quorum: int
    last_mention: bool  # the last member that a text names counts, not the first

    @property
    def unit(self) -> str:
        return vote_unit(self.step)

    @property
    def waits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.voters, *self.candidates)))


@dataclass(frozen=True, slots=True)
class OutputNode:
    name: str
    source: Source
    waits: tuple[str, ...]
    required: int
    separator: str

    @property
    def unit(self) -> str:
        return f"outputs.{self.name}"


@dataclass(frozen=True, slots=True)
class StepGraph:
    """`consumers` maps each unit to those that wait for it; `order` lists instances and votes, what they wait for
    before them."""

    workflow: Workflow
    fixed: Mapping[str, tuple[str, ...]]  # the keys of each fixed message: one for each item of a list, or its name
    nodes: Mapping[str, Node]  # in order: by step, then round, then member
    votes: Mapping[str, VoteNode]  # by step; only those that something reads
    outputs: Mapping[str, OutputNode]
    consumers: Mapping[str, tuple[str, ...]]
    order: tuple[str, ...]


def vote_unit(step: str) -> str:
    return f"winner({step})"


def prompt_key(agent: str) -> str:
    """The key of an agent's role prompt."""
    return f"agent:{agent}"


def winner_keys(source: Source, vote: VoteNode, winner: str) -> tuple[str, ...]:
    """The keys of `source` that belong to the winning candidate, one a round: its members are the candidates'."""
    return source.keys[list(vote.candidates).index(winner) :: len(vote.candidates)]
