"""What one call would do at every worker: hands the compiled pass what it takes, and reads what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from laban.cluster.routing.call_view import CallView
from laban.cluster.routing.columns import Columns
from laban.cluster.routing.comparison_pass import (
    DEEP,
    DEVICE,
    FETCHED,
    NUM_TOLD,
    NUM_VIEWED,
    NUM_WAYS,
    READ,
    Bytes,
    Floats,
    Numbers,
    Stream,
    compare,
    rank,
    settle,
)
from laban.cluster.routing.estimate import Estimate
from laban.cluster.routing.holdings import Holdings
from laban.cluster.routing.ledger import Ledger
from laban.cluster.routing.policy import WorkerView
from laban.cluster.routing.replication import Replication

_NUM_FIELDS = len(WorkerView._fields) - 1
_ALL_OF_IT = np.zeros(0, np.float64)
_NO_CONTEXTS = np.frombuffer(b"", np.uint8).reshape(0, 0)


class Fetch(NamedTuple):
    """The need at this place comes from a worker that sends so many others at the time."""

    at: int
    source: int
    num_sends: int
    from_disk: bool


class Seen(NamedTuple):
    """What policies went by, of some workers."""

    worker_ids: tuple[str, ...]  # by number
    numbers: list[int]
    columns: Numbers  # [field of WorkerView after the first, worker]

    def views(self) -> list[WorkerView]:
        rows = self.columns.T.tolist()
        return [WorkerView(self.worker_ids[number], *row) for number, row in zip(self.numbers, rows, strict=True)]


class _Inputs(NamedTuple):
    """Of the pass, as it says, for the needs at these places."""

    places: Sequence[int]
    stream: Stream
    sizes: Numbers
    kinds: Bytes
    contexts: Bytes
    shares: Floats
    begins: Numbers
    peers: Numbers


class Comparison:
    """Of a call at all workers of one ledger; what it says is of the call last compared, until the ledger changes."""

    def __init__(self, ledger: Ledger, holdings: Holdings, replication: Replication | None = None) -> None:
        self._ledger, self._holdings, self._replication = ledger, holdings, replication
        # [one of RANKABLE, worker's number], of those that are open
        self.views: Numbers = np.zeros((NUM_VIEWED, 0), np.int64)
        self._tiers: Bytes = np.zeros((0, 0), np.uint8)
        self._told: Numbers = np.zeros(NUM_TOLD, np.int64)
        self._inputs: _Inputs | None = None

    def compare(self, call: CallView, now_s: float) -> None:
        """Mostly what the call does not read itself makes no difference: it is looked at only if it might."""
        ledger, columns = self._ledger, self._ledger.see_columns()
        if self.views.shape[1] != columns.width:
            self.views = np.zeros((NUM_VIEWED, columns.width), np.int64)
        for places in (call.reads, range(len(call.needs))):
            inputs = self._inputs = self._lay_out(call, places, columns, now_s)
            if compare(
                inputs.stream, inputs.sizes, inputs.kinds, inputs.contexts, inputs.shares, columns.values,
                columns.paces, call.own_tokens, call.foreseen, ledger.num_calls, ledger.turns(), self._tiers,
                inputs.begins, inputs.peers, self.views,
            ):  # fmt: skip
                return

    def rank(self, fields: Numbers, num_told: int) -> list[int]:
        """The workers' numbers by these rows of `views`, then by id: as many as are to be told of."""
        best = np.empty(num_told, np.int64)
        numbers: list[int] = best[: rank(self.views, fields, self._ledger.columns.values, best)].tolist()
        return numbers

    def see(self, numbers: list[int]) -> Seen:
        """What policies go by, of these workers, as it is now."""
        return Seen(self._ledger.worker_ids, numbers, self.views[:_NUM_FIELDS].take(numbers, axis=1))

    def settle(self, number: int) -> tuple[Estimate, list[Fetch]]:
        """What the call would do at that worker, and from where what is fetched comes."""
        inputs, columns = self._inputs, self._ledger.columns
        assert inputs is not None
        ways = np.empty(len(inputs.places), np.uint8)
        sources = np.empty((len(inputs.places), 2), np.int64)
        settle(
            number, inputs.stream, inputs.sizes, inputs.kinds, inputs.contexts, inputs.shares, columns.values,
            columns.paces, self._tiers, inputs.begins, inputs.peers, self._told, ways, sources,
        )  # fmt: skip
        sets = [0] * NUM_WAYS
        fetches = []
        for row, way in enumerate(ways.tolist()):
            if way != DEVICE:
                at = inputs.places[row]
                sets[way] |= 1 << at
                if way == FETCHED:
                    source, sends = sources[row].tolist()
                    fetches.append(Fetch(at, source, sends if sends >= 0 else -1 - sends, sends < 0))
        return Estimate(*self._told.tolist(), *sets[1:]), fetches

    def _lay_out(self, call: CallView, places: Sequence[int], columns: Columns, now_s: float) -> _Inputs:
        needs, wanted, replication = call.needs, call.wanted, self._replication
        count, is_all = len(places), isinstance(places, range)
        if is_all:
            size = (count >> 3) + 1
            kinds = bytes([wanted >> at & 1 for at in places])
            packed = np.frombuffer(b"".join([need[2].to_bytes(size, "little") for need in needs]), np.uint8)
            contexts = packed.reshape(count, size)
        else:
            needs = tuple([needs[at] for at in places])
            kinds = bytes([READ if need[2] & ~wanted == 0 else READ | DEEP for need in needs])
            contexts = _NO_CONTEXTS
        if self._tiers.shape[1] != columns.width or len(self._tiers) < count:
            self._tiers = np.zeros((max(2 * count, 32), columns.width), np.uint8)
        shares = replication.shares(needs, columns.token_ms, now_s) if replication else ()
        sizes = [need[1] for need in needs]
        sizes += [tokens for _, tokens in call.successors]
        return _Inputs(
            places,
            self._holdings.stream(needs, call.successors, call.family),
            np.array(sizes, np.int64),
            np.frombuffer(kinds, np.uint8),
            contexts,
            np.array(shares) if shares else _ALL_OF_IT,
            np.empty(count, np.int64),
            np.empty(count, np.int64),
        )
