"""What one run will read next: its instances to come, when, how likely, and under which views, as far as is known.

`look` is asked again whenever the run has moved. What was found out of a view stays, so that each look costs what is
new, besides one pass over the step graph. What calls have read and made and none will read any more is told, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from laban.cluster.leftovers import Ahead, Left, Leftovers
from laban.cluster.view_tree import Spot, ViewTree
from laban.cluster.workflow.children import outermost_key
from laban.cluster.workflow.facts import role_of
from laban.cluster.workflow.graph import Node
from laban.cluster.workflow.lookahead_likelihoods import Likelihoods
from laban.cluster.workflow.lookahead_reference import INF as NEVER
from laban.cluster.workflow.reading import Expectation
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import ReadRef, ReadyStep
from laban.cluster.workflow.timing import StepHistory, Timing
from laban.kvstore.encodings import EncodingId, EncodingSpec
from laban.kvstore.uses import Use

MAX_STEPS = 8  # looked ahead
MAX_READERS = 256  # of one run, the soonest
MAX_USES = 4096  # encodings of one run
LARGE = 200  # instances: the look-ahead of more takes long to begin
CERTAIN = 0.999


class Steps(Protocol):
    """The run's steps as `cluster.execution.Execution` has them. Addresses are the outermost run's."""

    def begun_s(self, address: str) -> float | None:
        """When a step that runs began, in monotonic seconds."""

    def queued_reads(self, address: str) -> Sequence[ReadRef] | None:
        """What a step reads that has begun and whose call has not; None for any other."""

    def open_reads(self, address: str) -> Sequence[ReadRef] | None:
        """What a step's call reads that has begun and not ended; None for any other."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A call to come: `spot` is as much of its view as is certain, all of it if `whole`. `in_s` is from the look on."""

    address: str
    steps: int
    in_s: float
    likelihood: float
    spot: Spot
    encodings: Sequence[tuple[EncodingId, bool]]  # read there, and whether fixed
    whole: bool
    namespace: str  # of its model's encodings


@dataclass(frozen=True, slots=True)
class Look:
    """`uses` are from the look on. `readers` have not begun yet, the soonest first. `again_s`: until the first of what
    runs should have ended; if it has not by then, things will be later than they seemed. `over` is what the run will
    not read any more, each told once."""

    uses: Mapping[EncodingId, Use]
    readers: Sequence[Reader]
    again_s: float | None
    over: Left = field(default_factory=dict)


class RunOutlook:
    """Lives in the event loop of the run."""

    def __init__(
        self, run: Run, tree: ViewTree, steps: Steps, history: StepHistory, likelihoods: Likelihoods, rank: int
    ) -> None:
        self._run = run
        self._steps = steps
        self._history = history
        self._likelihoods = likelihoods
        self._rank = rank
        self._tree = tree
        self._fixed: set[str] = set()
        self._levels: dict[str, _Level] = {}
        varying = {key for key, message in run.messages.items() if message.varies}
        self._leftovers = Leftovers(varying, self._fixed)
        self._has_inner = any(node.kind == "workflow" for node in run.graph.nodes.values())
        self.unprepared: list[Run] = []
        """Large runs, left out of the last look: let `Run.begin_look_ahead` do its work, in any thread, first."""

    @property
    def specs(self) -> Mapping[EncodingId, EncodingSpec]:
        return self._tree.specs

    def look(self, now_s: float) -> Look:
        self.unprepared = []
        before, self._levels = self._levels, {}
        found: list[_Found] = []
        self._look_at(self._run, "", now_s, before, found)
        found.sort(key=lambda each: (each.in_s, each.steps))
        uses = _Uses()
        readers: list[Reader] = []
        num_left = MAX_READERS
        for each in found:
            if num_left == 0 or len(uses.found) >= MAX_USES:
                break
            if each.running:
                num_left -= each.level.add_queued(each, self._tree, uses)
                continue
            num_left -= 1
            reader = each.level.reader(each, self._tree, uses)
            if reader is not None:
                readers.append(reader)
        ends_s = [level.timing.next_end_s for level in self._levels.values() if level.timing.next_end_s is not None]
        return Look(uses.as_uses(self._rank), readers, min(ends_s, default=None), self._over())

    def note(self, step: ReadyStep, worker_id: str) -> None:
        """A step's call has ended at a worker."""
        self._leftovers.note(step, worker_id)

    def end(self) -> Left:
        """The run has ended: what is over now."""
        return self._leftovers.take(self._tree, None)

    def _over(self) -> Left:
        level = self._levels.get("")
        # Under which views a run within will read what it is given, and by what name, nobody knows before.
        if level is None or self._has_inner or not self._leftovers.are_any:
            return {}
        ahead = level.ahead(self._tree)
        return {} if ahead is None else self._leftovers.take(self._tree, ahead)

    def _look_at(
        self, run: Run, path: str, now_s: float, before: dict[str, _Level], found: list[_Found]
    ) -> float | None:
        """Collect what may read next, inner runs' first; returns how long the run is expected to go on."""
        inner_s: dict[str, float] = {}
        for address, inner in run.inner_runs():
            left_s = self._look_at(inner, f"{path}{address}/", now_s, before, found)
            if left_s is not None:
                inner_s[address] = left_s
        level = before.get(path)
        if level is None or level.run is not run:
            if not run.looks_ahead and len(run.graph.nodes) > LARGE:
                self.unprepared.append(run)
                return None
            level = _Level(run, path, self._run, self._steps, self._fixed, self._likelihoods)
        self._levels[path] = level
        run.look_ahead(self._likelihoods)
        level.timing.update(self._history, now_s, level.begun_s, inner_s)
        found += level.soonest()
        return level.timing.ends_s()


