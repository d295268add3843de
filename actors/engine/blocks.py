"""Blocks: rows of new tokens that read the same things, and what a window leaves of that."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from laban.actors.engine.runs import Runs, between, length_of, merge_adjacent
from laban.actors.engine.sequence import Chunk, Read

# Rows of a block whose window hides something from some of them: its keys are the window's and as many as the rows.
MAX_WINDOWED_ROWS = 256

ByOffset = dict[int, Runs]  # what is read, by how far from its place


@dataclass(frozen=True, slots=True)
class Stretch:
    """Keys that follow one another in a view, the first at `position`."""

    position: int
    runs: Runs

    @property
    def num_keys(self) -> int:
        return length_of(self.runs)

    @property
    def stop(self) -> int:
        return self.position + self.num_keys

    def between(self, begin: int, end: int) -> Stretch:
        return Stretch(self.position + begin, between(self.runs, begin, end))


@dataclass(slots=True)
class Block:
    """Rows [first, stop) that read the same things at the same offsets, besides one another.

    Every row sees all of `reads` and `before` and, of `rows`, those up to itself. Where a layer's window hides from
    some rows what others see, `window` is given: of `partly` and of `rows` a row sees only what is within it.
    """

    first: int
    stop: int
    reads: tuple[Read, ...]
    before: list[Stretch]  # the message's tokens of earlier iterations
    rows: list[Stretch]
    partly: tuple[tuple[int, Stretch], ...] = ()  # (offset, keys)
    window: int | None = None

    @property
    def num_rows(self) -> int:
        return self.stop - self.first

    @property
    def slots(self) -> Runs:
        """Of the rows."""
        return self.rows[0].runs if len(self.rows) == 1 else [run for stretch in self.rows for run in stretch.runs]

    def positions(self) -> Runs:
        """Of the rows."""
        return [(stretch.position, stretch.num_keys) for stretch in self.rows]

    def row_reads(self, by_offset: ByOffset) -> list[tuple[int, ByOffset]]:
        """Each row alone, with what it sees: `by_offset`, and the block up to itself."""
        slots = self.slots
        return [
            (self.first + i, by_offset | {0: merge_adjacent(by_offset.get(0, []) + between(slots, 0, i + 1))})
            for i in range(self.num_rows)
        ]


def make_blocks(chunks: Seq[Chunk]) -> list[Block]:
    blocks: list[Block] = []
    row = 0
    previous: Chunk | None = None
    for chunk in chunks:
        sequence, stop = chunk.sequence, row + chunk.count
        entry, start = sequence.entry, sequence.start
        rows = Stretch(start + chunk.begin, entry.runs(chunk.begin, chunk.begin + chunk.count))
        if previous is not None and _continues(previous, chunk):
            blocks[-1].stop = stop
            blocks[-1].rows.append(rows)
        else:
            before = [Stretch(start, entry.runs(0, chunk.begin))] if chunk.begin else []
            blocks.append(Block(row, stop, sequence.reads, before, [rows]))
        row = stop
        previous = chunk
    return blocks


def _continues(previous: Chunk, chunk: Chunk) -> bool:
    """Whether `chunk` reads just what `previous` does, and then the whole of it: then the two are one causal run."""
    before, after = previous.sequence, chunk.sequence
    if chunk.begin or len(after.reads) != len(before.reads) + 1:
        return False
    last = after.reads[-1]
    whole = last.entry is before.entry and last.begin == 0 and last.end == len(before.tokens) and last.offset == 0
    return whole and previous.begin + previous.count == last.end and after.reads[:-1] == before.reads


def apply_window(blocks: list[Block], window: int, max_single_rows: int) -> list[Block]:
    """What is left of `blocks` in a layer with a window; `blocks` itself if the window hides nothing of them.

    A query at position p sees keys at positions above p - window. A block from which something is hidden is cut into
    blocks of MAX_WINDOWED_ROWS, or of one row, which sees a key or not, if it has up to `max_single_rows`.
    """
    if all(_sees_all(block, window) for block in blocks):
        return blocks
    left: list[Block] = []
    for block in blocks:
        if _sees_all(block, window):
            left.append(block)
            continue
        size = 1 if block.num_rows <= max_single_rows else MAX_WINDOWED_ROWS
        for begin in range(0, block.num_rows, size):
            left.append(_narrow(_part(block, begin, min(begin + size, block.num_rows)), window))
    return left


def _sees_all(block: Block, window: int) -> bool:
    nearest = max(stretch.stop for stretch in block.rows) - window
    return all(x.position >= nearest for stretches in (block.reads, block.before, block.rows) for x in stretches)


def _part(block: Block, begin: int, end: int) -> Block:
    """Rows [begin, end) of `block`; the rows before them are keys like any others."""
    earlier, rows = list(block.before), []
    at = 0
    for stretch in block.rows:
        size = stretch.num_keys
        if at < begin:
            earlier.append(stretch.between(0, begin - at))
        if max(at, begin) < min(at + size, end):
            rows.append(stretch.between(max(begin - at, 0), min(end - at, size)))
        at += size
    return Block(block.first + begin, block.first + end, block.reads, earlier, rows)


def _narrow(block: Block, window: int) -> Block:
    lowest = min(stretch.position for stretch in block.rows)
    highest = max(stretch.stop for stretch in block.rows) - 1
    reads: list[Read] = []
    before: list[Stretch] = []
    partly: list[tuple[int, Stretch]] = []
    for read in block.reads:
        hidden = max(0, lowest - window + 1 - read.position)  # from every row
        if hidden >= read.end - read.begin:
            continue
        begin = read.begin + hidden
        if highest - read.position - hidden < window:
            reads.append(replace(read, begin=begin))
        else:
            partly.append((read.offset, Stretch(read.position + hidden, read.entry.runs(begin, read.end))))
    for stretch in block.before:
        hidden = max(0, lowest - window + 1 - stretch.position)
        size = stretch.num_keys
        if hidden >= size:
            continue
        seen = stretch.between(hidden, size)
        if highest - seen.position < window:
            before.append(seen)
        else:
            partly.append((0, seen))
    hides = bool(partly) or highest - lowest >= window
    return Block(block.first, block.stop, tuple(reads), before, block.rows, tuple(partly), window if hides else None)
