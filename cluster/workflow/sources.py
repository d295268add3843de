"""What each step reads, checked against the other steps; and what that makes of it for each instance."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from laban.cluster.workflow.blocks import Layout, Placed
from laban.cluster.workflow.diagnostics import MAX_PROBLEMS, Loc, Problem, suggest
from laban.cluster.workflow.expressions import BUILT_IN_VALUES, Expression, Reference, parse_expression
from laban.cluster.workflow.fidelity import TOLERANCE, Fidelity, level_of
from laban.cluster.workflow.graph import Bound, Source, Use, end_unit, prompt_key, vote_unit
from laban.cluster.workflow.resolve import SEVERAL, Ballot, Member, ReadProblem, Selection, Shape, resolve
from laban.cluster.workflow.schema import Read, Step, Workflow
from laban.cluster.workflow.selectors import Winner, parse_selector


@dataclass(frozen=True, slots=True)
class Meant:
    """An expression as a step means it: what each of its references selects, or the fixed message that it names."""

    expression: Expression
    targets: tuple[Selection | str, ...]
    loc: Loc

    def selections(self) -> list[Selection]:
        return [target for target in self.targets if isinstance(target, Selection)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A read as understood: what it selects, None for a fixed message or the prompt; and its order."""

    read: Read
    chosen: Selection | None
    order: Meant | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """What a read may name. Steps in `broken`, and votes in `undecided`, have errors of their own: nothing is said
    of reads of them."""

    workflow: Workflow
    layout: Layout
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

    def entries(self, placed: Placed) -> list[Entry]:
        """The reads of one step, in order."""
        step, reader = placed.step, self.shapes.get(placed.step.step)
        found: list[Entry] = []
        for number, read in enumerate(step.read if reader is not None else ()):
            assert reader is not None
            loc = (*placed.loc, "read", number)
            if _is_prompt(read):
                if not has_prompt(self.workflow, step):
                    self.problems.append(Problem(loc, "`prompt` in a step whose agent has no prompt"))
                chosen = None
            else:
                chosen = self.understand(read.read, reader, loc)
            order = None
            if read.order is not None:
                order = self.mean(read.order, reader, (*loc, "order"), own_names(placed))
                if chosen.member not in SEVERAL if chosen is not None else self._is_one(read):
                    problem = "an order where there is one member to read"
                    self.problems.append(Problem((*loc, "order"), problem, expected="a read of several members"))
            found.append(Entry(read, chosen, order))
        return found

    def _is_one(self, read: Read) -> bool:
        """Whether a read that selects no instances is of one message, and no mistake."""
        message = self.workflow.messages.get(parse_selector(read.read).name)
        return _is_prompt(read) or (message is not None and message.for_each is None)

    def mean(self, text: str, reader: Shape, loc: Loc, own: Collection[str]) -> Meant | None:
        """An expression's references and variables, found; None after adding a problem."""
        expression = parse_expression(text)
        before = len(self.problems)
        known = {*self.workflow.inputs, *own}
        for name in sorted(expression.variables - known):
            values = f"`{name}.text` or another of its values" if name in self.shapes else ""
            hint = values or suggest(name, known) or "an input of the workflow, or STEP.VALUE"
            self.problems.append(Problem(loc, f"unknown variable '{name}'", text, hint))
        targets: list[Selection | str] = []
        for reference in expression.references:
            problem = self._problem_with(reference)
            if problem is not None:
                self.problems.append(Problem(loc, *problem))
            chosen = self.understand(reference.selector, reader, loc)
            targets.append(parse_selector(reference.selector).name if chosen is None else chosen)
        undone = any(isinstance(target, str) and target not in self.workflow.messages for target in targets)
        return None if undone or len(self.problems) > before else Meant(expression, tuple(targets), loc)

    def _problem_with(self, reference: Reference) -> tuple[str, object, str] | None:
        """Why what is referred to has no such value, with the value and what was expected."""
        name = parse_selector(reference.selector).name
        if name in self.workflow.messages:
            ok = reference.value == "text"
            return None if ok else (f"the message '{name}' has no value '{reference.value}'", None, f"{name}.text")
        step = self.layout.by_name[name].step if name in self.layout.by_name else None
        if step is None or reference.value in step.value_names or reference.value in BUILT_IN_VALUES:
            return None  # of what is unknown `understand` speaks
        hint = suggest(reference.value, [*step.value_names, *BUILT_IN_VALUES])
        if not step.value_names and not hint.startswith("did you mean"):
            hint = f"`values: [{reference.value}]` in that step, or one of {', '.join(BUILT_IN_VALUES)}"
        return f"the step '{name}' has no value '{reference.value}'", None, hint


def own_names(placed: Placed) -> set[str]:
    """The variables that an instance of the step has beside the inputs."""
    step, fan_out = placed.step, placed.step.for_each
    names = {"step"}
    names |= {"agent"} if step.agent is not None or (fan_out is not None and fan_out.over_agents) else set()
    names |= {"index"} if fan_out is not None else set()
    names |= {"item"} if fan_out is not None and fan_out.input is not None else set()
    return names | ({"round"} if step.rounds is not None or placed.loop is not None else set())


