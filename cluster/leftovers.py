"""What a run's calls have left with workers and none of its steps will read any more: to go first where room is short.

Only what is the run's own is told of, that is what its calls made and what varies with its inputs, and whatever was
encoded behind that. A prompt that it had in common with others is theirs to come back for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from laban.cluster.view_tree import Spot, ViewTree
from laban.cluster.workflow.states import ReadRef, ReadyStep
from laban.kvstore.encodings import EncodingId

MAX_NOTED = 1024  # steps whose views have not been gone through
MAX_PLACED = 2048  # reads and messages of those, in one look: some 20 to 40 ms of the event loop
MAX_LEFT = 4096  # encodings of one run

Left = Mapping[EncodingId, Collection[str]]
"""Encodings, and the workers whose calls read or made them."""


@dataclass(slots=True)
class Ahead:
    """What the steps to come may read, and those that run, under every view that they may have."""

    keys: Collection[str]  # of messages
    apart: Collection[str]  # of those, some are read wherever they are at home
    encodings: set[EncodingId] = field(default_factory=set)  # known to be read
    open_ends: dict[EncodingId | None, set[frozenset[str]]] = field(default_factory=dict)
    """Views that are known as far as this encoding (None: not at all), by the messages that they may go on with."""
    is_deep: bool = False  # not all views to come were looked at

    def add_open(self, end: EncodingId | None, keys: frozenset[str]) -> None:
        self.open_ends.setdefault(end, set()).add(keys)

    def may_read(self, left: _Left) -> bool:
        if left.encoding_id in self.encodings:
            return True
        if left.key not in self.keys:
            return False
        if left.is_home and left.key in self.apart:
            return True
        if any(key not in self.keys for key in left.own):
            return False
        ends = (None, *left.chain()) if self.open_ends else ()
        return self.is_deep or any(left.own <= keys for end in ends for keys in self.open_ends.get(end, ()))


@dataclass(slots=True)
class _Left:
    """An encoding of the message `key`. `own` are the run's own messages that it was encoded behind, and itself."""

    encoding_id: EncodingId
    key: str
    is_home: bool
    own: frozenset[str]
    before: Spot | None
    workers: set[str] = field(default_factory=set)

    def chain(self) -> Iterator[EncodingId]:
        """What it was read, or made, behind."""
        spot = self.before
        while spot is not None:
            if spot.encoding_id is not None:
                yield spot.encoding_id
            spot = spot.before


class Leftovers:
    """Of one run."""

    def __init__(self, varying: Collection[str], fixed: Collection[str]) -> None:
        """The keys of messages that vary with the run's inputs; and of all written before it began, as far as they are
        known when they are asked for."""
        self._own, self._fixed = set(varying), fixed
        self._noted: list[tuple[ReadyStep, str]] = []
        self._left: dict[EncodingId, _Left] = {}
        self._over: set[EncodingId] = set()

    def note(self, step: ReadyStep, worker_id: str) -> None:
        """A step has ended, its call at a worker; "": it has none."""
        self._own.add(step.address)
        if step.kind == "generate" and worker_id and len(self._noted) < MAX_NOTED and not self._is_full:
            self._noted.append((step, worker_id))

    @property
    def are_any(self) -> bool:
        return bool(self._noted or self._left)

    def take(self, tree: ViewTree, ahead: Ahead | None) -> Left:
        """What is over since the last call. Without `ahead`: as the run has ended, everything. Either looks at so many
        reads and no more; what an ended run has beyond these is not told, and goes when its turn comes."""
        num_steps = num_placed = 0
        for step, worker_id in self._noted:
            num_placed += len(step.reads) + 1
            if self._is_full or (num_steps and num_placed > MAX_PLACED):
                break
            self._go_through(step, worker_id, tree.of(step.model, step.adapter))
            num_steps += 1
        del self._noted[: None if ahead is None or self._is_full else num_steps]
        over = [left for left in self._left.values() if ahead is None or not ahead.may_read(left)]
        for left in over:
            del self._left[left.encoding_id]
            self._over.add(left.encoding_id)
        return {left.encoding_id: left.workers for left in over}

    @property
    def _is_full(self) -> bool:
        return len(self._left) + len(self._over) >= MAX_LEFT

    def _go_through(self, step: ReadyStep, worker_id: str, tree: ViewTree) -> None:
        role = tree.role_of(step.reads[0]) if step.reads else step.role
        spot = None if role is None else tree.root(role)
        own: frozenset[str] = frozenset()
        for number, ref in enumerate(step.reads):
            if number >= MAX_PLACED or self._is_full:
                return
            before = spot
            spot = None if before is None else tree.after(before, ref, fixed=ref.key in self._fixed)
            if spot is None or spot.encoding_id is None:
                return
            if ref.key in self._own:
                own |= {ref.key}
            is_home = spot.encoding_id == tree.home(ref)
            self._put(spot.encoding_id, ref.key, is_home, own & {ref.key} if is_home else own, before, worker_id)
        made = tree.home(ReadRef(step.address, "exact"))
        if made is not None:
            self._put(made, step.address, True, own | {step.address}, spot, worker_id)

    def _put(
        self, encoding_id: EncodingId, key: str, is_home: bool, own: frozenset[str], before: Spot | None, worker_id: str
    ) -> None:
        if not own:
            return
        self._over.discard(encoding_id)  # said again, word for word
        left = self._left.get(encoding_id)
        if left is None:
            if self._is_full:
                return
            left = self._left[encoding_id] = _Left(encoding_id, key, is_home, own, before)
        left.workers.add(worker_id)
