"""How much memory for keys and values a run will need at once, estimated before it begins and as it goes on.

An encoding is needed from when it is made, or first read, to its last reader. What is needed at one level of the step
graph, which is how many steps lie before it, is needed at once; the run needs the most of all levels to come. What a
step generates is taken to be as long as that step's messages have been, or as `max_tokens` allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from types import MappingProxyType

from laban.cluster.admission import Demand
from laban.cluster.messages import MessageBook
from laban.cluster.view_tree import Spot, ViewTree
from laban.cluster.views import Message
from laban.cluster.workflow.children import outermost_key
from laban.cluster.workflow.facts import role_of
from laban.cluster.workflow.fidelity import Fidelity
from laban.cluster.workflow.graph import Node, Source, StepGraph
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import ReadRef
from laban.cluster.workflow.timing import StepHistory
from laban.kvstore.encodings import EncodingId

FRAME_TOKENS = 8  # around what is generated
TOOL_TOKENS = 256  # of a tool's answer, or of a message that is not known yet


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long messages are, or may become, in a run and those within it. `workflow` is the outermost one's name.

    All but the names are of one model, which the steps call whose `model` is among `models`; None: all steps.
    """

    workflow: str
    book: MessageBook
    tree: ViewTree
    history: StepHistory
    bytes_per_token: int
    models: frozenset[str] | None = None

    def calls(self, node: Node) -> bool:
        return node.kind != "external" and (self.models is None or node.model in self.models)


NO_OTHERS: Mapping[str, Sizes] = MappingProxyType({})


class RunDemand:
    """What one run needs at once: at first a bound, which takes no time to find, its profile once that is asked for.
    Made in any thread before the run begins; from then on it is the event loop's."""

    def __init__(self, run: Run, sizes: Sizes, others: Mapping[str, Sizes] = NO_OTHERS) -> None:
        """`sizes` are the default model's, `others` those of the other models that the run may call, by name."""
        self._run, self._sizes, self._others = run, sizes, others
        self._profile: DemandProfile | None = None
        self._other_profiles: dict[str, DemandProfile] = {}
        self.is_rough = True
        more = {model: Demand(_most_tokens(run, each) * each.bytes_per_token) for model, each in others.items()}
        self.bound = Demand(_most_tokens(run, sizes) * sizes.bytes_per_token, others=more)

    def refine(self) -> None:
        """In any thread."""
        self.is_rough = False  # whatever comes of it: it is not tried twice
        self._other_profiles = {model: DemandProfile(self._run, each) for model, each in self._others.items()}
        self._profile = DemandProfile(self._run, self._sizes)

    def now(self) -> Demand:
        """What the steps still to come, and those that run, need at once."""
        if self._profile is None:
            return self.bound
        more = {model: profile.now() for model, profile in self._other_profiles.items()}
        return replace(self._profile.now(), others=more) if more else self._profile.now()


def _most_tokens(run: Run, sizes: Sizes) -> int:
    """As if every root, read and answer were the longest message, and encoded anew each time; runs within left out."""
    num_read, longest, seen = 0, TOOL_TOKENS, set[tuple[str, str | None]]()
    every = sizes.models is None
    for message in sizes.book.messages.values():
        longest = max(longest, message.home.num_tokens)
    for address, node in run.graph.nodes.items():
        if not every and not sizes.calls(node):
            continue
        num_read += 2 + sum([len(source.keys) for source in node.sources])
        if node.kind == "generate" and (node.step.step, node.agent) not in seen:
            seen.add((node.step.step, node.agent))
            longest = max(longest, run.sampling(address).max_tokens)
    return num_read * (longest + FRAME_TOKENS)


