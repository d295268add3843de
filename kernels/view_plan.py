"""Which rows of an iteration attend to which keys, as work for one launch of the fused kernel.

Rows that read the same encodings, at whatever offsets, are stacked into tiles, so that those keys are read once
for all of them; each tile's keys are cut into items of equal work, enough to fill the card; the items' results are
merged by log-sum-exp. The whole plan is one int32 buffer: one copy to the card an iteration, at fixed addresses,
so that a CUDA graph can be replayed over it. Compiled by numba: 64 calls of 16 messages take some 0.1 ms.

The buffer (every index counts int32s from its beginning):

    HEADER     number of items, of turns, of partial rows, length used
    offsets    [max_turns]       turn i turns a query back by offsets[i] positions
    items      [max_items, 6]    first row, number of rows, first piece, number of pieces, first partial row (-1: the
                                 item's result is the rows' result), zero
    merge      [max_tokens + 1]  token i merges the partial rows listed from merge[i] to merge[i + 1]
    the rest, wherever it falls:
      rows     [n, 3]            token, reader (an index into each piece's turns), position
      pieces   [n, 6]            where the entry's page list is, first key, end, first turn, position at which the entry
                                 was encoded, whether keys past a row's own position are hidden
      pages    page numbers      merge lists
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Buffer = NDArray[np.int32]

NUM_ITEMS, NUM_TURNS, NUM_PARTIALS, USED, HEADER = 0, 1, 2, 3, 8
ITEM_INTS, ROW_INTS, PIECE_INTS = 6, 3, 6
# Rows of `chunks` and `reads`, the planner's input.
FIRST_ROW, NUM_ROWS, POSITION, OWN_ENTRY, BEGIN, START, CHUNK_INTS = 0, 1, 2, 3, 4, 5, 6
READER, ENTRY, READ_BEGIN, READ_END, OFFSET, ENTRY_START, READ_INTS = 0, 1, 2, 3, 4, 5, 6

ADVANCES = 64
"""How often a plan is advanced by one token a call before it is balanced anew."""

jit: Any = numba.njit(cache=True)


@dataclass(frozen=True, slots=True)
class PlanShape:
    """What is fixed for all plans of one kernel: its tile, the card it fills, and the room in the buffer.

    Grouping pays where it saves bytes: two readers that each fill at most half a tile, and `min_shared_tokens` keys.
    """

    rows_per_tile: int  # tokens; times the query heads of a key head they fill the kernel's tile
    keys_per_block: int
    num_kv_heads: int
    num_programs: int  # that run at once: items are cut until items * num_kv_heads is about that many
    page_size: int
    window: int | None = None  # tokens; a query sees keys less than that far behind it
    min_shared_tokens: int = 64
    max_turns: int = 8192
    max_items: int = 2048
    max_tokens: int = 512
    max_partials: int = 8192
    size: int = 1 << 18  # int32s

    @property
    def items_at(self) -> int:
        return HEADER + self.max_turns

    @property
    def merge_at(self) -> int:
        return self.items_at + ITEM_INTS * self.max_items

    @property
    def rest_at(self) -> int:
        return self.merge_at + self.max_tokens + 1


class PlanFull(Exception):
    """The batch does not fit the buffer. Nothing of it may be used."""


def build_plan(
    shape: PlanShape, chunks: Ints, reads: Ints, page_starts: Ints, pages: Buffer, buffer: Buffer, own: Ints
) -> int:
    """Writes the plan of a batch into `buffer` and returns the number of partial rows. Raises PlanFull.

    Args:
        chunks: [num_chunks, CHUNK_INTS] first row, number of rows (consecutive tokens), position of the first, its
            message's entry, its index in the message, and the position of the message's first token.
        reads: [num_reads, READ_INTS] chunk, entry, first token read, end, offset, position at which the entry was
            encoded; a chunk's reads follow one another, chunks in order.
        page_starts: [num_entries + 1]; entry e has pages[page_starts[e] : page_starts[e + 1]], from its first token on.
        own: [num_chunks, 2], written: where `advance` finds the end of a chunk's own keys and its row.
    """
    status: int = _build(
        chunks, reads, page_starts, pages, buffer, own,
        (shape.rows_per_tile, shape.keys_per_block, shape.num_kv_heads, shape.num_programs,
         -1 if shape.window is None else shape.window, shape.min_shared_tokens, shape.max_turns, shape.max_items,
         shape.max_tokens, shape.max_partials),
    )  # fmt: skip
    if status < 0:
        raise PlanFull(f"{len(chunks)} chunks with {len(reads)} reads")
    return status


def advance(buffer: Buffer, own: Ints) -> None:
    """The plan of the next iteration, in place, where every chunk was one token and the next one follows it.

    Valid ADVANCES times: the page lists reach that far if the entries' pages do. Windows cut off nothing more: the
    kernel masks by position in any case.
    """
    buffer[own[:, 0]] += 1
    buffer[own[:, 1]] += 1


@jit  # type: ignore[untyped-decorator]
def _classes(chunks: Ints, reads: Ints, half_tile: int, min_shared: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Groups reads by who reads. Returns (order, group_start, class_start, shared).

    Group g, the reads `order[group_start[g]:group_start[g + 1]]`, is one range of one entry with its readers. Class c,
    the groups class_start[c] to class_start[c + 1], are ranges with the same readers in the same order.
    `shared[r]` says whether read r is in a group.
    """
    num_reads = reads.shape[0]
    shared = np.zeros(num_reads, np.int64)
    candidates = np.empty(num_reads, np.int64)
    count = 0
    for r in range(num_reads):
        short = reads[r, READ_END] - reads[r, READ_BEGIN] < min_shared
        if not short and chunks[reads[r, READER], NUM_ROWS] <= half_tile:
            candidates[count] = r
            count += 1
    candidates = candidates[:count]
    keys = np.empty(count, np.int64)
    for i in range(count):
        r = candidates[i]
        keys[i] = (reads[r, ENTRY] << 42) | (reads[r, READ_BEGIN] << 21) | reads[r, READ_END]
    order = candidates[np.argsort(keys, kind="mergesort")]  # stable: readers stay in the order of their chunks

    starts = np.empty(count + 1, np.int64)
    counts = np.empty(count + 1, np.int64)
    signatures = np.empty(count + 1, np.int64)
    num_groups = 0
    at = 0
    while at < count:
        first, end = order[at], at + 1
        while end < count:
            r = order[end]
            if (
                reads[r, ENTRY] != reads[first, ENTRY]
                or reads[r, READ_BEGIN] != reads[first, READ_BEGIN]
                or reads[r, READ_END] != reads[first, READ_END]
            ):
                break
            end += 1
        if end - at > 1:
            signature = np.int64(end - at)
            for i in range(at, end):  # any mixing will do: equality is checked below
                signature = (
                    signature * np.int64(6364136223846793005) + reads[order[i], READER] + np.int64(1442695040888)
                )
            starts[num_groups], counts[num_groups], signatures[num_groups] = at, end - at, signature
            num_groups += 1
        at = end

    by_class = np.argsort(signatures[:num_groups], kind="mergesort")
    grouped = np.empty(count, np.int64)
    group_start = np.zeros(num_groups + 1, np.int64)
    class_start = np.empty(num_groups + 1, np.int64)
    num_classes = 0
    filled = 0
    for i in range(num_groups):
        g = by_class[i]
        same = i > 0 and counts[g] == counts[by_class[i - 1]]
        if same:
            before = starts[by_class[i - 1]]
            for j in range(counts[g]):
                same = same and reads[order[before + j], READER] == reads[order[starts[g] + j], READER]
        if not same:
            class_start[num_classes] = i
            num_classes += 1
        for j in range(counts[g]):
            r = order[starts[g] + j]
            grouped[filled] = r
            shared[r] = 1
            filled += 1
        group_start[i + 1] = filled
    class_start[num_classes] = num_groups
    return grouped[:filled], group_start, class_start[: num_classes + 1], shared


