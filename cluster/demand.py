"""How much memory for keys and values a run will need at once, estimated before it begins and as it goes on.

An encoding is needed from when it is made, or first read, to its last reader. What is needed at one level of the step
graph, which is how many steps lie before it, is needed at once; the run needs the most of all levels to come. What a
step generates is taken to be as long as that step's messages have been, or as `max_tokens` allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import NamedTuple

from laban.cluster.admission import Demand
from laban.cluster.messages import MessageBook
from laban.cluster.view_tree import Spot, ViewTree
from laban.cluster.views import Message
from laban.cluster.workflow.children import outermost_key
from laban.cluster.workflow.facts import role_of
from laban.cluster.workflow.graph import Fidelity, Node, Source, StepGraph
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.states import ReadRef
from laban.cluster.workflow.timing import StepHistory
from laban.kvstore.encodings import EncodingId

FRAME_TOKENS = 8  # around what is generated
TOOL_TOKENS = 256  # of a tool's answer, or of a message that is not known yet


@dataclass(slots=True)
class _Needed:
    """An encoding, real or to come: over which levels it is needed."""

    num_tokens: int
    begin: int
    end: int
    encoding_id: EncodingId | None = None  # of what was written before the run began: others may share it


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long messages are, or may become, in a run and those within it. `workflow` is the outermost one's name."""

    workflow: str
    book: MessageBook
    tree: ViewTree
    history: StepHistory
    bytes_per_token: int


class DemandProfile:
    """Of one run, and of those within it once they have begun. Made in any thread before the run begins; from then on
    it is the event loop's. `path` is the run's place in the outermost one, as in `research[2]/`."""

    def __init__(self, run: Run, sizes: Sizes, path: str = "") -> None:
        self._run, self._sizes, self._path = run, sizes, path
        self._inner: dict[str, DemandProfile] = {}
        self._level_of = levels(run.graph)
        self._num_open = [0] * (1 + max((self._level_of[a] for a in run.graph.nodes), default=0))
        for address in run.graph.nodes:
            self._num_open[self._level_of[address]] += 1
        self._num_seen = self._level = 0
        self._needed = _Views(run, sizes, path, self._level_of).needed()
        changes = [0] * (len(self._num_open) + 1)
        for each in self._needed:
            changes[each.begin] += each.num_tokens
            changes[each.end + 1] -= each.num_tokens
        tokens = list(accumulate(changes[:-1]))
        worst = accumulate(reversed(range(len(tokens))), lambda best, level: max(level, best, key=tokens.__getitem__))
        self._worst = list(worst)[::-1]  # of each level and those after it, the one that needs the most
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
            for each in self._needed:
                if each.begin <= level <= each.end:
                    if each.encoding_id is None:
                        own += each.num_tokens * self._sizes.bytes_per_token
                    else:
                        shared[each.encoding_id] = each.num_tokens * self._sizes.bytes_per_token
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
        each = graph.nodes.get(unit) or graph.gates.get(unit) or votes[unit]
        before = [found[wait] for wait in each.waits]
        before += [found[use.gate] for use in getattr(each, "gates", ())]
        found[unit] = max(before, default=-1) + (unit in graph.nodes)
    return found


class _Ref(NamedTuple):
    """As ReadRef, and faster."""

    key: str
    fidelity: Fidelity = "exact"
    begin: int | None = None
    end: int | None = None


_Place = tuple[int, Spot | None]
"""Where a view has come to: a number of its own, and the real place as long as all before it is known."""


class _Views:
    """All views of a run, put together from names where the messages are not there yet."""

    def __init__(self, run: Run, sizes: Sizes, path: str, level_of: Mapping[str, int]) -> None:
        self._run, self._sizes, self._path = run, sizes, path
        self._level_of = level_of
        self._places: dict[tuple[int, _Ref], _Place] = {}
        self._roots: dict[str, _Place] = {}
        self._found: dict[int, _Needed] = {}  # by the number of the place after it
        self._homes: dict[str, int] = {}
        self._lengths: dict[str, int] = {}
        self._usual: dict[tuple[str, str | None], int] = {}  # of a step's generated messages
        self._last = 0

    def needed(self) -> list[_Needed]:
        for address in self._run.graph.order:
            node = self._run.graph.nodes.get(address)
            if node is not None and node.kind != "external":
                self._add(node, self._level_of[address])
        return list(self._found.values())

    def _add(self, node: Node, level: int) -> None:
        refs = [
            _Ref(key, source.fidelity, source.begin, source.end)
            for source in node.sources
            for key in self._keys(source)
        ]
        place = self._root(self._role(refs[0].key) if refs else role_of(node), level)
        for ref in refs:
            place = self._after(place, ref, level)
        own = self._after(place, _Ref(node.address), level)
        self._homes[node.address] = own[0]

    def _root(self, role: str, level: int) -> _Place:
        if role not in self._roots:
            self._roots[role] = (self._new(), self._sizes.tree.root(role))
        number, spot = self._roots[role]
        if spot is not None and spot.encoding_id is not None:
            self._need(number, spot.stop, level, spot.encoding_id)
        return self._roots[role]

    def _after(self, place: _Place, ref: _Ref, level: int) -> _Place:
        """The place after one more read, which is needed at this level."""
        number, spot = place
        found = self._places.get((number, ref))
        if found is None:
            after = None
            if spot is not None and ref.key in self._run.messages:
                outside = ReadRef(outermost_key(self._path, ref.key), ref.fidelity, ref.begin, ref.end)
                after = self._sizes.tree.after(spot, outside, fixed=True)
            found = self._places[number, ref] = (self._new(), after)
        if ref.fidelity == "direct":
            self._need(self._home(ref.key, level), self._length(ref.key), level, None)
        else:
            after = found[1]
            self._need(found[0], self._num_tokens(ref), level, None if after is None else after.encoding_id)
        return found

    def _home(self, key: str, level: int) -> int:
        """The number of a message's own encoding, that direct reads read."""
        if key not in self._homes:
            message = self._message(key)
            if message is None:
                self._homes[key] = self._new()
            else:
                place = self._after(self._root(message.role, level), _Ref(key), level)
                self._homes[key] = place[0]
        return self._homes[key]

    def _need(self, number: int, num_tokens: int, level: int, encoding_id: EncodingId | None) -> None:
        known = self._found.get(number)
        if known is None:
            self._found[number] = _Needed(num_tokens, level, level, encoding_id)
        elif level > known.end:
            known.end = level
        elif level < known.begin:  # units come in the graph's order, not in that of their levels
            known.begin = level

    def _keys(self, source: Source) -> tuple[str, ...]:
        """As many as will be read: of a vote the first candidate's, of a loop's last round the last ones."""
        if source.vote is not None:
            return source.keys[: source.num_chosen]
        return source.keys[-(len(source.keys) // source.num_rounds) :] if source.num_rounds else source.keys

    def _role(self, key: str) -> str:
        message, node = self._message(key), self._run.graph.nodes.get(key)
        return message.role if message is not None else "user" if node is None else role_of(node)

    def _num_tokens(self, ref: _Ref) -> int:
        whole = self._length(ref.key)
        if ref.begin is None is ref.end:
            return whole
        return max(0, min(whole, whole if ref.end is None else ref.end) - (ref.begin or 0))

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

    def _new(self) -> int:
        self._last += 1
        return self._last