class DemandProfile:
    """Of one run, and of those within it once they have begun. `path` is the run's place in the outermost one, as in
    `research[2]/`."""

    def __init__(self, run: Run, sizes: Sizes, path: str = "") -> None:
        self._run, self._sizes, self._path = run, sizes, path
        self._inner: dict[str, DemandProfile] = {}
        self._level_of = levels(run.graph)
        self._num_open = [0] * (1 + max((self._level_of[a] for a in run.graph.nodes), default=0))
        for address in run.graph.nodes:
            self._num_open[self._level_of[address]] += 1
        self._num_seen = self._level = 0
        self._needed = _Views(run, sizes, path).needed(self._level_of)
        changes = [0] * (len(self._num_open) + 1)
        for num_tokens, begin, end, _ in self._needed:
            changes[begin] += num_tokens
            changes[end + 1] -= num_tokens
        tokens = list(accumulate(changes[:-1]))
        worst = len(tokens) - 1
        self._worst = [worst] * len(tokens)  # of each level and those after it, the one that needs the most
        for level in reversed(range(len(tokens))):
            worst = level if tokens[level] >= tokens[worst] else worst
            self._worst[level] = worst
        self._demands: dict[int, Demand] = {}

    def now(self) -> Demand:
        """What the steps still to come, and those that run, need at once."""
        ended = self._run.ended()
        for unit in islice(reversed(ended), len(ended) - self._num_seen):
            if unit in self._run.graph.nodes:
                self._num_open[self._level_of[unit]] -= 1
        self._num_seen = len(ended)
        while self._level < len(self._num_open) - 1 and self._num_open[self._level] == 0:
            self._level += 1
        found = self._at(self._worst[self._level])
        before, self._inner = self._inner, {}
        for address, run in self._run.inner_runs():
            inner = before.get(address) or DemandProfile(run, self._sizes, f"{self._path}{address}/")
            self._inner[address] = inner
            more = inner.now()
            found = Demand(found.own_bytes + more.own_bytes, {**found.shared, **more.shared})
        return found

    def _at(self, level: int) -> Demand:
        if level not in self._demands:
            own, shared = 0, dict[EncodingId, int]()
            for num_tokens, begin, end, encoding_id in self._needed:
                if begin <= level <= end:
                    if encoding_id is None:
                        own += num_tokens * self._sizes.bytes_per_token
                    else:
                        shared[encoding_id] = num_tokens * self._sizes.bytes_per_token
            self._demands[level] = Demand(own, shared)
        return self._demands[level]


def levels(graph: StepGraph) -> dict[str, int]:
    """How many steps lie before each unit on its longest way, every branch and round taken to be run."""
    found: dict[str, int] = {}
    votes = {vote.unit: vote for vote in graph.votes.values()}
    for unit in graph.order:
        if unit in graph.loops:
            found[unit] = max(found[gate] for gate in graph.loops[unit].gates)
            continue
        node = graph.nodes.get(unit)
        each = node or graph.gates.get(unit)
        level = -1
        for wait in votes[unit].waits if each is None else each.waits:
            level = max(level, found[wait])
        for use in () if each is None else each.gates:
            level = max(level, found[use.gate])
        found[unit] = level if node is None else level + 1
    return found


Needed = tuple[int, int, int, EncodingId | None]
"""An encoding, real or to come: its tokens, and the first and the last level at which it is needed. Its id if it is of
what was written before the run began: others may share it."""

_NOWHERE = -1