@dataclass(frozen=True, slots=True)
class _Found:
    level: _Level
    number: int
    steps: int
    in_s: float
    likelihood: float
    running: bool


@dataclass(slots=True)
class _Awaited:
    """One instance to come, and the messages that it may read. `spot` None: its first read is not known yet."""

    expected: Expectation
    keys: frozenset[str]
    spot: Spot | None = None
    encodings: list[tuple[EncodingId, bool]] = field(default_factory=list)


class _Level:
    """The run itself, or one within it: `path` is put before its addresses."""

    def __init__(
        self, run: Run, path: str, outermost: Run, steps: Steps, fixed: set[str], likelihoods: Likelihoods
    ) -> None:
        self.run = run
        self._path = path
        self._steps = steps
        self._fixed = fixed
        fixed.update(outermost_key(path, key) for key in run.messages)
        nodes = list(run.graph.nodes.values())
        self._nodes = nodes
        self._ahead = run.look_ahead(likelihoods)
        self.timing = Timing(outermost.graph.workflow.name, self._ahead, [node.kind for node in nodes], path)
        self._reads = np.array([node.kind != "external" for node in nodes], bool)  # keys and values, that is
        self._apart = {key for node in nodes for s in node.sources if s.fidelity != "exact" for key in s.keys}
        self._awaited: dict[int, _Awaited] = {}

    def begun_s(self, address: str) -> float | None:
        return self._steps.begun_s(self._path + address)

    def soonest(self) -> list[_Found]:
        steps, in_s = self._ahead.steps(), self.timing.begins_s()
        likely, running = self._ahead.likely(), self._ahead.running
        numbers = np.flatnonzero((steps <= MAX_STEPS) & self._reads)
        if len(numbers) > MAX_READERS:  # those that run stand first, and count only where their calls still wait
            num_most = MAX_READERS + int(running[numbers].sum())
            numbers = numbers[np.lexsort((steps[numbers], in_s[numbers]))[:num_most]]
        columns = (numbers, steps[numbers], in_s[numbers], likely[numbers], running[numbers])
        return [_Found(self, *each) for each in zip(*(column.tolist() for column in columns), strict=True)]

    def add_queued(self, found: _Found, tree: ViewTree, uses: _Uses) -> bool:
        """Put down what an instance reads that has begun; returns whether its call still waits."""
        self._awaited.pop(found.number, None)
        node = self._nodes[found.number]
        reads = self._steps.queued_reads(self._path + node.address)
        if reads is None:
            return False
        spot = self._placed(None, reads, role_of(node), tree.of(node.model, node.adapter))
        uses.add_all([] if spot is None else spot.encodings(), found)
        return True

    def reader(self, found: _Found, tree: ViewTree, uses: _Uses) -> Reader | None:
        """Put down what an instance will read. Returns it if something of its view is known."""
        node = self._nodes[found.number]
        tree = tree.of(node.model, node.adapter)
        awaited = self._await(found.number)
        new = awaited.expected.advance()
        whole = awaited.expected.whole
        if node.kind == "workflow":  # under which views its steps will read what it is given nobody knows yet
            homes = ((tree.home(self._outside(ref)), ref.key in self._fixed) for ref in new)
            awaited.encodings += [(encoding_id, fixed) for encoding_id, fixed in homes if encoding_id is not None]
            uses.add_all(awaited.encodings, found)
            return None
        self._place(awaited, new, node, tree)
        uses.add_all(awaited.encodings, found)
        if not whole:
            for ref, share, is_next in awaited.expected.possible():
                self._add_possible(self._outside(ref), share, is_next, awaited.spot, found, tree, uses)
        if awaited.spot is None:
            return None
        address = self._path + node.address
        return Reader(
            address,
            found.steps,
            found.in_s,
            found.likelihood,
            awaited.spot,
            awaited.encodings,
            whole,
            tree.namespace,
        )

    def ahead(self, tree: ViewTree) -> Ahead | None:
        """What may be read from here on, by whatever has not ended; None if that is too much to say. Of a run without
        others within it."""
        running = self._ahead.running
        numbers = np.flatnonzero((self._ahead.steps() < NEVER) & self._reads)
        ahead = Ahead(self._ahead.read_keys(), self._apart, is_deep=len(numbers) > MAX_READERS)
        if ahead.is_deep:
            numbers = numbers[running[numbers]]
            if len(numbers) > MAX_READERS:
                return None
        for number in numbers.tolist():
            node = self._nodes[number]
            own_tree = tree.of(node.model, node.adapter)
            if running[number]:
                reads = self._steps.open_reads(self._path + node.address)
                spot = None if reads is None else self._placed(None, reads, role_of(node), own_tree)
            else:
                awaited = self._await(number)
                self._place(awaited, awaited.expected.advance(), node, own_tree)
                spot = awaited.spot
                if not awaited.expected.whole:
                    ahead.add_open(None if spot is None else spot.encoding_id, awaited.keys)
            if spot is not None:
                ahead.encodings.update(encoding_id for encoding_id, _ in spot.encodings())
        return ahead

    def _await(self, number: int) -> _Awaited:
        awaited = self._awaited.get(number)
        if awaited is None:
            node = self._nodes[number]
            keys = frozenset(key for source in node.sources for key in source.keys)
            awaited = self._awaited[number] = _Awaited(self.run.expectation(node.address), keys)
        return awaited

    def _place(self, awaited: _Awaited, new: Sequence[ReadRef], node: Node, tree: ViewTree) -> None:
        """Go on with what has become certain."""
        if new or (awaited.spot is None and awaited.expected.whole):
            awaited.spot = self._placed(awaited.spot, [self._outside(ref) for ref in new], role_of(node), tree)
            awaited.encodings = [] if awaited.spot is None else awaited.spot.encodings()

    def _add_possible(
        self, ref: ReadRef, share: float, is_next: bool, spot: Spot | None, found: _Found, tree: ViewTree, uses: _Uses
    ) -> None:
        fixed = ref.key in self._fixed
        encoding_id = tree.home(ref) if ref.fidelity != "exact" else None
        if is_next:
            role = tree.role_of(ref)
            spot = tree.root(role) if spot is None and role is not None else spot
            after = None if spot is None else tree.after(spot, ref, fixed=fixed)
            encoding_id = None if after is None else after.encoding_id
        if encoding_id is not None:
            uses.add(encoding_id, fixed, found.steps, found.in_s, found.likelihood * share)

    def _placed(self, spot: Spot | None, reads: Sequence[ReadRef], own_role: str, tree: ViewTree) -> Spot | None:
        """The spot after these reads, as far as they can be placed."""
        if spot is None:
            role = tree.role_of(reads[0]) if reads else own_role
            spot = None if role is None else tree.root(role)
        for ref in reads:
            after = None if spot is None else tree.after(spot, ref, fixed=ref.key in self._fixed)
            if after is None:
                break
            spot = after
        return spot

    def _outside(self, ref: ReadRef) -> ReadRef:
        return ReadRef(outermost_key(self._path, ref.key), ref.fidelity, ref.begin, ref.end) if self._path else ref


