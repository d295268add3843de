"""The step graph: every instance of every step, what it reads, and how much of it must be there first.

Units wait for others: an instance; a vote (`winner(STEP)`: settled once its voters and candidates are); a gate, which
decides whether others run (`when(...)`, `until(LOOP)[round]`); the end of a loop (`end(LOOP)`); an output
(`outputs.NAME`). `build.py` makes the graph; it never changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from laban.cluster.workflow.diagnostics import Loc
from laban.cluster.workflow.expressions import Expression
from laban.cluster.workflow.fidelity import RECOMPUTE_SHARE, TOLERANCE, Fidelity
from laban.cluster.workflow.resolve import Member
from laban.cluster.workflow.schema import Step, Workflow

Kind = Literal["generate", "external", "workflow"]


@dataclass(frozen=True, slots=True)
class Use:
    """What one reference of an expression stands for: a value of the message `keys`, or with `many` a list of them.

    The list has the rounds that were run, each with its `width` members: None for those that are not there.
    `num_rounds`: as in Source.
    """

    keys: tuple[str, ...]
    value: str
    many: bool
    width: int = 1
    num_rounds: int = 0
    waits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bound:
    """An expression as one unit sees it: its references resolved, in order, and its variables' values beside the
    inputs'."""

    expression: Expression
    uses: tuple[Use, ...]
    own: Mapping[str, object] = field(hash=False)
    loc: Loc

    @property
    def waits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(unit for use in self.uses for unit in use.waits))


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of a view: the messages `keys`, in order, or with `vote` the one of them that wins.

    `fixed`: they are fixed messages or prompts, there from the start. With `num_rounds` the keys are those of so many
    rounds of a loop, round by round: each member's last one that was run is read. `order` gives which of `members` are
    read, and in what order.
    """

    keys: tuple[str, ...]
    fidelity: Fidelity
    fixed: bool
    vote: str | None = None
    begin: int | None = None
    end: int | None = None
    index: int | None = None  # of the read in the step; None: the agent's prompt, put first
    num_chosen: int = 0  # with `vote`: how many of the keys are the winner's, one a round
    waits: tuple[str, ...] = ()  # the units behind it: its keys; its vote and what that does not wait for; a loop's end
    num_rounds: int = 0
    order: Bound | None = None
    members: tuple[Member | None, ...] = ()  # with `order`: of each key
    recompute_share: float = RECOMPUTE_SHARE  # if it is blended
    tolerance: float = TOLERANCE  # if it is corrected


@dataclass(frozen=True, slots=True)
class GateUse:
    """A gate that must have decided so."""

    gate: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Node:
    """An instance. It runs once `required` of the units `waits` are there and all its gates let it.

    `own` are the variables that it has beside the inputs. `arguments` are of an external step or of the workflow that
    it runs, or `choices` that are an expression: expressions bound, all else stands for itself. `model` "" is the
    server's default, `adapter` "" none.
    """

    address: str
    step: Step
    loc: Loc
    agent: str | None
    member: Member | None
    index: int | None  # of the member, from 1
    round: int | None
    sources: tuple[Source, ...]
    waits: tuple[str, ...]
    required: int
    cancels_rest: bool
    gates: tuple[GateUse, ...] = ()
    own: Mapping[str, object] = field(default_factory=dict)
    arguments: Mapping[str, object] = field(default_factory=dict)
    bindings: Mapping[str, Source] = field(default_factory=dict)  # messages of the workflow that it runs
    model: str = ""
    adapter: str = ""

    @property
    def kind(self) -> Kind:
        if self.step.workflow is not None:
            return "workflow"
        return "generate" if self.step.external is None else "external"


@dataclass(frozen=True, slots=True)
class Gate:
    """A decision, made once all of `waits` have ended, well or not; never if one of its own gates is against it.

    `condition` None: it does not hold. `needed` are those of `waits` whose values it looks at.
    """

    unit: str
    condition: Bound | None
    waits: tuple[str, ...]
    gates: tuple[GateUse, ...] = ()
    looked_at: tuple[str, ...] = ()  # without a condition: those of `waits` that are needed nevertheless

    @property
    def needed(self) -> tuple[str, ...]:
        return self.looked_at if self.condition is None else self.condition.waits


@dataclass(frozen=True, slots=True)
class LoopNode:
    """The end of a loop: there when one of its gates, one a round, holds; after the last one as `fails` says."""

    name: str
    gates: tuple[str, ...]
    fails: bool
    loc: Loc

    @property
    def unit(self) -> str:
        return end_unit(self.name)


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
    value: str | None = None  # of the voters: the ballot in the place of their text

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
    """`consumers` maps each unit to those that wait for it; `deciders` to the gates that look on until it has ended;
    `readers` to all that read it or look at its values. `order` lists all units but outputs, what they wait for before
    them."""

    workflow: Workflow
    fixed: Mapping[str, tuple[str, ...]]  # the keys of each fixed message: one for each item of a list, or its name
    nodes: Mapping[str, Node]  # in order: by step, then round, then member
    votes: Mapping[str, VoteNode]  # by step; only those that something reads
    outputs: Mapping[str, OutputNode]
    gates: Mapping[str, Gate]
    loops: Mapping[str, LoopNode]  # by unit
    consumers: Mapping[str, tuple[str, ...]]
    deciders: Mapping[str, tuple[str, ...]]
    readers: Mapping[str, tuple[str, ...]]
    order: tuple[str, ...]


def end_unit(loop: str) -> str:
    return f"end({loop})"


def until_unit(loop: str, round_: int) -> str:
    return f"until({loop})[{round_}]"


def asked_unit(address: str) -> str:
    return f"asked({address})"


def when_unit(address: str) -> str:
    return f"when({address})"


def vote_unit(step: str) -> str:
    return f"winner({step})"


def prompt_key(agent: str) -> str:
    """The key of an agent's role prompt."""
    return f"agent:{agent}"


def winner_keys(source: Source, vote: VoteNode, winner: str) -> tuple[str, ...]:
    """The keys of `source` that belong to the winning candidate, one a round: its members are the candidates'."""
    return source.keys[list(vote.candidates).index(winner) :: len(vote.candidates)]
