"""A step graph as the flat arrays that lookahead_pass.py goes over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import accumulate
from operator import and_, or_

import numpy as np

from laban.cluster.workflow.graph import Gate, GateUse, Node, StepGraph, VoteNode
from laban.cluster.workflow.lookahead_pass import (
    CANDIDATE,
    GATE,
    HOLDS,
    LOOP,
    MAY,
    MAY_NOT,
    NEVER,
    NODE,
    SEEN,
    UNREAD,
    VOTE,
    VOTER,
    Bytes,
    Flat,
    Ints,
)
from laban.cluster.workflow.lookahead_reference import keys_read_of

# Beyond either of these a unit is taken as everyone sees it, which is too early at worst.
ROWS_PER_UNIT = 4
MAX_DEPTH = 200  # of a unit seen through others


class _Rows:
    """Grows row by row; each is (kind, unit's row, uses, fails, join)."""

    def __init__(self, graph: StepGraph) -> None:
        self.graph = graph
        self.rows: list[tuple[int, int, list[tuple[int, int, int]], bool, int]] = [(SEEN, NEVER, [], False, -1)]
        self.row_of: dict[str, int] = {}
        self.joins: dict[tuple[tuple[tuple[int, int, int, int, int], ...], int], int] = {}
        self._bits: dict[GateUse, int] = {}
        self._needs: dict[str, int] = {}  # a mask of what gates must decide for a unit to be there
        self._against: dict[str, int] = {}  # a mask of the decisions by which a unit can be gone
        self._seen: dict[tuple[str, int], int] = {}
        self._unread: dict[tuple[tuple[str, ...], int], int] = {}
        self._votes = {vote.unit: vote for vote in graph.votes.values()}
        self._rank = {unit: rank for rank, unit in enumerate(graph.order)}
        self._max_rows = ROWS_PER_UNIT * len(graph.order) + 1

    def add(self, unit: str) -> None:
        graph, vote = self.graph, self._votes.get(unit)
        if unit in graph.loops:
            loop = graph.loops[unit]
            self._needs[unit], self._against[unit] = self._needs[loop.gates[0]], self._against[loop.gates[0]]
            uses = [self._use(GateUse(gate, True), self.row_of[gate]) for gate in loop.gates]
            self.row_of[unit] = self._append(LOOP, None, uses, loop.fails)
            return
        if not graph.gates:  # nothing is ever gone: most graphs, and much faster
            rows = [(self.row_of[wait], _role(vote, wait)) for wait in self._waits_of(unit)]
            entries = [(row, row, row, row, role) for row, role in rows]
            kind, join = self._kind_and_join(unit, vote, entries)
            self.row_of[unit] = self._append(kind, None, [], join=join)
            return
        gates = [] if vote is not None else self._gates_of(unit)
        needs = against = 0
        for use in gates:
            needs |= self._bit(use) | self._needs[use.gate]
            other = GateUse(use.gate, not use.holds)
            against |= (self._bit(other) if self._may(other) else 0) | self._against[use.gate]
        waits = self._waits_of(unit)
        if waits and unit not in graph.gates:  # one of them at least must be there
            needs |= reduce(and_, (self._needs[wait] for wait in waits))
        self._needs[unit] = needs
        can_go = [self._against_to(unit, wait) for wait in waits]
        dead = unit not in graph.gates and bool(waits) and all(can_go)
        self._against[unit] = against | (reduce(or_, can_go) if dead else 0)
        opposite = _swapped(needs)
        entries = []
        for wait in waits:
            row = self.row_of[wait]
            runs = NEVER if opposite & self._needs[wait] else row
            entries.append((row, runs, self._gone(wait, opposite), self._gone_to(unit, wait), _role(vote, wait)))
        uses = [self._use(use, self.row_of[use.gate]) for use in gates]
        kind, join = self._kind_and_join(unit, vote, entries)
        self.row_of[unit] = self._append(kind, None, uses, join=join)

    def _kind_and_join(
        self, unit: str, vote: VoteNode | None, entries: list[tuple[int, int, int, int, int]]
    ) -> tuple[int, int]:
        node = self.graph.nodes.get(unit)
        kind = NODE if node is not None else GATE if vote is None else VOTE
        required = node.required if node is not None else 0 if vote is None else vote.quorum
        return kind, self._join(entries, required)

    def _gone(self, unit: str, without: int, depth: int = 0) -> int:
        """The row of a unit that is not gone by the decisions `without`."""
        against = self._against[unit]
        without &= against
        if not without or len(self.rows) > self._max_rows or depth > MAX_DEPTH:
            return self.row_of[unit]
        if without == against:
            return NEVER
        if unit in self.graph.loops:
            return self._gone(self.graph.loops[unit].gates[0], without, depth)
        if (unit, without) not in self._seen:
            uses = [self._use(use, self._gone(use.gate, without, depth + 1), without) for use in self._gates_of(unit)]
            waits = () if unit in self.graph.gates else self._waits_of(unit)
            dead = [self._gone_to(unit, wait, without, depth + 1) for wait in waits]
            entries = [(self.row_of[wait], NEVER, NEVER, row, 0) for wait, row in zip(waits, dead, strict=True)]
            join = self._join(entries, 0)
            self._seen[unit, without] = self._append(SEEN, self.row_of[unit], uses, join=join)
        return self._seen[unit, without]

    def _gone_to(self, reader: str, wait: str, without: int = 0, depth: int = 0) -> int:
        """The same of what a unit waits for, as it sees it: of a loop, by what it reads there, too."""
        row, read = self._gone(wait, without, depth), self._read_of(reader, wait)
        if not read or not all(self._against[key] for key in read) or len(self.rows) > self._max_rows:
            return row
        seen = (wait, *read), without
        if seen not in self._unread:
            keys = [self._gone(key, without, depth + 1) for key in read]
            entries = [(self.row_of[key], NEVER, NEVER, at, 0) for key, at in zip(read, keys, strict=True)]
            self._unread[seen] = self._append(UNREAD, NEVER, [(self.row_of[wait], 0, row)], join=self._join(entries, 0))
        return self._unread[seen]

    def _against_to(self, reader: str, wait: str) -> int:
        against = [self._against[key] for key in self._read_of(reader, wait)]
        return self._against[wait] | (reduce(or_, against) if against and all(against) else 0)

    def _read_of(self, reader: str, wait: str) -> list[str]:
        node = self.graph.nodes.get(reader)
        return [] if node is None else keys_read_of(self.graph, node, wait)

    def _append(
        self, kind: int, unit: int | None, uses: list[tuple[int, int, int]], fails: bool = False, join: int = -1
    ) -> int:
        row = len(self.rows)
        self.rows.append((kind, row if unit is None else unit, uses, fails, join))
        return row

    def _join(self, entries: list[tuple[int, int, int, int, int]], required: int) -> int:
        return self.joins.setdefault((tuple(entries), required), len(self.joins)) if entries else -1

    def _gates_of(self, unit: str) -> Sequence[GateUse]:
        each: Node | Gate | None = self.graph.nodes.get(unit) or self.graph.gates.get(unit)
        return [] if each is None else sorted(each.gates, key=lambda use: self._rank[use.gate])

    def _waits_of(self, unit: str) -> tuple[str, ...]:
        each = self.graph.nodes.get(unit) or self.graph.gates.get(unit) or self._votes[unit]
        return each.waits

    def _use(self, use: GateUse, gone: int, without: int = 0) -> tuple[int, int, int]:
        other = GateUse(use.gate, not use.holds)
        flags = (HOLDS if use.holds else 0) | (MAY if self._may(use) else 0)
        against = self._may(other) and not self._bit(other) & without
        return self.row_of[use.gate], flags | (MAY_NOT if against else 0), gone

    def _may(self, use: GateUse) -> bool:
        return not use.holds or self.graph.gates[use.gate].condition is not None

    def _bit(self, use: GateUse) -> int:
        """Two neighbours for each gate."""
        if use not in self._bits:
            at = len(self._bits)
            self._bits[GateUse(use.gate, False)], self._bits[GateUse(use.gate, True)] = 1 << at, 2 << at
        return self._bits[use]


def flatten(graph: StepGraph, keys: Sequence[str], holds: Sequence[float]) -> tuple[Flat, dict[str, int]]:
    """The arrays, and the row of each unit.

    keys: all messages, the fixed ones first; holds: of each of graph.gates, in order, how likely it does.
    """
    made = _Rows(graph)
    for unit in graph.order:
        made.add(unit)
    kinds, units, uses, fails, joins = zip(*made.rows, strict=True)
    likely = np.zeros(len(kinds))
    likely[[made.row_of[gate] for gate in graph.gates]] = holds
    index = {key: number for number, key in enumerate(keys)}
    selections: dict[tuple[str, ...], int] = {}
    reads = [
        list(dict.fromkeys(selections.setdefault(source.keys, len(selections)) for source in node.sources))
        for node in graph.nodes.values()
    ]
    entries = [entry for join, _ in made.joins for entry in join]
    used = [use for row in uses for use in row]
    flat = Flat(
        kinds=_bytes(kinds),
        units=_ints(units),
        use_at=_starts(map(len, uses)),
        uses=_ints(use[0] for use in used),
        use_flags=_bytes(use[1] for use in used),
        use_gone=_ints(use[2] for use in used),
        fails=_bytes(fails),
        joins=_ints(joins),
        join_at=_starts(len(join) for join, _ in made.joins),
        waits=_ints(entry[0] for entry in entries),
        wait_runs=_ints(entry[1] for entry in entries),
        wait_gone=_ints(entry[2] for entry in entries),
        wait_dead=_ints(entry[3] for entry in entries),
        wait_flags=_bytes(entry[4] for entry in entries),
        required=_ints(required for _, required in made.joins),
        holds=likely,
        nodes=_ints(made.row_of[address] for address in graph.nodes),
        read_at=_starts(map(len, reads)),
        reads=_ints(selection for each in reads for selection in each),
        select_at=_starts(map(len, selections)),
        selected=_ints(index[key] for chosen in selections for key in chosen),
        messages=_ints(made.row_of.get(key, -1) for key in keys),
    )
    return flat, made.row_of


def _role(vote: VoteNode | None, wait: str) -> int:
    if vote is None:
        return 0
    return (VOTER if wait in vote.voters else 0) | (CANDIDATE if wait in vote.candidates else 0)


def _swapped(mask: int) -> int:
    """Every decision in the mask turned around."""
    evens = int("01" * ((mask.bit_length() + 3) // 2), 2)
    return (mask & evens) << 1 | (mask >> 1) & evens


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, np.int32)


def _bytes(values: Iterable[int]) -> Bytes:
    return np.fromiter(values, np.int8)


def _starts(sizes: Iterable[int]) -> Ints:
    return _ints(accumulate(sizes, initial=0))