class _Uses:
    """Of each encoding: when it is expected to be read first, if it is read at all, and how likely that is."""

    def __init__(self) -> None:
        self.found: dict[EncodingId, tuple[int, float, float, bool]] = {}  # steps, in_s, likelihood, fixed

    def add_all(self, encodings: Sequence[tuple[EncodingId, bool]], found: _Found) -> None:
        for encoding_id, fixed in encodings:
            self.add(encoding_id, fixed, found.steps, found.in_s, found.likelihood)

    def add(self, encoding_id: EncodingId, fixed: bool, steps: int, in_s: float, likelihood: float) -> None:
        """Later uses come later."""
        known = self.found.get(encoding_id)
        if known is None:
            self.found[encoding_id] = (steps, in_s, likelihood, fixed)
        elif known[2] < CERTAIN:
            sooner, is_fixed = known[2], known[3]
            later = (1.0 - sooner) * likelihood
            either = max(sooner + later, 1e-9)
            at_s = (sooner * known[1] + later * in_s) / either
            self.found[encoding_id] = (min(steps, known[0]), at_s, either, fixed or is_fixed)

    def as_uses(self, rank: int) -> dict[EncodingId, Use]:
        return {
            encoding_id: Use(steps, in_s, likelihood, fixed, rank)
            for encoding_id, (steps, in_s, likelihood, fixed) in self.found.items()
        }