def has_prompt(workflow: Workflow, step: Step) -> bool:
    """Whether any instance of the step has a role prompt."""
    names: Iterable[str] = [] if step.agent is None else [step.agent]
    if step.for_each is not None and step.for_each.over_agents:
        names = workflow.agents if step.for_each.agents is None else step.for_each.agents
    agents = [workflow.agents.get(name) for name in names]
    return any(agent is not None and agent.prompt is not None for agent in agents)


def _is_prompt(read: Read) -> bool:
    return read.read.strip() == "prompt"


@dataclass(frozen=True, slots=True)
class Reader:
    """One instance, or one round of a block, as what reads: who it is and the values of its own variables."""

    member: Member | None = None
    agent: str | None = None
    round: int | None = None
    own: Mapping[str, object] = field(default_factory=dict)


def sources_of(
    workflow: Workflow, step: Step, entries: list[Entry], reader: Reader, fidelity: Fidelity | None
) -> Iterator[Source]:
    """The view of one instance: the agent's prompt first unless it is placed, then the reads."""
    stated = fidelity or level_of(step.fidelity or workflow.fidelity)
    usual_share = step.recompute_share or workflow.recompute_share
    tolerances = (step.tolerance, workflow.tolerance, TOLERANCE)
    usual_tolerance = next(each for each in tolerances if each is not None)
    agent = reader.agent
    prompt = agent is not None and workflow.agents[agent].prompt is not None
    placed = any(_is_prompt(entry.read) for entry in entries)
    if agent is not None and prompt and not placed and step.external is None and step.workflow is None:
        yield _blended(Source((prompt_key(agent),), stated, fixed=True, tolerance=usual_tolerance), usual_share)
    for index, entry in enumerate(entries):
        read = entry.read
        level = fidelity or (stated if read.fidelity is None else level_of(read.fidelity))
        if entry.chosen is not None:
            source = chosen_source(entry.chosen, reader, level)
            if entry.order is not None:
                source = _ordered(source, entry.chosen, bound_to(entry.order, reader))
        elif not _is_prompt(read):
            source = Source((parse_selector(read.read).name,), level, fixed=True)
        elif agent is not None and prompt:
            source = Source((prompt_key(agent),), level, fixed=True)
        else:
            continue
        tolerance = usual_tolerance if read.tolerance is None else read.tolerance
        source = replace(source, begin=read.begin, end=read.end, index=index, tolerance=tolerance)
        yield _blended(source, read.recompute_share or usual_share)


def _blended(source: Source, share: float) -> Source:
    """A blended source knows its share; where all is encoded again nothing is left to blend."""
    if source.fidelity != "blended":
        return source
    return replace(source, fidelity="exact") if share == 1 else replace(source, recompute_share=share)


def chosen_source(chosen: Selection, reader: Reader, fidelity: Fidelity) -> Source:
    """The selected instances as a source, with what it waits for."""
    keys = tuple(chosen.addresses(reader.member, reader.agent, reader.round))
    if chosen.target.fixed:
        return Source(keys, fidelity, fixed=True)
    if chosen.loop is not None:
        return Source(keys, fidelity, False, waits=(end_unit(chosen.loop),), num_rounds=_num_rounds(chosen))
    if chosen.vote is None:
        return Source(keys, fidelity, fixed=False, waits=keys)
    settled = chosen.candidates()
    waits = (vote_unit(chosen.vote), *(key for key in keys if key not in settled))
    rounds = len(keys) // len(chosen.target.members or (None,))
    return Source(keys, fidelity, fixed=False, vote=chosen.vote, num_chosen=rounds, waits=waits)


def _num_rounds(chosen: Selection) -> int:
    return chosen.target.rounds or 0 if chosen.loop is not None and chosen.round == "last" else 0


def _ordered(source: Source, chosen: Selection, order: Bound) -> Source:
    places = {chosen.target.address(m, r): m for m in chosen.target.members or () for r in _rounds_of(chosen.target)}
    members = tuple(places[key] for key in source.keys)
    return replace(source, order=order, members=members)


def _rounds_of(target: Shape) -> Iterable[int | None]:
    return (None,) if target.rounds is None else range(1, target.rounds + 1)


def bound_to(meant: Meant, reader: Reader) -> Bound:
    """The expression as this reader sees it."""
    uses = []
    for target, reference in zip(meant.targets, meant.expression.references, strict=True):
        if isinstance(target, str):
            uses.append(Use((target,), reference.value, many=False))
            continue
        keys = tuple(target.addresses(reader.member, reader.agent, reader.round))
        waits = () if target.target.fixed else keys if target.loop is None else (end_unit(target.loop),)
        width = target.num_members(reader.member, reader.agent)
        uses.append(Use(keys, reference.value, target.many, width, _num_rounds(target), waits))
    return Bound(meant.expression, tuple(uses), reader.own, meant.loc)


def waits_of(sources: Iterable[Source]) -> tuple[str, ...]:
    """The units that must be there (or enough of them) before `sources` can be read, each once."""
    return tuple(dict.fromkeys(unit for source in sources for unit in source.waits))
