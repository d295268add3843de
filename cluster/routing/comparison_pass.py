"""A call at all workers of a fleet in one compiled pass. What it computes is defined by estimate.py and policy.py.

Workers that hold nothing of what a call needs differ by their queues alone: these are estimated once for each pace. A
holder is looked at need by need. So what a decision takes grows with who holds something, and hardly with who does not.
Times are whole nanoseconds, which fit as long as no token takes NEVER; nothing depends on the order of sums.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from laban.cluster.compiling import jit

Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Stream = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Rows of what is kept of a fleet: columns.py.
QUEUE_MS, NUM_CALLS, LINK_NS, PACE, TURN, FREE_PAGES, NUM_SENDING, IS_OPEN = range(8)
NUM_COLUMNS = 8

# Of a pace: the fields of rates.Pace.
ENCODE_NS, ITERATION_NS, HOST_NS, DISK_NS, PEER_NS, PEER_DISK_NS = range(6)
NEVER = 1 << 50

# How a need stands at a worker: its tier there or nowhere; and so how it comes if it is missing. The device is not one.
DEVICE, HOST, DISK, NOWHERE = range(4)
FETCHED, ENCODED = 3, 4
NUM_WAYS = 5

# Of a need: whether the call reads it, and whether something of its context is neither read nor looked at.
READ, DEEP = 1, 2

# An entry of a need's holders: the worker's number, whether others can fetch it there, the tier.
NUMBER_SHIFT, READY, TIER = 3, 4, 3

# Who can send a need best: how many encodings it sends, with a bit more if it has this one on disk.
FROM_DISK = 1 << 40
NOBODY = -1

# What is to be told of a worker: the fields of estimate.Estimate but for its sets.
LOAD, FETCH, ENCODE, SAVED_BRING, SAVED_ENCODE, TOKENS_HOST, TOKENS_DISK, TOKENS_PEER, TOKENS_ENCODE = range(9)
NUM_TOLD = 9

# Rows of what a policy goes by: the fields of policy.WorkerView after the worker's id, and its tokens_missing.
(
    V_TTFT, V_COST, V_LEFT, V_CALLS, V_QUEUE, V_TURNS, V_PAGES, V_LOAD, V_FETCH, V_ENCODE, V_HOST, V_DISK, V_PEER,
    V_TOKENS, V_MISSING,
) = range(15)  # fmt: skip
NUM_VIEWED = 15


@jit
def compare(
    stream: Stream,
    sizes: Numbers,
    kinds: Bytes,
    contexts: Bytes,
    shares: Floats,
    fleet: Numbers,
    paces: Numbers,
    own_tokens: int,
    is_foreseen: int,
    num_waiting: int,
    next_turn: int,
    tiers: Bytes,
    begins: Numbers,
    peers: Numbers,
    views: Numbers,
) -> bool:
    """Fills what the last four say of each need, and of each worker. False if that depends on needs that are not given:
    then it says nothing.

    `stream` is what holdings.py says of the call's needs, then of its successors, then of what its family is making.
    `sizes` are the tokens of the needs, then of the successors. `contexts` [num_needs, num_bytes], a bit for each need;
    none if needs are given without those of their contexts that are not read. `shares` [num_needs], the part of a
    copy's time that counts; none if all of it does for all.

    `tiers` [num_needs or more, num_workers], `begins` [num_needs]: where in the stream; `peers` [num_needs]: who can
    send it best; `views` [NUM_VIEWED, num_workers], but for those that are not open.
    """
    num_needs, num_workers, num_paces = begins.shape[0], fleet.shape[1], paces.shape[0]
    holds = np.zeros(num_workers, np.bool_)
    at = _place(stream, fleet, tiers, begins, peers, holds)
    total = _leave(stream, at, sizes[num_needs:], views[V_LEFT])

    num_open = turns = 0
    for number in range(num_workers):
        num_open += fleet[IS_OPEN, number]
        turns = max(turns, fleet[TURN, number] + 1)
    num_waiting = min(num_waiting, num_open)
    told = np.empty((num_paces + 1, NUM_TOLD), np.int64)
    is_told = np.zeros(num_paces, np.bool_)
    added, ways = np.full(num_needs, -1, np.int64), np.empty(num_needs, np.uint8)
    for number in range(num_workers):
        if not fleet[IS_OPEN, number]:
            continue
        pace = fleet[PACE, number]
        row, is_decided = pace, True
        if holds[number]:
            row = num_paces
            is_decided = _walk(
                number, number, tiers, peers, sizes, kinds, contexts, shares, paces[pace], added, ways, told[row]
            )
        elif not is_told[pace]:
            is_told[pace] = True
            is_decided = _walk(
                -1,
                num_workers + pace,
                tiers,
                peers,
                sizes,
                kinds,
                contexts,
                shares,
                paces[pace],
                added,
                ways,
                told[row],
            )
        if not is_decided:
            return False

        encode_ns, queue_ms = paces[pace, ENCODE_NS], fleet[QUEUE_MS, number]
        own_ns = own_tokens * encode_ns
        bring = told[row, LOAD] + told[row, FETCH]
        if bring:
            bring += fleet[LINK_NS, number]
        encode = told[row, ENCODE]
        left = total + views[V_LEFT, number]
        # Cheaper by what a copy saves others; dearer by what who waits for the worker loses, and by what later calls
        # will have to bring.
        paid = encode - told[row, SAVED_ENCODE]
        cost = max(bring - told[row, SAVED_BRING], paid) + paid * num_waiting // num_open + own_ns
        if is_foreseen:
            cost += left * min(encode_ns, paces[pace, PEER_NS])
        tokens = told[row, TOKENS_ENCODE] + own_tokens
        views[V_TTFT, number] = queue_ms + (max(bring, encode) + own_ns + 500_000) // 1_000_000
        views[V_COST, number] = queue_ms + (cost + 500_000) // 1_000_000
        views[V_LEFT, number] = left
        views[V_CALLS, number] = fleet[NUM_CALLS, number]
        views[V_QUEUE, number] = queue_ms
        views[V_TURNS, number] = (fleet[TURN, number] - next_turn) % turns
        views[V_PAGES, number] = fleet[FREE_PAGES, number]
        views[V_LOAD, number] = told[row, LOAD]
        views[V_FETCH, number] = told[row, FETCH]
        views[V_ENCODE, number] = encode + own_ns
        views[V_HOST, number] = told[row, TOKENS_HOST]
        views[V_DISK, number] = told[row, TOKENS_DISK]
        views[V_PEER, number] = told[row, TOKENS_PEER]
        views[V_TOKENS, number] = tokens
        views[V_MISSING, number] = tokens + told[row, TOKENS_HOST] + told[row, TOKENS_DISK] + told[row, TOKENS_PEER]
    return True


@jit
def settle(
    number: int,
    stream: Stream,
    sizes: Numbers,
    kinds: Bytes,
    contexts: Bytes,
    shares: Floats,
    fleet: Numbers,
    paces: Numbers,
    tiers: Bytes,
    begins: Numbers,
    peers: Numbers,
    told: Numbers,
    ways: Bytes,
    sources: Numbers,
) -> None:
    """What the call would do at one of the workers that it was compared at: fills the last three.

    `told` [NUM_TOLD]; `ways` [num_needs]: how each comes, DEVICE if it need not; `sources` [num_needs, 2] of those that
    are fetched: the worker from which, and how many encodings that sends then besides, as -1 - n if it has it on disk.
    """
    num_needs = begins.shape[0]
    added = np.full(num_needs, -1, np.int64)
    _walk(number, number, tiers, peers, sizes, kinds, contexts, shares, paces[fleet[PACE, number]], added, ways, told)
    sends = np.zeros(fleet.shape[1], np.int64)  # because of this very call
    for need in range(num_needs):
        if ways[need] != FETCHED:
            continue
        best, best_sends, best_disk = -1, 0, False
        begin = begins[need] + 1
        for i in range(begin, begin + stream[begin - 1]):
            other, on_disk = stream[i] >> NUMBER_SHIFT, stream[i] & TIER == DISK
            if not stream[i] & READY or other == number:
                continue
            num_sends = fleet[NUM_SENDING, other] + sends[other]
            if best < 0 or on_disk < best_disk:
                better = True
            elif on_disk > best_disk or num_sends > best_sends:
                better = False
            else:
                better = num_sends < best_sends or fleet[TURN, other] < fleet[TURN, best]
            if better:
                best, best_sends, best_disk = other, num_sends, on_disk
        sends[best] += 1
        sources[need, 0] = best
        sources[need, 1] = -1 - best_sends if best_disk else best_sends


@jit
def rank(views: Numbers, fields: Numbers, fleet: Numbers, best: Numbers) -> int:
    """Fills `best` with the numbers of the workers that come first by these rows of `views`, then by id, in this order.
    Returns how many there are, at most as many as there is room for."""
    count, room = 0, best.shape[0]
    for number in range(views.shape[1]):
        if not fleet[IS_OPEN, number]:
            continue
        at = count
        while at > 0 and _precedes(number, best[at - 1], views, fields, fleet):
            at -= 1
        if at == room:
            continue
        count = min(count + 1, room)
        for i in range(count - 1, at, -1):
            best[i] = best[i - 1]
        best[at] = number
    return count


@jit
def _precedes(number: int, other: int, views: Numbers, fields: Numbers, fleet: Numbers) -> bool:
    for field in fields:
        if views[field, number] != views[field, other]:
            return bool(views[field, number] < views[field, other])
    return bool(fleet[TURN, number] < fleet[TURN, other])


@jit
def _place(stream: Stream, fleet: Numbers, tiers: Bytes, begins: Numbers, peers: Numbers, holds: Flags) -> int:
    """Who holds each need where, and who holds any. Returns where in the stream the needs end."""
    at = 0
    for need in range(begins.shape[0]):
        begins[need] = at
        row = tiers[need]
        row[:] = NOWHERE
        best = NOBODY
        end = at + 1 + stream[at]
        for i in range(at + 1, end):
            number, tier = stream[i] >> NUMBER_SHIFT, stream[i] & TIER
            row[number] = tier
            holds[number] = True
            if stream[i] & READY:
                peer = fleet[NUM_SENDING, number] | (FROM_DISK if tier == DISK else 0)
                if best < 0 or peer < best:
                    best = peer
        peers[need] = best
        at = end + 1 + stream[end]
        for i in range(end + 1, at):  # it is coming to the device of these
            row[stream[i]] = DEVICE
            holds[stream[i]] = True
    return at


@jit
def _leave(stream: Stream, at: int, sizes: Numbers, left: Numbers) -> int:
    """How many tokens of what later calls may read there are, or will be. `left` says how many less each worker leaves
    elsewhere, as a negative number."""
    left[:] = 0
    total = 0
    counted = np.full(left.shape[0], -1, np.int64)  # the last of the successors that each worker holds
    for successor in range(sizes.shape[0]):
        total += sizes[successor]
        end = at + 1 + stream[at]
        for i in range(at + 1, end):
            number = stream[i] >> NUMBER_SHIFT
            counted[number] = successor
            left[number] -= sizes[successor]
        at = end + 1 + stream[end]
        for i in range(end + 1, at):
            if counted[stream[i]] != successor:
                left[stream[i]] -= sizes[successor]
    for i in range(at + 1, at + 1 + 2 * stream[at], 2):
        total += stream[i + 1]
        left[stream[i]] -= stream[i + 1]
    return total


@jit
def _walk(
    number: int,
    walk: int,
    tiers: Bytes,
    peers: Numbers,
    sizes: Numbers,
    kinds: Bytes,
    contexts: Bytes,
    shares: Floats,
    pace: Numbers,
    added: Numbers,
    ways: Bytes,
    told: Numbers,
) -> bool:
    """What the call would do at a worker of this pace, -1 for one that holds nothing: fills the last two. False if that
    depends on needs that are not given. `added` are the needs that were added in the walk of that number.

    A need that has to be encoded is encoded with all of its context that is neither on the device nor to be there
    anyway. A context has lower places only, so what it adds has not been looked at yet.
    """
    num_needs = peers.shape[0]
    encode_ns = pace[ENCODE_NS]
    load = fetch = encode = saved_bring = saved_encode = 0
    from_host = from_disk = from_peer = encoded = 0
    for need in range(num_needs - 1, -1, -1):
        if not (kinds[need] & READ or added[need] == walk):
            ways[need] = DEVICE
            continue
        tier = tiers[need, number] if number >= 0 else NOWHERE
        if tier == DEVICE:
            ways[need] = DEVICE
            continue
        tokens = sizes[need]
        way, bring_ns = ENCODED, NEVER
        if tier == HOST:
            way, bring_ns = HOST, pace[HOST_NS]
        else:
            if tier == DISK:
                way, bring_ns = DISK, pace[DISK_NS]
            peer = peers[need]
            if peer >= 0:
                peer_ns = pace[PEER_DISK_NS] if peer & FROM_DISK else pace[PEER_NS]
                if peer_ns < NEVER:
                    peer_ns *= 1 + (peer & ~FROM_DISK)
                if peer_ns < bring_ns:
                    way, bring_ns = FETCHED, peer_ns
        if bring_ns > encode_ns:
            if kinds[need] & DEEP:
                return False
            behind = 0
            for below in range(min(need, contexts.shape[0])):
                is_behind = contexts[need, below >> 3] >> (below & 7) & 1 and not kinds[below] & READ
                if is_behind and added[below] != walk and (number < 0 or tiers[below, number] != DEVICE):
                    behind += sizes[below]
            if bring_ns >= NEVER or tokens * bring_ns > (tokens + behind) * encode_ns:
                way = ENCODED
                for below in range(need if behind else 0):
                    if contexts[need, below >> 3] >> (below & 7) & 1:
                        added[below] = walk
        ways[need] = way
        if way == ENCODED:
            encoded += tokens
            encode += tokens * encode_ns
            if shares.shape[0]:
                saved_encode += int(tokens * encode_ns * (1.0 - shares[need]))
        elif way == FETCHED:
            from_peer += tokens
            fetch += tokens * bring_ns
            if shares.shape[0]:
                saved_bring += int(tokens * bring_ns * (1.0 - shares[need]))
        else:
            load += tokens * bring_ns
            if way == HOST:
                from_host += tokens
            else:
                from_disk += tokens
    told[LOAD], told[FETCH], told[ENCODE] = load, fetch, encode
    told[SAVED_BRING], told[SAVED_ENCODE] = saved_bring, saved_encode
    told[TOKENS_HOST], told[TOKENS_DISK], told[TOKENS_PEER], told[TOKENS_ENCODE] = (
        from_host, from_disk, from_peer, encoded,
    )  # fmt: skip
    return True
