"""The look-ahead in one compiled pass over a flat graph: what it computes is defined in lookahead_reference.py.

Importing this takes numba half a second, and the first pass on a machine some more: only who looks ahead does. What
each row calls is inlined: to hand the graph over takes longer than to look at a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from laban.cluster.compiling import inlined, jit

INF = 1 << 30
Bytes = NDArray[np.int8]
Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

NODE, GATE, VOTE, LOOP, SEEN, UNREAD = range(6)  # kinds of rows
HOLDS, MAY, MAY_NOT = 1, 2, 4  # of a use of a gate: what it must decide; whether it may; whether it may decide against
VOTER, CANDIDATE = 1, 2  # what a vote waits for

NEVER = 0
OPEN, THERE, ABSENT, LOST, SILENT, AGAINST = range(6)
"""How far a unit is: not ended; there (a gate: it holds); absent; lost or not needed; there without a text, so that no
vote counts it; a gate: it does not hold."""


class Flat(NamedTuple):
    """A step graph, in the order in which one pass can go over it.

    Row 0 is what never comes about. Each unit has a row, after those that it waits for. Other rows stand for a unit as
    it is seen by those who would be gone themselves by some of the decisions that it can go by: only their `gone`
    differs. Or, UNREAD, for a loop as it is seen by who reads steps of it that may not have been run in any round: its
    one use is the loop, its waits are those steps.

    Uses of gates of row r: use_at[r] to use_at[r + 1], the innermost last; of a loop's end: all its gates.

    The waits of row r: those of joins[r], -1 for none. Joins that are alike are one.
    """

    kinds: Bytes  # [num_rows]
    units: Ints  # the row of the unit that a row stands for
    use_at: Ints
    uses: Ints  # the gate's row
    use_flags: Bytes
    use_gone: Ints  # the row whose `gone` counts, of the gate
    fails: Bytes  # of a loop's end: when no gate holds
    joins: Ints
    join_at: Ints
    waits: Ints  # the unit's row
    wait_runs: Ints  # that row, or NEVER
    wait_gone: Ints  # the row whose `gone` counts if the reader is to run
    wait_dead: Ints  # and if it is not
    wait_flags: Bytes
    required: Ints  # [num_joins]; of a vote: the quorum
    holds: Floats  # [num_rows]: how likely each gate holds
    nodes: Ints  # the row of each instance, in the graph's order
    read_at: Ints
    reads: Ints  # the selections that each instance reads
    select_at: Ints
    selected: Ints  # the messages of each selection
    messages: Ints  # the row of each message; -1 for a fixed one


@jit
def nth(times: Ints, begin: int, size: int, number: int) -> int:
    """The `number`th fewest of `size` times from `begin`, from 1; -1 for the 0th, INF if there are not so many."""
    if number <= 0:
        return -1
    if number > size:
        return INF
    low, high = -1, INF  # halved until they meet: compiles in a tenth of the time that a sort takes
    while low < high:
        middle = (low + high) >> 1
        count = 0
        for at in range(begin, begin + size):
            count += times[at] <= middle
        if count >= number:
            high = middle
        else:
            low = middle + 1
    return low


@inlined
def look_at_joins(
    flat: Flat, codes: Bytes, run: Ints, gone: Ints, lost: Ints, likely: Floats, row: int, out: Ints
) -> float:
    """Of a row's waits: into `out` how soon they are enough, all ended, all gone, too many lost; returns how likely
    one of them is there. Scratch for two lists of them follows in `out`.
    """
    out[0], out[1], out[2], out[3] = -1, -1, INF, INF
    join = flat.joins[row]
    if join < 0:
        return 1.0
    begin, end = flat.join_at[join], flat.join_at[join + 1]
    num = end - begin
    first, second = 4, 4 + num
    is_vote = flat.kinds[row] == VOTE
    num_left = num_first = num_second = 0
    fewest, all_resolved, all_ended, all_over, all_gone, one_lost, one = INF, -1, -1, -1, -1, INF, INF
    candidate, no_candidate = INF, -1
    chance = 0.0
    for at in range(begin, end):
        unit = flat.waits[at]
        runs, goes, loses = run[flat.wait_runs[at]], gone[flat.wait_gone[at]], lost[unit]
        dies = gone[flat.wait_dead[at]]
        code = codes[unit]
        if code in (THERE, SILENT):
            runs = -1
        elif code == ABSENT:
            goes = dies = -1
        num_left += code != ABSENT
        resolved = min(runs, goes)
        fewest = min(fewest, runs)
        all_resolved = max(all_resolved, resolved)
        all_ended = max(all_ended, -1 if code != OPEN else min(resolved, loses))
        all_over = max(all_over, -1 if code != OPEN else min(runs, min(dies, loses)))
        all_gone = max(all_gone, dies)
        one_lost = min(one_lost, loses)
        chance = max(chance, likely[unit])
        if is_vote:
            one = min(one, min(runs, loses))
            missing = -1 if code == SILENT else min(dies, loses)
            if flat.wait_flags[at] & VOTER:
                out[second + num_second] = missing
                num_second += 1
                if code != SILENT:
                    out[first + num_first] = runs
                    num_first += 1
            if flat.wait_flags[at] & CANDIDATE:
                no_candidate = max(no_candidate, missing)
                if code != SILENT:
                    candidate = min(candidate, runs)
        else:
            out[first + num_first] = runs
            out[second + num_second] = min(dies, loses)
            num_first += 1
            num_second += 1
    required = flat.required[join]
    out[1], out[2] = all_ended, all_gone
    if is_vote:
        out[0] = max(all_ended, max(nth(out, first, num_first, required), candidate))
        too_few = nth(out, second, num_second, num_second - required + 1)
        out[3] = max(all_over, max(min(too_few, no_candidate), one))
    else:
        out[0] = max(all_resolved, fewest)
        if required < num_left:
            out[0] = min(out[0], nth(out, first, num_first, required))
        if one_lost < INF:
            out[3] = max(one_lost, nth(out, second, num_second, num - required + 1))
    return chance


@jit
def look(
    flat: Flat, codes: Bytes, takes: Ints, run: Ints, gone: Ints, lost: Ints, likely: Floats, scratch: Ints
) -> None:
    """codes [num_rows], of units; takes [num_rows]: how long each instance does, 1 to count in steps; the results, in
    what it is counted in: run, gone, lost, likely [num_rows]; scratch [at least 4 + 2 * the longest join]"""
    run[0] = gone[0] = lost[0] = INF
    done = -1  # the join that `scratch` is of, when every row that had it was a node
    chance = 1.0
    for row in range(1, len(flat.kinds)):
        code = codes[flat.units[row]]
        if code != OPEN:
            run[row] = -1 if code in (THERE, SILENT, AGAINST) else INF
            gone[row] = -1 if code == ABSENT else INF
            lost[row] = -1 if code == LOST else INF
            likely[row] = 1.0 if run[row] == -1 else 0.0
            continue
        kind = flat.kinds[row]
        begin, end = flat.use_at[row], flat.use_at[row + 1]
        if kind == LOOP:
            soonest = INF
            for at in range(begin, end):
                gate = flat.uses[at]
                if codes[gate] == OPEN and (flat.use_flags[at] & MAY or (at == end - 1 and not flat.fails[row])):
                    soonest = min(soonest, run[gate])
            run[row], gone[row] = soonest, gone[flat.use_gone[begin]]
            lost[row] = run[flat.uses[end - 1]] if flat.fails[row] else INF
            likely[row] = likely[flat.uses[begin]]
            continue
        opened, against, chain = -1, INF, 1.0
        for at in range(begin, end):
            gate, flags = flat.uses[at], flat.use_flags[at]
            if codes[gate] == OPEN:
                opened = max(opened, run[gate] if flags & MAY else INF)
                against = min(against, gone[flat.use_gone[at]])
                if flags & MAY_NOT:
                    against = min(against, run[gate])
                chain = likely[gate] * (flat.holds[gate] if flags & HOLDS else 1.0 - flat.holds[gate])
            elif codes[gate] == (THERE if flags & HOLDS else AGAINST):
                chain = 1.0
            else:
                opened, against, chain = INF, -1, 0.0
        join = flat.joins[row]
        if join != done or join < 0:
            chance = look_at_joins(flat, codes, run, gone, lost, likely, row, scratch)
            done = join
        if kind == GATE:
            run[row], gone[row], lost[row], likely[row] = max(scratch[1], opened), against, INF, chain
        elif kind == SEEN:
            gone[row] = min(against, scratch[2])
        elif kind == UNREAD:
            gone[row] = min(gone[flat.use_gone[begin]], max(run[flat.uses[begin]], scratch[2]))
        elif kind == VOTE:
            run[row], gone[row], lost[row], likely[row] = scratch[0], scratch[2], scratch[3], chance
        else:
            before = max(scratch[0], opened)
            run[row] = INF if before >= INF else min(INF - 1, before + takes[row])
            gone[row], lost[row], likely[row] = min(against, scratch[2]), scratch[3], min(chain, chance)


@jit
def find_uses(
    flat: Flat, codes: Bytes, running: Bytes, run: Ints, likely: Floats, readers: Ints, message_readers: Ints
) -> None:
    """The soonest reader of each selection, then of each message: its number among the instances, -1 for none.

    running [num_instances]; readers [num_selections]; message_readers [num_messages]
    """
    readers[:] = -1
    message_readers[:] = -1
    for node in range(len(flat.nodes)):
        row = flat.nodes[node]
        if codes[row] != OPEN or running[node] or run[row] >= INF:
            continue
        for at in range(flat.read_at[node], flat.read_at[node + 1]):
            selection = flat.reads[at]
            if sooner(flat, run, likely, node, readers[selection]):
                readers[selection] = node
    for selection in range(len(readers)):
        if readers[selection] < 0:
            continue
        for at in range(flat.select_at[selection], flat.select_at[selection + 1]):
            message = flat.selected[at]
            if sooner(flat, run, likely, readers[selection], message_readers[message]):
                message_readers[message] = readers[selection]
    for message in range(len(message_readers)):
        row = flat.messages[message]
        if row >= 0 and run[row] >= INF:
            message_readers[message] = -1


@inlined
def sooner(flat: Flat, run: Ints, likely: Floats, node: int, other: int) -> bool:
    """Whether one instance reads before another: sooner, or more likely, or earlier in the graph."""
    if other < 0:
        return True
    row, than = flat.nodes[node], flat.nodes[other]
    if run[row] != run[than]:
        return bool(run[row] < run[than])
    if likely[row] != likely[than]:
        return bool(likely[row] > likely[than])
    return node < other