class _Views:
    """All views of a run, put together from names where the messages are not there yet.

    A place is where a view has come to after some reads. Each has a number: of the encoding that the last read reads,
    if that is not a direct one, and of the real place as long as all before it was written before the run began.
    """

    def __init__(self, run: Run, sizes: Sizes, path: str) -> None:
        self._run, self._sizes, self._path = run, sizes, path
        self._places: dict[tuple[int, str, Fidelity, int | None, int | None], int] = {}
        self._roots: dict[str, int] = {}
        self._homes: dict[str, int] = {}
        self._lengths: dict[str, int] = {}
        self._usual: dict[tuple[str, str | None], int] = {}  # of a step's generated messages
        # By number:
        self._spots: list[Spot | None] = []
        self._sizes_of: list[int] = []
        self._begins: list[int] = []
        self._ends: list[int] = []  # _NOWHERE: not needed itself

    def needed(self, level_of: Mapping[str, int]) -> list[Needed]:
        for address in self._run.graph.order:
            node = self._run.graph.nodes.get(address)
            if node is not None and self._sizes.calls(node):
                self._add(node, level_of[address])
        ids = (None if spot is None else spot.encoding_id for spot in self._spots)
        every = zip(self._sizes_of, self._begins, self._ends, ids, strict=True)
        return [each for each in every if each[2] != _NOWHERE and each[0] > 0]

    def _add(self, node: Node, level: int) -> None:
        number = _NOWHERE
        for source in node.sources:
            for key in self._keys(source):
                if number == _NOWHERE:
                    number = self._root(self._role(key), level)
                number = self._after(number, key, source.fidelity, source.begin, source.end, level)
        if number == _NOWHERE:
            number = self._root(role_of(node), level)
        self._homes[node.address] = self._after(number, node.address, "exact", None, None, level)

    def _root(self, role: str, level: int) -> int:
        number = self._roots.get(role)
        if number is None:
            spot = self._sizes.tree.root(role)
            number = self._roots[role] = self._new(spot, spot.stop)
        self._need(number, level)
        return number

    def _after(self, number: int, key: str, fidelity: Fidelity, begin: int | None, end: int | None, level: int) -> int:
        """The place after one more read, which is needed at this level."""
        at = (number, key, fidelity, begin, end)
        found = self._places.get(at)
        if found is None:
            spot = self._spots[number]
            if spot is not None:
                known = key in self._run.messages
                ref = ReadRef(outermost_key(self._path, key), fidelity, begin, end)
                spot = self._sizes.tree.after(spot, ref, fixed=True) if known else None
            found = self._places[at] = self._new(spot, self._num_tokens(key, begin, end))
        self._need(self._home(key, level) if fidelity != "exact" else found, level)
        return found

    def _home(self, key: str, level: int) -> int:
        """The number of a message's own encoding, that direct reads read."""
        if key not in self._homes:
            message = self._message(key)
            if message is None:
                self._homes[key] = self._new(None, self._length(key))
            else:
                self._homes[key] = self._after(self._root(message.role, level), key, "exact", None, None, level)
        return self._homes[key]

    def _new(self, spot: Spot | None, num_tokens: int) -> int:
        self._spots.append(spot)
        self._sizes_of.append(num_tokens)
        self._begins.append(_NOWHERE)
        self._ends.append(_NOWHERE)
        return len(self._spots) - 1

    def _need(self, number: int, level: int) -> None:
        if self._ends[number] < level:
            self._ends[number] = level
        if not 0 <= self._begins[number] <= level:  # units come in the graph's order, not in that of their levels
            self._begins[number] = level

    def _keys(self, source: Source) -> tuple[str, ...]:
        """As many as will be read: of a vote the first candidate's, of a loop's last round the last ones."""
        if source.vote is not None:
            return source.keys[: source.num_chosen]
        return source.keys[-(len(source.keys) // source.num_rounds) :] if source.num_rounds else source.keys

    def _role(self, key: str) -> str:
        message, node = self._message(key), self._run.graph.nodes.get(key)
        return message.role if message is not None else "user" if node is None else role_of(node)

    def _num_tokens(self, key: str, begin: int | None, end: int | None) -> int:
        whole = self._length(key)
        return max(0, min(whole, whole if end is None else end) - (begin or 0))

    def _length(self, key: str) -> int:
        found = self._lengths.get(key)
        if found is None:
            message = self._message(key)
            found = FRAME_TOKENS + self._generated(key) if message is None else message.home.num_tokens
            self._lengths[key] = found
        return found

    def _generated(self, address: str) -> int:
        node = self._run.graph.nodes.get(address)
        if node is None or node.kind != "generate":
            return TOOL_TOKENS
        found = self._usual.get((node.step.step, node.agent))
        if found is None:
            most = self._run.sampling(address).max_tokens
            usual = self._sizes.history.tokens(self._sizes.workflow, self._path + address)
            found = most if usual is None else min(most, round(usual))
            self._usual[node.step.step, node.agent] = found
        return found

    def _message(self, key: str) -> Message | None:
        return self._sizes.book.messages.get(outermost_key(self._path, key) if self._path else key)
