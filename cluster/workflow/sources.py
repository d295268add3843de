"""What each step reads, checked against the other steps; and what that makes of it for each instance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from laban.cluster.workflow.diagnostics import MAX_PROBLEMS, Loc, Problem, suggest
from laban.cluster.workflow.graph import Fidelity, Source, prompt_key, vote_unit
from laban.cluster.workflow.resolve import Ballot, Member, ReadProblem, Selection, Shape, resolve
from laban.cluster.workflow.schema import Read, Step, Workflow
from laban.cluster.workflow.selectors import Winner, parse_selector

# A read as understood: a selection of instances, or None for a fixed message or the prompt.
Entry = tuple[Read, Selection | None]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a read may name. Steps in `broken`, and votes in `undecided`, have errors of their own: nothing is said
    of reads of them."""

    workflow: Workflow
    shapes: Mapping[str, Shape]
    broken: frozenset[str]
    undecided: frozenset[str]
    ballots: Mapping[str, Ballot]
    problems: list[Problem] = field(default_factory=list)

    def understand(self, text: str, reader: Shape, loc: Loc) -> Selection | None:
        """The instances that a read selects; None for a fixed message, and after adding a problem."""
        if len(self.problems) >= MAX_PROBLEMS:
            return None
        selector = parse_selector(text)
        name = selector.name
        message = self.workflow.messages.get(name)
        if message is not None and message.for_each is None:
            if selector.arguments:
                self.problems.append(Problem(loc, f"'{name}' is a fixed message", text, name))
            return None
        if name == "prompt":
            self.problems.append(Problem(loc, "`prompt` stands alone, in a step's reads", text))
            return None
        if name in self.broken or any(isinstance(a, Winner) and a.vote in self.undecided for a in selector.arguments):
            return None
        if name not in self.shapes:
            hint = suggest(name, [*self.workflow.messages, *self.shapes, *self.broken])
            self.problems.append(Problem(loc, f"unknown message or step '{name}'", expected=hint))
            return None
        try:
            return resolve(selector, self.shapes[name], reader, self.ballots)
        except ReadProblem as problem:
            self.problems.append(Problem(loc, problem.message, text, problem.expected))
            return None

    def entries(self, index: int, step: Step) -> list[Entry]:
        """The reads of one step, in order."""
        reader = self.shapes.get(step.step)
        found: list[Entry] = []
        for number, read in enumerate(step.read):
            loc = ("steps", index, "read", number)
            if reader is None:
                continue
            if _is_prompt(read):
                if not has_prompt(self.workflow, step):
                    self.problems.append(Problem(loc, "`prompt` in a step whose agent has no prompt"))
                found.append((read, None))
            else:
                found.append((read, self.understand(read.read, reader, loc)))
        return found


def has_prompt(workflow: Workflow, step: Step) -> bool:
    """Whether any instance of the step has a role prompt."""
    names: Iterable[str] = [] if step.agent is None else [step.agent]
    if step.for_each is not None and step.for_each.over_agents:
        names = workflow.agents if step.for_each.agents is None else step.for_each.agents
    agents = [workflow.agents.get(name) for name in names]
    return any(agent is not None and agent.prompt is not None for agent in agents)


def _is_prompt(read: Read) -> bool:
    return read.read.strip() == "prompt"


def sources_of(
    workflow: Workflow,
    step: Step,
    entries: list[Entry],
    agent: str | None,
    member: Member | None,
    round_: int | None,
    fidelity: Fidelity | None,
) -> Iterator[Source]:
    """The view of one instance: the agent's prompt first unless it is placed, then the reads."""
    stated = fidelity or step.fidelity or workflow.fidelity
    prompt = agent is not None and workflow.agents[agent].prompt is not None
    placed = any(_is_prompt(read) for read, _ in entries)
    if agent is not None and prompt and not placed and step.external is None:
        yield Source((prompt_key(agent),), stated, fixed=True)
    for index, (read, chosen) in enumerate(entries):
        level = fidelity or read.fidelity or stated
        if chosen is not None:
            yield replace(
                chosen_source(chosen, member, agent, round_, level), begin=read.begin, end=read.end, index=index
            )
        elif not _is_prompt(read):
            yield Source((parse_selector(read.read).name,), level, True, None, read.begin, read.end, index)
        elif agent is not None and prompt:
            yield Source((prompt_key(agent),), level, True, None, read.begin, read.end, index)


def chosen_source(
    chosen: Selection, member: Member | None, agent: str | None, round_: int | None, fidelity: Fidelity
) -> Source:
    """The selected instances as a source, with what it waits for."""
    keys = tuple(chosen.addresses(member, agent, round_))
    if chosen.target.fixed:
        return Source(keys, fidelity, fixed=True)
    if chosen.vote is None:
        return Source(keys, fidelity, fixed=False, waits=keys)
    settled = chosen.candidates()
    waits = (vote_unit(chosen.vote), *(key for key in keys if key not in settled))
    rounds = len(keys) // len(chosen.target.members or (None,))
    return Source(keys, fidelity, fixed=False, vote=chosen.vote, num_chosen=rounds, waits=waits)


def waits_of(sources: Iterable[Source]) -> tuple[str, ...]:
    """The units that must be there (or enough of them) before `sources` can be read, each once."""
    return tuple(dict.fromkeys(unit for source in sources for unit in source.waits))
