"""What a read selects: a selector, the shape of the step it names and of the reader -> instances.

A step's shape is its members (agents or numbers, if it fans out) and its rounds (if it has any). A
selector gives the member first, then the round; a step with only one of the two takes one argument.
Left out, the member is `all` and the round is `last`. See docs/workflow-language.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laban.cluster.workflow.diagnostics import suggest
from laban.cluster.workflow.selectors import Selector, Winner

Member = str | int
SEVERAL = ("all", "others", "batch")  # members that a read may name at once


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a step, or of a fixed message with an instance for each item of a list.

    `members` None: no fan-out; `rounds` None: no rounds. `agent`: the one that all instances run as, if any. `over`:
    whose items or members the members stand for, one for one: a list input, or itself. `batch`: what the members are
    batches of, and their size. `loop`: the one that its rounds are, of which the last ones may not be run.
    """

    step: str
    members: tuple[Member, ...] | None = None
    rounds: int | None = None
    agent: str | None = None
    over: str | None = None
    batch: tuple[str, int] | None = None
    fixed: bool = False
    loop: str | None = None

    @property
    def num_instances(self) -> int:
        return (1 if self.members is None else len(self.members)) * (self.rounds or 1)

    def address(self, member: Member | None, round_: int | None) -> str:
        parts = [str(part) for part in (member, round_) if part is not None]
        return f"{self.step}[{','.join(parts)}]" if parts else self.step

    def keys(self) -> tuple[str, ...]:
        """The addresses of all members; of something without rounds."""
        return tuple(self.address(member, None) for member in self.members or (None,))

    def members_named(self, kind: type) -> tuple[Member, ...]:
        """Who `self` can be when members are of `kind`: agents by name, numbers by number."""
        if self.members and isinstance(self.members[0], kind):
            return self.members
        return (self.agent,) if kind is str and self.agent is not None else ()


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a vote decides: one of `members` of the step `over`, in `round`."""

    over: str
    members: tuple[Member, ...]
    round: int | None


class ReadProblem(ValueError):
    """A read that means nothing here: why, and what would."""

    def __init__(self, message: str, expected: str = "") -> None:
        self.message = message
        self.expected = expected
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Selection:
    """A read with its defaults filled in, checked against `target`; `own` if the reader reads its own step, `inside`
    if both stand in one loop.

    `batch_size` is the reader's, of the member `batch`.
    """

    target: Shape
    member: Member | Winner | None  # "all", "self", "others", "batch", a member; None: the step does not fan out
    round: str | int | None  # "all", "previous", "current", "last", a number; None: the step has no rounds
    own: bool
    inside: bool
    ballot: Ballot | None = None  # of a Winner
    batch_size: int = 0

    @property
    def vote(self) -> str | None:
        """The step whose winner is meant, if one is."""
        return self.member.vote if isinstance(self.member, Winner) else None

    @property
    def loop(self) -> str | None:
        """The loop whose end the read waits for, if it does."""
        return self.target.loop if not self.inside and self.round in ("last", "all") else None

    @property
    def many(self) -> bool:
        """Whether it may select several instances for one reader."""
        return self.member in SEVERAL or self.round == "all"

    def candidates(self) -> frozenset[str]:
        """Those of the selected instances that the vote itself waits for."""
        if self.ballot is None or self.ballot.over != self.target.step:
            return frozenset()
        return frozenset(self.target.address(member, self.ballot.round) for member in self.ballot.members)

    def width(self) -> int:
        """At most this many instances are selected."""
        one = self.member is None or self.member not in SEVERAL
        members = 1 if one and not isinstance(self.member, Winner) else len(self.target.members or ())
        members = min(members, self.batch_size) if self.member == "batch" else members
        return members * ((self.target.rounds or 1) if self.round in ("all", "last") else 1)

    def addresses(self, reader_member: Member | None, reader_agent: str | None, reader_round: int | None) -> list[str]:
        """The instances selected by one instance of the reader, rounds first, then members, each in order.

        For a winner: every candidate; for the last round of a loop: every round.
        """
        rounds = self._rounds(reader_round)
        members = self._members(reader_member, reader_agent)
        return [self.target.address(member, round_) for round_ in rounds for member in members]

    def num_members(self, reader_member: Member | None, reader_agent: str | None) -> int:
        """How many members of each round one instance of the reader selects."""
        return len(self._members(reader_member, reader_agent))

    def _rounds(self, current: int | None) -> Sequence[int | None]:
        if self.target.rounds is None:
            return (None,)
        now = current or 0
        if isinstance(self.round, int):
            late = self.round >= now if self.own else self.inside and self.round > now
            return () if late else (self.round,)
        if self.round in ("all", "last"):
            last = now - 1 if self.own else now if self.inside else self.target.rounds
            return range(1, last + 1)
        assert current is not None  # `previous` and `current` are refused where the reader has no rounds
        wanted = current - 1 if self.round == "previous" else current
        return (wanted,) if wanted >= 1 else ()

    def _members(self, member: Member | None, agent: str | None) -> Sequence[Member | None]:
        known = self.target.members
        if known is None:
            return (None,)
        if self.member == "all" or isinstance(self.member, Winner):
            return known
        if self.member == "batch":
            assert isinstance(member, int)
            return known[(member - 1) * self.batch_size : member * self.batch_size]
        if self.member in ("self", "others"):
            me = _me(member, agent, known)
            return [m for m in known if (m == me) == (self.member == "self")]
        return (self.member,)


def _me(member: Member | None, agent: str | None, known: tuple[Member, ...]) -> Member | None:
    return agent if isinstance(known[0], str) else member


def resolve(selector: Selector, target: Shape, reader: Shape, ballots: Mapping[str, Ballot]) -> Selection:
    """The selection that `selector`, which names `target`, means to `reader`. Raises ReadProblem."""
    own = target.step == reader.step
    member, round_ = _arguments(selector, target)
    chosen = None if target.members is None else _member(member, target, reader, ballots)
    if isinstance(chosen, Winner) and round_ is None and ballots[chosen.vote].over == target.step:
        round_ = ballots[chosen.vote].round
    when = None if target.rounds is None else _round(round_, target, reader, own)
    if own and target.rounds is None:
        raise ReadProblem(f"step '{target.step}' reads itself", "another step, or `rounds` and an earlier round")
    ballot = ballots[chosen.vote] if isinstance(chosen, Winner) else None
    inside = target.loop is not None and target.loop == reader.loop
    batch_size = reader.batch[1] if chosen == "batch" and reader.batch else 0
    return Selection(target, chosen, when, own, inside, ballot, batch_size)


def _form(shape: Shape) -> str:
    dims = [word for word, has in (("member", shape.members), ("round", shape.rounds)) if has]
    return f"{shape.step}[{','.join(dims)}]" if dims else shape.step


def _arguments(selector: Selector, target: Shape) -> tuple[Member | Winner | None, Member | Winner | None]:
    given = selector.arguments
    num_dims = (target.members is not None) + (target.rounds is not None)
    if len(given) > num_dims:
        what = ["neither fans out nor has rounds", "has no rounds" if target.members else "does not fan out"][num_dims]
        raise ReadProblem(f"step '{target.step}' {what}", _form(target))
    first = given[0] if given else None
    if target.members is None:
        return None, first
    return first, given[1] if len(given) == 2 else None


def _member(
    given: Member | Winner | None, target: Shape, reader: Shape, ballots: Mapping[str, Ballot]
) -> Member | Winner:
    known = target.members
    assert known is not None
    if given is None or given == "all":
        return "all"
    if isinstance(given, Winner):
        ballot = ballots.get(given.vote)
        if ballot is None:
            raise ReadProblem(
                f"'{given.vote}' is not a step that votes", suggest(given.vote, ballots) or "a step with `vote`"
            )
        if ballot.members != known:
            raise ReadProblem(
                f"'{given.vote}' votes over the members of '{ballot.over}'", f"a step with the members of {ballot.over}"
            )
        return given
    if given in ("previous", "current", "last"):
        raise ReadProblem(f"'{given}' is a round", f"{target.step}[all,{given}]" if target.rounds else _form(target))
    if given == "item":
        if target.over is None or target.over != reader.over:
            raise ReadProblem(
                "'item' means nothing here: the two do not fan out over the same list",
                f"a step with the for_each of '{target.step}', or all",
            )
        return "self"
    if given == "batch":
        if reader.batch is None or reader.batch[0] not in (target.step, target.over):
            raise ReadProblem(
                f"'batch' means nothing to a reader that is not for batches of '{target.step}'",
                f"for_each: {{batch: {target.step}, size: 8}}, or all",
            )
        return "batch"
    if given in ("self", "others"):
        mine = reader.members_named(type(known[0]))
        if not mine:
            raise ReadProblem(f"'{given}' means nothing to a reader with no member in common", "all, or one member")
        missing = [m for m in mine if m not in known]
        if missing:
            raise ReadProblem(
                f"'{given}' means nothing to '{missing[0]}', which is not a member of '{target.step}'",
                f"all, or one of {_some(known)}",
            )
        return given
    if given not in known:
        raise ReadProblem(
            f"'{given}' is not a member of '{target.step}'",
            suggest(str(given), [str(m) for m in known]) if isinstance(known[0], str) else f"1 to {len(known)}",
        )
    return given


def _some(members: tuple[Member, ...]) -> str:
    shown = ", ".join(str(m) for m in members[:8])
    return shown if len(members) <= 8 else f"{shown}, ..."


def _round(given: Member | Winner | None, target: Shape, reader: Shape, own: bool) -> str | int:
    rounds = target.rounds
    assert rounds is not None
    words = "all, previous, current, last, or a number"
    if own and given in (None, "last", "current"):
        raise ReadProblem(f"step '{target.step}' reads itself in the same round", "round `previous` or `all`")
    if target.loop is not None and not own:
        if target.loop != reader.loop:
            if given in ("previous", "current"):
                raise ReadProblem(
                    f"'{given}' means nothing outside of the loop '{target.loop}'", "all, last, or a number"
                )
            given = "last" if given is None else given
        elif given == "last":
            raise ReadProblem("which round is the last is not known inside of the loop", "current, previous or all")
        elif given is None:
            given = "current"
    if given == "last" and target.loop is not None:
        return "last"
    if given in (None, "last"):
        return rounds
    if given == "all":
        return "all"
    if isinstance(given, int):
        if given > rounds or (own and given == rounds):
            raise ReadProblem(
                f"round {given} of '{target.step}', which has {rounds}" + (", comes after every reader" if own else ""),
                f"1 to {rounds - 1 if own else rounds}",
            )
        return given
    if given not in ("previous", "current"):
        shown = f"winner({given.vote})" if isinstance(given, Winner) else given
        raise ReadProblem(f"'{shown}' is not a round", words)
    if reader.rounds is None:
        raise ReadProblem(f"'{given}' means nothing to a reader without rounds", "all, last, or a number")
    furthest = reader.rounds - (given == "previous")
    if furthest > rounds:
        raise ReadProblem(
            f"'{given}' reaches round {furthest} of '{target.step}', which has {rounds}", f"{furthest} rounds or more"
        )
    return str(given)