@jit  # type: ignore[untyped-decorator]
def _build(
    chunks: Ints,
    reads: Ints,
    page_starts: Ints,
    pages: Buffer,
    buffer: Buffer,
    own: Ints,
    sizes: tuple[int, int, int, int, int, int, int, int, int, int],
) -> int:
    tile_rows, block, num_kv_heads, num_programs, window, min_shared, max_turns, max_items, max_tokens, limit = sizes
    num_chunks, num_reads = chunks.shape[0], reads.shape[0]
    offsets_at = HEADER
    items_at = offsets_at + max_turns
    merge_at = items_at + ITEM_INTS * max_items
    free = merge_at + max_tokens + 1
    order, group_start, class_start, shared = _classes(chunks, reads, tile_rows // 2, min_shared)
    num_shared = class_start.shape[0] - 1

    # The page lists, of the entries in use, each once.
    page_at = np.empty(page_starts.shape[0], np.int64)
    for e in range(page_starts.shape[0] - 1):
        num_pages = page_starts[e + 1] - page_starts[e]
        if free + num_pages > buffer.shape[0]:
            return -1
        page_at[e] = free
        buffer[free : free + num_pages] = pages[page_starts[e] : page_starts[e + 1]]
        free += num_pages

    # Runs: a range of an entry that a class reads. Classes: the shared ones, then each chunk alone.
    num_classes = num_shared + num_chunks
    max_runs = group_start.shape[0] + num_reads + num_chunks
    run_entry = np.empty(max_runs, np.int64)
    run_begin = np.empty(max_runs, np.int64)
    run_end = np.empty(max_runs, np.int64)
    run_turn = np.empty(max_runs, np.int64)
    run_start = np.empty(max_runs, np.int64)
    run_causal = np.zeros(max_runs, np.int64)
    class_run = np.empty(num_classes + 1, np.int64)
    num_runs = 0
    num_turns = 0
    read_at = 0
    for c in range(num_classes):
        class_run[c] = num_runs
        if c < num_shared:
            for g in range(class_start[c], class_start[c + 1]):
                first = order[group_start[g]]
                num_readers = group_start[g + 1] - group_start[g]
                if num_turns + num_readers > max_turns:
                    return -1
                run_entry[num_runs] = reads[first, ENTRY]
                run_begin[num_runs] = reads[first, READ_BEGIN]
                run_end[num_runs] = reads[first, READ_END]
                run_turn[num_runs] = num_turns
                run_start[num_runs] = reads[first, ENTRY_START]
                for j in range(num_readers):
                    buffer[offsets_at + num_turns + j] = reads[order[group_start[g] + j], OFFSET]
                num_turns += num_readers
                num_runs += 1
            continue
        chunk = c - num_shared
        while read_at < num_reads and reads[read_at, READER] == chunk:
            if not shared[read_at]:
                if num_turns + 1 > max_turns:
                    return -1
                run_entry[num_runs] = reads[read_at, ENTRY]
                run_begin[num_runs] = reads[read_at, READ_BEGIN]
                run_end[num_runs] = reads[read_at, READ_END]
                run_turn[num_runs] = num_turns
                run_start[num_runs] = reads[read_at, ENTRY_START]
                buffer[offsets_at + num_turns] = reads[read_at, OFFSET]
                num_turns += 1
                num_runs += 1
            read_at += 1
        if num_turns + 1 > max_turns:
            return -1
        run_entry[num_runs] = chunks[chunk, OWN_ENTRY]
        run_begin[num_runs] = 0
        run_end[num_runs] = chunks[chunk, BEGIN] + chunks[chunk, NUM_ROWS]
        run_turn[num_runs] = num_turns
        run_start[num_runs] = chunks[chunk, START]
        run_causal[num_runs] = 1 if chunks[chunk, NUM_ROWS] > 1 else 0
        buffer[offsets_at + num_turns] = 0
        num_turns += 1
        num_runs += 1
    class_run[num_classes] = num_runs

    # Rows, a tile after another, with the stretch of each run that any row of the tile may see.
    num_tiles = 0
    for c in range(num_classes):
        rows = 0
        if c < num_shared:
            g = class_start[c]
            for i in range(group_start[g], group_start[g + 1]):
                rows += chunks[reads[order[i], READER], NUM_ROWS]
        else:
            rows = chunks[c - num_shared, NUM_ROWS]
        num_tiles += (rows + tile_rows - 1) // tile_rows
    tile_class = np.empty(num_tiles, np.int64)
    tile_row = np.empty(num_tiles, np.int64)
    tile_count = np.empty(num_tiles, np.int64)
    tile_blocks = np.zeros(num_tiles, np.int64)
    tile_span = np.empty(num_tiles + 1, np.int64)  # of `low` and `high`, a value for each run of the class
    num_spans = 0
    tile = 0
    for c in range(num_classes):
        readers = group_start[class_start[c] + 1] - group_start[class_start[c]] if c < num_shared else 1
        opened = False
        for j in range(readers):
            chunk = reads[order[group_start[class_start[c]] + j], READER] if c < num_shared else c - num_shared
            for i in range(chunks[chunk, NUM_ROWS]):
                if not opened or tile_count[tile] == tile_rows:
                    tile += 1 if opened else 0
                    opened = True
                    tile_class[tile], tile_row[tile], tile_count[tile] = c, free, 0
                if free + ROW_INTS > buffer.shape[0]:
                    return -1
                buffer[free] = chunks[chunk, FIRST_ROW] + i
                buffer[free + 1] = j
                buffer[free + 2] = chunks[chunk, POSITION] + i
                own[chunk, 1] = free + 2
                tile_count[tile] += 1
                free += ROW_INTS
        tile += 1 if opened else 0
    for t in range(num_tiles):
        tile_span[t] = num_spans
        num_spans += class_run[tile_class[t] + 1] - class_run[tile_class[t]]
    tile_span[num_tiles] = num_spans
    low = np.empty(num_spans, np.int64)
    high = np.empty(num_spans, np.int64)
    total = 0
    for t in range(num_tiles):
        c = tile_class[t]
        last = tile_row[t] + ROW_INTS * (tile_count[t] - 1)
        for run in range(class_run[c], class_run[c + 1]):
            begin, end = run_begin[run], run_end[run]
            if run_causal[run]:
                end = min(end, buffer[last + 2] - run_start[run] + 1)
            if window >= 0:
                lowest = end
                for i in range(tile_count[t]):
                    row = tile_row[t] + ROW_INTS * i
                    offset = buffer[offsets_at + run_turn[run] + buffer[row + 1]]
                    lowest = min(lowest, buffer[row + 2] - window + 1 - run_start[run] - offset)
                begin = max(begin, lowest)
            span = tile_span[t] + run - class_run[c]
            low[span], high[span] = begin, end
            if end > begin:
                tile_blocks[t] += (end - begin + block - 1) // block
        total += tile_blocks[t]

    # Items of about equal work, and the pieces of runs that each attends to.
    target = max(1, (total * num_kv_heads + num_programs - 1) // num_programs)
    num_tokens = 0
    for chunk in range(num_chunks):
        num_tokens = max(num_tokens, chunks[chunk, FIRST_ROW] + chunks[chunk, NUM_ROWS])
    if num_tokens > max_tokens:
        return -1
    uses = np.zeros(num_tokens + 1, np.int64)
    tile_items = np.empty(num_tiles, np.int64)
    num_items = 0
    for t in range(num_tiles):
        tile_items[t] = (tile_blocks[t] + target - 1) // target
        num_items += tile_items[t]
        for i in range(tile_count[t]):
            uses[buffer[tile_row[t] + ROW_INTS * i]] += tile_items[t]
    if num_items > max_items:
        return -1
    num_partials = 0
    item = items_at
    for t in range(num_tiles):
        c = tile_class[t]
        if tile_items[t] == 0:
            continue
        direct = tile_items[t] == 1 and uses[buffer[tile_row[t]]] == 1
        per_item = (tile_blocks[t] + tile_items[t] - 1) // tile_items[t]
        run = class_run[c]
        at = low[tile_span[t]]
        for _ in range(tile_items[t]):
            buffer[item] = tile_row[t]
            buffer[item + 1] = tile_count[t]
            buffer[item + 2] = free
            buffer[item + 4] = -1 if direct else num_partials
            buffer[item + 5] = 0
            left = per_item
            num_pieces = 0
            while left > 0 and run < class_run[c + 1]:
                end = high[tile_span[t] + run - class_run[c]]
                if at < end:
                    stop = min(end, at + left * block)
                    if free + PIECE_INTS > buffer.shape[0]:
                        return -1
                    buffer[free] = page_at[run_entry[run]]
                    buffer[free + 1] = at
                    buffer[free + 2] = stop
                    buffer[free + 3] = run_turn[run]
                    buffer[free + 4] = run_start[run]
                    buffer[free + 5] = run_causal[run]
                    if c >= num_shared and run == class_run[c + 1] - 1:
                        own[c - num_shared, 0] = free + 2  # the last piece of the message's own keys stays the last
                    free += PIECE_INTS
                    num_pieces += 1
                    left -= (stop - at + block - 1) // block
                    at = stop
                if at >= end:
                    run += 1
                    if run < class_run[c + 1]:
                        at = low[tile_span[t] + run - class_run[c]]
            buffer[item + 3] = num_pieces
            item += ITEM_INTS
            if not direct:
                num_partials += tile_count[t]
    if num_partials > limit or free + num_partials > buffer.shape[0]:
        return -1

    # Each token's partial rows.
    ends = np.empty(num_tokens, np.int64)
    for token in range(num_tokens):
        buffer[merge_at + token] = free
        ends[token] = free
        free += uses[token] if uses[token] > 1 else 0
    for token in range(num_tokens, max_tokens + 1):
        buffer[merge_at + token] = free
    for i in range(num_items):
        at = items_at + ITEM_INTS * i
        if buffer[at + 4] >= 0:
            for j in range(buffer[at + 1]):
                token = buffer[buffer[at] + ROW_INTS * j]
                buffer[ends[token]] = buffer[at + 4] + j
                ends[token] += 1
    buffer[NUM_ITEMS], buffer[NUM_TURNS], buffer[NUM_PARTIALS], buffer[USED] = num_items, num_turns, num_partials, free
    return num_partials
