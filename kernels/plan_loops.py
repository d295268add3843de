"""The planner of the fused kernel as compiled loops: who reads the same, in which tiles, cut into which items.

`view_plan` says what the arguments are, `plan_layout` what the buffer holds.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from laban.kernels.plan_layout import (
    BEGIN,
    CAUSAL,
    COUNT_BITS,
    ENTRY,
    ENTRY_START,
    FIRST_ROW,
    HEADER,
    ITEM_INTS,
    NUM_ITEMS,
    NUM_PARTIALS,
    NUM_ROWS,
    NUM_TILE_ROWS,
    NUM_TURNED,
    OFFSET,
    OWN_ENTRY,
    PACKED,
    PACKED_INTS,
    PIECE_INTS,
    PLAIN,
    POSITION,
    READ_BEGIN,
    READ_END,
    READER,
    ROW_INTS,
    ROWS_AT,
    START,
    TOTAL_BLOCKS,
    USED,
    Buffer,
    Ints,
)

jit: Any = numba.njit(cache=True)


@jit  # type: ignore[untyped-decorator]
def advance(buffer: Buffer, own: Ints, page_size: int) -> int:
    mask = (1 << COUNT_BITS) - 1
    for at in own:
        if at < 0:
            return 0
        if buffer[at] & mask == page_size and buffer[at + PACKED_INTS] >> COUNT_BITS != buffer[at] >> COUNT_BITS:
            return 0
    for c in range(own.shape[0]):
        if buffer[own[c]] & mask == page_size:
            own[c] += PACKED_INTS
        buffer[own[c]] += 1
    for i in range(buffer[NUM_TILE_ROWS]):
        buffer[buffer[ROWS_AT] + ROW_INTS * i + 2] += 1
    buffer[HEADER : HEADER + buffer[NUM_TURNED]] += 1
    return 1


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
        if chunks[reads[r, READER], NUM_ROWS] <= half_tile:
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
    class_start = np.zeros(num_groups + 1, np.int64)
    num_classes, kept, filled = 0, 0, 0
    first = 0
    while first < num_groups:
        # The groups from `first` to `end` have the same readers.
        before, size = starts[by_class[first]], counts[by_class[first]]
        tokens = 0
        end = first
        while end < num_groups and counts[by_class[end]] == size:
            at = starts[by_class[end]]
            same = True
            for j in range(size):
                same = same and reads[order[before + j], READER] == reads[order[at + j], READER]
            if not same:
                break
            tokens += reads[order[at], READ_END] - reads[order[at], READ_BEGIN]
            end += 1
        if tokens >= min_shared:
            for i in range(first, end):
                for j in range(size):
                    grouped[filled] = order[starts[by_class[i]] + j]
                    shared[grouped[filled]] = 1
                    filled += 1
                kept += 1
                group_start[kept] = filled
            num_classes += 1
            class_start[num_classes] = kept
        first = end
    return grouped[:filled], group_start[: kept + 1], class_start[: num_classes + 1], shared


@jit  # type: ignore[untyped-decorator]
def _turn(
    chunks: Ints, readers: Ints, offsets: Ints, num_turned: int, max_turned: int, buffer: Buffer
) -> tuple[int, int]:
    """Lists the rows of `readers`, turned by `offsets`. Returns (the first, -1 for none; their number, -1: no room)."""
    if not offsets.any():
        return -1, num_turned
    first = num_turned
    for j in range(readers.shape[0]):
        chunk = readers[j]
        if num_turned + chunks[chunk, NUM_ROWS] > max_turned:
            return 0, -1
        for i in range(chunks[chunk, NUM_ROWS]):
            buffer[HEADER + num_turned] = chunks[chunk, POSITION] + i - offsets[j]
            buffer[HEADER + max_turned + num_turned] = chunks[chunk, FIRST_ROW] + i
            num_turned += 1
    return first, num_turned


@jit  # type: ignore[untyped-decorator]
def _runs(
    chunks: Ints, reads: Ints, order: Ints, group_start: Ints, class_start: Ints, shared: Ints, half_tile: int,
    max_turned: int, buffer: Buffer,
) -> tuple[Ints, Ints, int]:  # fmt: skip
    """What each class reads: (runs, where each class's begin, number of turned rows; -1 if there are too many).

    A run is [entry, begin, end, first turned row, position at which the entry was encoded, kind]. Classes are the
    shared ones, then each chunk with what it reads alone: for chunks of many rows their own keys too.
    """
    num_shared, num_chunks, num_reads = class_start.shape[0] - 1, chunks.shape[0], reads.shape[0]
    runs = np.empty((group_start.shape[0] + num_reads + num_chunks, 6), np.int64)
    class_run = np.empty(num_shared + num_chunks + 1, np.int64)
    count, turned, at = 0, 0, 0
    for c in range(num_shared):
        class_run[c] = count
        for g in range(class_start[c], class_start[c + 1]):
            members = order[group_start[g] : group_start[g + 1]]
            first = members[0]
            first_turned, turned = _turn(
                chunks, reads[members, READER], reads[members, OFFSET], turned, max_turned, buffer
            )
            if turned < 0:
                return runs, class_run, -1
            runs[count, 0], runs[count, 1], runs[count, 2] = reads[first, 1], reads[first, 2], reads[first, 3]
            runs[count, 3], runs[count, 4], runs[count, 5] = first_turned, reads[first, ENTRY_START], PLAIN
            count += 1
    for chunk in range(num_chunks):
        class_run[num_shared + chunk] = count
        while at < num_reads and reads[at, READER] == chunk:
            if not shared[at]:
                first_turned, turned = _turn(
                    chunks, reads[at : at + 1, READER], reads[at : at + 1, OFFSET], turned, max_turned, buffer
                )
                if turned < 0:
                    return runs, class_run, -1
                runs[count, 0], runs[count, 1], runs[count, 2] = reads[at, 1], reads[at, 2], reads[at, 3]
                runs[count, 3], runs[count, 4], runs[count, 5] = first_turned, reads[at, ENTRY_START], PLAIN
                count += 1
            at += 1
        if chunks[chunk, NUM_ROWS] > half_tile:
            runs[count, 0], runs[count, 1] = chunks[chunk, OWN_ENTRY], 0
            runs[count, 2] = chunks[chunk, BEGIN] + chunks[chunk, NUM_ROWS]
            runs[count, 3], runs[count, 4] = -1, chunks[chunk, START]
            runs[count, 5] = CAUSAL if chunks[chunk, NUM_ROWS] > 1 else PLAIN
            count += 1
    class_run[num_shared + num_chunks] = count
    return runs, class_run, turned


@jit  # type: ignore[untyped-decorator]
def _pack(
    chunks: Ints, tile_chunks: Ints, page_starts: Ints, pages: Buffer, page_size: int, window: int, buffer: Buffer,
    free: int, own: Ints,
) -> int:  # fmt: skip
    """Lists the pages of the messages that `tile_chunks` make, at `free`; returns how many (-1: no room)."""
    count = 0
    for reader in tile_chunks:
        entry = chunks[reader, OWN_ENTRY]
        keys = chunks[reader, BEGIN] + chunks[reader, NUM_ROWS]
        first = 0
        if window >= 0:
            first = max(0, (chunks[reader, POSITION] - window + 1 - chunks[reader, START]) // page_size)
        needed = (keys + page_size - 1) // page_size
        # A page more than is needed, empty, for the tokens to come.
        for page in range(first, min(needed + 1, page_starts[entry + 1] - page_starts[entry])):
            at = free + PACKED_INTS * count
            if at + 2 * PACKED_INTS > buffer.shape[0]:
                return -1
            buffer[at] = pages[page_starts[entry] + page]
            buffer[at + 1] = reader << COUNT_BITS | max(0, min(page_size, keys - page * page_size))
            buffer[at + 2] = chunks[reader, START] + page * page_size
            if page == needed - 1:
                own[reader] = at + 1
            count += 1
    at = free + PACKED_INTS * count  # nobody's: where `advance` looks for one more page
    buffer[at], buffer[at + 1], buffer[at + 2] = 0, -1, 0
    return count


@jit  # type: ignore[untyped-decorator]
def build(
    chunks: Ints,
    reads: Ints,
    page_starts: Ints,
    pages: Buffer,
    buffer: Buffer,
    own: Ints,
    sizes: tuple[int, int, int, int, int, int, int, int, int, int, int],
) -> int:
    tile_rows, block, num_kv_heads, num_programs, page_size = sizes[:5]
    window, min_shared, max_turned, max_items, max_tokens, max_partials = sizes[5:]
    num_chunks, half_tile, room = chunks.shape[0], tile_rows // 2, buffer.shape[0]
    items_at = HEADER + 2 * max_turned
    merge_at = items_at + ITEM_INTS * max_items
    free = merge_at + max_tokens + 1
    own[:] = -1

    # The page lists of the entries, each once.
    page_at = np.empty(page_starts.shape[0], np.int64)
    for e in range(page_starts.shape[0] - 1):
        num_pages = page_starts[e + 1] - page_starts[e]
        if free + num_pages > room:
            return -1
        page_at[e] = free
        buffer[free : free + num_pages] = pages[page_starts[e] : page_starts[e + 1]]
        free += num_pages

    order, group_start, class_start, shared = _classes(chunks, reads, half_tile, min_shared)
    num_shared = class_start.shape[0] - 1
    runs, class_run, num_turned = _runs(
        chunks, reads, order, group_start, class_start, shared, half_tile, max_turned, buffer
    )
    if num_turned < 0:
        return -1

    # Tiles of rows. The last class is that of all short chunks, over the messages that they make.
    packed_class = num_shared + num_chunks
    num_rows = 0
    for c in range(num_chunks):
        num_rows += chunks[c, NUM_ROWS]
    rows_at = free
    max_tiles = packed_class + (order.shape[0] * half_tile + 2 * num_rows) // tile_rows + 2
    tiles = np.empty((max_tiles, 4), np.int64)  # class, first row, rows, first span
    num_tiles = 0
    members = np.empty(max(num_chunks, order.shape[0]), np.int64)
    for c in range(packed_class + 1):
        num_members = 0
        if c < num_shared:
            g = class_start[c]
            for i in range(group_start[g], group_start[g + 1]):
                members[num_members] = reads[order[i], READER]
                num_members += 1
        elif c < packed_class:
            if class_run[c + 1] > class_run[c]:
                members[0] = c - num_shared
                num_members = 1
        else:
            for chunk in range(num_chunks):
                if chunks[chunk, NUM_ROWS] <= half_tile:
                    members[num_members] = chunk
                    num_members += 1
        filled = tile_rows  # of the tile that is being filled
        number = 0
        for j in range(num_members):
            chunk = members[j]
            for i in range(chunks[chunk, NUM_ROWS]):
                if filled == tile_rows:
                    tiles[num_tiles, 0], tiles[num_tiles, 1], tiles[num_tiles, 2] = c, free, 0
                    num_tiles += 1
                    filled = 0
                if free + ROW_INTS > room:
                    return -1
                buffer[free] = chunks[chunk, FIRST_ROW] + i
                buffer[free + 1] = chunk if c == packed_class else number
                number += 1
                buffer[free + 2] = chunks[chunk, POSITION] + i
                filled += 1
                tiles[num_tiles - 1, 2] = filled
                free += ROW_INTS

    num_tile_rows = (free - rows_at) // ROW_INTS

    # Spans: the stretch of each run that any row of the tile may see.
    num_spans = 0
    for t in range(num_tiles):
        tiles[t, 3] = num_spans
        c = tiles[t, 0]
        num_spans += 1 if c == packed_class else class_run[c + 1] - class_run[c]
    spans = np.empty((num_spans, 6), np.int64)  # page list, begin, end, first turn, start, kind
    blocks = np.zeros(num_tiles, np.int64)
    total = 0
    tile_chunks = np.empty(tile_rows, np.int64)
    for t in range(num_tiles):
        c, first_row, count, span = tiles[t]
        if c == packed_class:
            num_members = 0
            for i in range(count):
                reader = buffer[first_row + ROW_INTS * i + 1]
                if num_members == 0 or tile_chunks[num_members - 1] != reader:
                    tile_chunks[num_members] = reader
                    num_members += 1
            listed = _pack(chunks, tile_chunks[:num_members], page_starts, pages, page_size, window, buffer, free, own)
            if listed < 0:
                return -1
            spans[span, 0], spans[span, 1], spans[span, 2] = free, 0, listed * page_size
            spans[span, 3], spans[span, 4], spans[span, 5] = -1, 0, PACKED
            blocks[t] = (listed * page_size + block - 1) // block
            free += PACKED_INTS * (listed + 1)
        else:
            last_position = buffer[first_row + ROW_INTS * (count - 1) + 2]
            for run in range(class_run[c], class_run[c + 1]):
                begin, end = runs[run, 1], runs[run, 2]
                if runs[run, 5] == CAUSAL:
                    end = min(end, last_position - runs[run, 4] + 1)
                if window >= 0:
                    lowest = end
                    for i in range(count):
                        row = first_row + ROW_INTS * i
                        turned = runs[run, 3] >= 0
                        position = buffer[HEADER + runs[run, 3] + buffer[row + 1]] if turned else buffer[row + 2]
                        lowest = min(lowest, position - window + 1 - runs[run, 4])
                    begin = max(begin, lowest)
                spans[span, 0], spans[span, 1], spans[span, 2] = page_at[runs[run, 0]], begin, end
                spans[span, 3], spans[span, 4], spans[span, 5] = runs[run, 3], runs[run, 4], runs[run, 5]
                if end > begin:
                    blocks[t] += (end - begin + block - 1) // block
                span += 1
        total += blocks[t]

    # Items of about equal work. A row with one item alone takes that item's result; the others' are merged.
    target = max(1, (total * num_kv_heads + num_programs - 1) // num_programs)
    num_tokens = 0
    for c in range(num_chunks):
        num_tokens = max(num_tokens, chunks[c, FIRST_ROW] + chunks[c, NUM_ROWS])
    if num_tokens > max_tokens:
        return -1
    uses = np.zeros(num_tokens + 1, np.int64)
    num_items = 0
    for t in range(num_tiles):
        count = (blocks[t] + target - 1) // target
        num_items += count
        for i in range(tiles[t, 2]):
            uses[buffer[tiles[t, 1] + ROW_INTS * i]] += count
    if num_items > max_items:
        return -1
    num_partials = 0
    item = items_at
    for t in range(num_tiles):
        count = (blocks[t] + target - 1) // target
        if count == 0:
            continue
        direct = count == 1
        for i in range(tiles[t, 2]):
            direct = direct and uses[buffer[tiles[t, 1] + ROW_INTS * i]] == 1
        if direct:
            for i in range(tiles[t, 2]):
                uses[buffer[tiles[t, 1] + ROW_INTS * i]] = 0  # nothing to merge
        per_item = (blocks[t] + count - 1) // count
        span = tiles[t, 3]
        last_span = tiles[t + 1, 3] if t + 1 < num_tiles else num_spans
        at = spans[span, 1]
        for _ in range(count):
            buffer[item], buffer[item + 1], buffer[item + 2] = tiles[t, 1], tiles[t, 2], free
            buffer[item + 4], buffer[item + 5] = -1 if direct else num_partials, 0
            left = per_item
            num_pieces = 0
            while left > 0 and span < last_span:
                end = spans[span, 2]
                if at < end:
                    stop = min(end, at + left * block)
                    if free + PIECE_INTS > room:
                        return -1
                    buffer[free], buffer[free + 1], buffer[free + 2] = spans[span, 0], at, stop
                    buffer[free + 3], buffer[free + 4], buffer[free + 5] = (
                        spans[span, 3],
                        spans[span, 4],
                        spans[span, 5],
                    )
                    free += PIECE_INTS
                    num_pieces += 1
                    left -= (stop - at + block - 1) // block
                    at = stop
                if at >= end:
                    span += 1
                    if span < last_span:
                        at = spans[span, 1]
            buffer[item + 3] = num_pieces
            item += ITEM_INTS
            if not direct:
                num_partials += tiles[t, 2]
    if num_partials > max_partials or free + num_partials > room:
        return -1

    # Each token's partial rows.
    ends = np.empty(num_tokens, np.int64)
    for token in range(num_tokens):
        buffer[merge_at + token] = free
        ends[token] = free
        free += uses[token]
    buffer[merge_at + num_tokens : merge_at + max_tokens + 1] = free
    for i in range(num_items):
        at = items_at + ITEM_INTS * i
        if buffer[at + 4] >= 0:
            for j in range(buffer[at + 1]):
                token = buffer[buffer[at] + ROW_INTS * j]
                buffer[ends[token]] = buffer[at + 4] + j
                ends[token] += 1
    buffer[NUM_ITEMS], buffer[NUM_TURNED], buffer[NUM_PARTIALS] = num_items, num_turned, num_partials
    buffer[USED], buffer[TOTAL_BLOCKS] = free, total
    buffer[ROWS_AT], buffer[NUM_TILE_ROWS] = rows_at, num_tile_rows
    return num_partials
