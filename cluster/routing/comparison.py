"""What a call would cost at every worker at once: what estimate.py says of one, by arrays over the workers' numbers.

What a worker has to bring and to encode is a sum over the call's needs, each counted by where the worker has it: one
product of matrices, of what each need counts for with who holds it. Numbers are whole and below 2**53, so sums are
exact in whatever order they are made.

Some needs are better encoded than brought unless what they depend on has to be encoded with them, which differs by
worker. Mostly all but very few workers lack so much of that that they bring it: it is counted as brought, and those few
are to be looked at by themselves. Where they are not few it counts for what it counts for in any case, and the cost of
every worker is but a lower bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from laban.cluster.routing.call_view import CallView, bits
from laban.cluster.routing.columns import Columns, Numbers
from laban.cluster.routing.cost_table import NOWHERE, CostTable, Floats, Taken
from laban.cluster.routing.holdings import Holdings, Survey
from laban.cluster.routing.ledger import Ledger
from laban.kvstore.placements import Tier

CLOSED_MS = 1 << 62
"""The cost at a worker that takes no calls."""

MANY = 16
"""Workers that may be looked at by themselves, of each call, whatever they hold."""


class Costs(NamedTuple):
    """By the workers' numbers. `bounded` is the set of those at which `cost_ms` is but a lower bound; only if there are
    any has what the call does not read itself been surveyed, too."""

    cost_ms: Numbers
    left_tokens: Numbers
    bounded: int


class Comparison:
    """Of calls at the workers of one ledger."""

    def __init__(self, ledger: Ledger, holdings: Holdings) -> None:
        self._ledger, self._holdings = ledger, holdings
        self._table = CostTable(())

    def compare(self, call: CallView, shares: Mapping[int, float]) -> tuple[Costs, Survey]:
        """`shares` is as in Estimator."""
        ledger, columns = self._ledger, self._ledger.see_columns()
        if columns.paces is not self._table.paces:
            self._table = CostTable(columns.paces)
        survey = Survey()
        self._holdings.survey(call, call.wanted, survey)
        undecided, doubtful = self._doubts(call, survey)
        bounded = doubtful.bit_count() > MANY
        taken = Taken.EITHER if bounded else Taken.BROUGHT
        table, needs = self._table, call.needs
        rows: list[int] = []
        sizes: list[int] = []
        savings: list[float] = []
        sets: list[int] = []  # of workers: who has each need on the device, then who has it in a lower tier
        lower: list[tuple[int, int]] = []  # a need's place among these, and its row in that tier
        below: list[int] = []
        for at, (device, host, disk) in survey.states.items():
            from_disk, busy = survey.peer(at)
            how = taken if undecided >> at & 1 else Taken.ENCODED
            if host:
                lower.append((len(rows), table.row((Tier.HOST, from_disk, busy), how)))
                below.append(host)
            if disk:
                lower.append((len(rows), table.row((Tier.DISK, from_disk, busy), how)))
                below.append(disk)
            rows.append(table.row((NOWHERE, from_disk, busy), how))
            sizes.append(needs[at].num_tokens)
            sets.append(device)
            if shares:
                savings.append(1.0 - shares.get(at, 1.0))
        there = self._holdings.there(call)
        held = _unpack([*sets, *below, *there, ledger.open], columns.width)
        num_sums = len(rows) + len(lower)
        bring_ns, encode_ns = self._sums(columns, rows, sizes, savings, lower, held[:num_sums])
        left = self._left(call, columns.width, held[num_sums:-1])
        pace_at = columns.pace_at
        spent = np.maximum(bring_ns + columns.link_ns * (bring_ns > 0), encode_ns).astype(np.int64)
        waiting, num_open = ledger.crowd()
        spent += encode_ns.astype(np.int64) * waiting // num_open
        spent += table.encode_ns.take(pace_at) * call.own_tokens + 500_000  # to be rounded
        if call.foreseen:
            spent += left * table.later_ns.take(pace_at)
        spent //= 1_000_000
        spent += columns.queue_ms
        if doubtful:
            self._holdings.survey(call, (1 << len(needs)) - 1 & ~call.wanted, survey)
            if not bounded:
                spent[bits(doubtful)] = 0
        spent[held[-1] == 0] = CLOSED_MS
        return Costs(spent, left, ledger.open if bounded else doubtful & ledger.open), survey

    def _doubts(self, call: CallView, survey: Survey) -> tuple[int, int]:
        """The needs that would sooner be encoded than brought if what they depend on were there, and the workers where
        that may be.

        A need is encoded if bringing it takes longer than encoding it with what of its context is not there. What is
        encoded for other needs, too, makes that less; but where no need is encoded with anything that is not read, none
        is. So who lacks enough of each need's context brings them all.
        """
        table, needs, holdings, everyone = self._table, call.needs, self._holdings, self._ledger.open
        undecided = doubtful = 0
        for at, (device, host, disk) in survey.states.items():
            _, num_tokens, context, _ = needs[at]
            hidden = context & ~call.wanted
            if not hidden:
                continue
            from_disk, busy = survey.peer(at)
            delay = table.delay((NOWHERE, from_disk, busy))
            if host:
                delay = max(delay, table.delay((Tier.HOST, from_disk, busy)))
            if disk:
                delay = max(delay, table.delay((Tier.DISK, from_disk, busy)))
            if delay <= 1.0:
                continue
            undecided |= 1 << at
            # Rounded up, as it may be: it only makes for more workers to be looked at.
            enough = num_tokens * (delay - 1.0) * 1.000001 + 1.0
            among = everyone & ~device
            while hidden and among:
                bit = hidden & -hidden
                hidden ^= bit
                need = needs[bit.bit_length() - 1]
                if need.num_tokens >= enough:
                    among &= holdings.on_device(need)
            doubtful |= among
        return undecided, doubtful

    def _sums(
        self,
        columns: Columns,
        rows: list[int],
        sizes: list[int],
        savings: list[float],
        lower: list[tuple[int, int]],
        held: npt.NDArray[np.uint8],
    ) -> tuple[Floats, Floats]:
        """bring_ns and encode_ns of each worker: what all needs count for where they are nowhere, and for those that it
        holds the difference."""
        count, ways, of_sizes, of_savings = len(rows), rows, sizes, savings
        of = [at for at, _ in lower]
        if lower:
            ways = rows + [way for _, way in lower]
            of_sizes = sizes + [sizes[at] for at in of]
            if savings:
                of_savings = savings + [savings[at] for at in of]
        weights = self._table.weights(ways, np.array(of_sizes, np.float64), np.array(of_savings) if savings else None)
        nowhere = weights[:count]
        if lower:
            weights[count:] -= nowhere[of]
        everything = np.add.reduce(nowhere, axis=0)
        np.negative(nowhere, out=nowhere)
        sums = weights.T @ held.astype(np.float64)
        sums += everything[:, None]
        num_paces = len(self._table.paces)
        if num_paces == 1:
            return sums[0], sums[1]
        return sums.take(columns.flat_at), sums[num_paces:].take(columns.flat_at)

    def _left(self, call: CallView, width: int, there: npt.NDArray[np.uint8]) -> Numbers:
        """Tokens of what the call's successors will read that are elsewhere, or being made there."""
        made = self._ledger.being_made(call.family)
        sizes = [size for _, size in call.successors]
        left = np.full(width, sum(sizes) + sum(made.values()), np.int64)
        if sizes:
            left -= np.array(sizes, np.int64) @ there
        for number, tokens in made.items():
            left[number] -= tokens
        return left


def _unpack(sets: list[int], width: int) -> npt.NDArray[np.uint8]:
    """A row of zeros and ones for each set of workers."""
    packed = np.frombuffer(b"".join([each.to_bytes(width >> 3, "little") for each in sets]), np.uint8)
    return np.unpackbits(packed, bitorder="little").reshape(len(sets), width)
