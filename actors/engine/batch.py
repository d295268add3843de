"""One iteration's batch: which tokens are computed, where their keys go, and who attends to what.

Chunks of sequences become blocks of rows with the same reads; reads become the tiles and row reads of an
`AttentionPlan`. What several blocks read is stacked into one tile, whatever their offsets; the rest is
gathered per block and offset, or left to the kernel for single rows.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from laban.actors.engine.sequence import Chunk, Read
from laban.kernels.rotary import turn_tables
from laban.kernels.row_attention import RowReads, has_compiled_rows
from laban.kernels.view_attention import AttentionPlan, Index, StackedTile
from laban.kvstore.store import Entry

# Below this many tokens a shared read costs more in queries and partial results than it saves in keys.
MIN_SHARED_TOKENS = 128
# For few rows, a stretch of keys this long is read where it lies: a gather would copy more than another tile costs.
MIN_SLICE_TOKENS = 256
MAX_SLICE_ROWS = 8
# Rows times keys that the compiled kernel for single rows does in the time that a tile costs besides its arithmetic.
ROW_WORK_PER_TILE = 2048

Runs = list[tuple[int, int]]  # (first, length)
ByOffset = dict[int, Runs]  # what is read, by how far from its place


@dataclass(frozen=True, slots=True)
class Batch:
    token_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    write_slots: Index  # [num_tokens]
    logit_rows: Tensor  # [num_sampled] int64: rows whose next token is wanted, in chunk order
    plan: AttentionPlan

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]


@dataclass(slots=True)
class _Block:
    """Rows [first, stop) that read the same things at the same offsets, besides one another."""

    first: int
    stop: int
    reads: tuple[Read, ...]
    entry: Entry  # of the first row's message
    begin: int  # the first row's index in it
    slots: Runs  # of the rows

    @property
    def num_rows(self) -> int:
        return self.stop - self.first

    def rows(self, by_offset: ByOffset) -> list[tuple[int, ByOffset]]:
        """Each row alone, with what it sees: `by_offset`, and the block up to itself."""
        return [
            (self.first + i, by_offset | {0: _merge_adjacent(by_offset.get(0, []) + _clip(self.slots, i + 1))})
            for i in range(self.num_rows)
        ]


def build_batch(chunks: Seq[Chunk], inv_freq: Tensor, dtype: torch.dtype, device: torch.device) -> Batch:
    """The batch of `chunks`, in order. `inv_freq` are the model's rotary inverse frequencies."""
    token_ids: list[int] = []
    positions: list[Tensor] = []
    slots: Runs = []
    logit_rows: list[int] = []
    for chunk in chunks:
        sequence, end = chunk.sequence, chunk.begin + chunk.count
        token_ids += sequence.tokens[chunk.begin : end]
        positions.append(torch.arange(sequence.start + chunk.begin, sequence.start + end))
        slots += sequence.entry.runs(chunk.begin, end)
        if sequence.wants_token and end == len(sequence.tokens):
            logit_rows.append(len(token_ids) - 1)
    plan = _Planner(len(token_ids), inv_freq, dtype, device).plan(_blocks(chunks))
    write_slots = _index(slots)
    return Batch(
        torch.tensor(token_ids, device=device),
        torch.cat(positions).to(device),
        write_slots if isinstance(write_slots, slice) else write_slots.to(device),
        torch.tensor(logit_rows, dtype=torch.int64, device=device),
        plan,
    )


def _blocks(chunks: Seq[Chunk]) -> list[_Block]:
    blocks: list[_Block] = []
    row = 0
    previous: Chunk | None = None
    for chunk in chunks:
        entry, stop = chunk.sequence.entry, row + chunk.count
        slots = entry.runs(chunk.begin, chunk.begin + chunk.count)
        if previous is not None and _continues(previous, chunk):
            blocks[-1].stop = stop
            blocks[-1].slots += slots
        else:
            blocks.append(_Block(row, stop, chunk.sequence.reads, entry, chunk.begin, slots))
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


class _Planner:
    """Collects tiles. Rows of the queries are 0 .. num_tokens - 1; turned copies are numbered after them."""

    def __init__(self, num_tokens: int, inv_freq: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        self.num_tokens, self.inv_freq, self.dtype, self.device = num_tokens, inv_freq, dtype, device
        self.compiled_rows = has_compiled_rows(device, dtype)
        self.turned: list[tuple[int, int, int]] = []  # (first row, number of rows, offset)
        self.num_turned = 0
        self.turned_at: dict[tuple[int, int], int] = {}  # (block's first row, offset) -> first turned row

    def plan(self, blocks: list[_Block]) -> AttentionPlan:
        causal: list[_Block] = []
        # (members, keys): each member is a block and the offset at which it reads the keys.
        tiles: list[tuple[list[tuple[_Block, int]], Runs]] = []
        single: list[tuple[int, ByOffset]] = []  # (token, what it reads)
        shared, private = self._split(blocks)
        for (entry, begin, end), members in shared.items():
            tiles.append((members, entry.runs(begin, end)))
        for block, by_offset in zip(blocks, private, strict=True):
            if self._belongs_to_rows(block, by_offset):
                single += block.rows(by_offset)
                continue
            rest: ByOffset = {}
            for offset, runs in by_offset.items():
                if block.num_rows <= MAX_SLICE_ROWS:
                    merged = _merge_adjacent(runs)
                    tiles += [([(block, offset)], [run]) for run in merged if run[1] >= MIN_SLICE_TOKENS]
                    runs = [run for run in merged if run[1] < MIN_SLICE_TOKENS]
                if runs:
                    rest[offset] = runs
            if block.num_rows == 1:
                single += block.rows(rest)
            else:
                causal.append(block)
                tiles += [([(block, offset)], runs) for offset, runs in rest.items()]

        owners: Runs = [(block.first, block.num_rows) for block in causal]
        stacked_tiles = []
        for members, runs in tiles:
            rows = [self._rows(block, offset) for block, offset in members]
            owners += [(block.first, block.num_rows) for block, _ in members]
            stacked_tiles.append(StackedTile(_to(_index(rows), self.device), _to(_index(runs), self.device)))
        owners += [(token, 1) for token, _ in single]
        in_order = _index(owners) == slice(0, self.num_tokens)
        turned, cos, sin = self._turn()
        return AttentionPlan(
            num_tokens=self.num_tokens,
            turned=turned,
            turn_cos=cos,
            turn_sin=sin,
            causal=tuple(slice(block.first, block.stop) for block in causal),
            stacked=tuple(stacked_tiles),
            rows=self._row_reads(single) if single else None,
            owners=_tensor(owners).to(self.device),
            in_order=in_order,
        )

    def _split(
        self, blocks: list[_Block]
    ) -> tuple[dict[tuple[Entry, int, int], list[tuple[_Block, int]]], list[ByOffset]]:
        """Reads worth stacking, by what is read, and for each block what it reads alone."""
        readers: dict[tuple[Entry, int, int], list[tuple[_Block, int]]] = {}
        for block in blocks:
            for read in block.reads:
                readers.setdefault((read.entry, read.begin, read.end), []).append((block, read.offset))
        least_work = 2 * ROW_WORK_PER_TILE if self.compiled_rows else 0
        shared = {
            (entry, begin, end): members
            for (entry, begin, end), members in readers.items()
            if len(members) > 1
            and end - begin >= MIN_SHARED_TOKENS
            and (end - begin) * sum(block.num_rows for block, _ in members) >= least_work
        }
        private: list[ByOffset] = []
        for block in blocks:
            by_offset: ByOffset = {}
            for read in block.reads:
                if (read.entry, read.begin, read.end) not in shared:
                    by_offset.setdefault(read.offset, []).extend(read.entry.runs(read.begin, read.end))
            if block.begin:  # its own tokens of earlier iterations
                by_offset.setdefault(0, []).extend(block.entry.runs(0, block.begin))
            private.append(by_offset)
        return shared, private

    def _belongs_to_rows(self, block: _Block, by_offset: ByOffset) -> bool:
        """Whether to leave all that `block` reads alone to the compiled kernel."""
        if not self.compiled_rows:
            return False
        num_keys = block.num_rows + sum(map(_length, by_offset.values()))
        return block.num_rows == 1 or block.num_rows * num_keys <= ROW_WORK_PER_TILE * (1 + len(by_offset))

    def _row_reads(self, single: list[tuple[int, ByOffset]]) -> RowReads:
        turns: dict[int, int] = {}
        starts, runs, turn_of_run = [0], Runs(), list[int]()
        for _, by_offset in single:
            for offset, merged in by_offset.items():
                runs += merged
                turn_of_run += [turns.setdefault(offset, len(turns)) if offset else -1] * len(merged)
            starts.append(len(runs))
        cos, sin = turn_tables(torch.tensor(list(turns), device=self.inv_freq.device), self.inv_freq, self.dtype)
        first, length = torch.tensor(runs, device=self.device).T.contiguous()
        return RowReads(
            torch.tensor([token for token, _ in single], device=self.device),
            torch.tensor(starts, device=self.device),
            first,
            length,
            torch.tensor(turn_of_run, device=self.device),
            cos,
            sin,
        )

    def _rows(self, block: _Block, offset: int) -> tuple[int, int]:
        """The rows of `block`'s queries, turned for `offset`."""
        if offset == 0:
            return block.first, block.num_rows
        key = (block.first, offset)
        if key not in self.turned_at:
            self.turned_at[key] = self.num_tokens + self.num_turned
            self.turned.append((block.first, block.num_rows, offset))
            self.num_turned += block.num_rows
        return self.turned_at[key], block.num_rows

    def _turn(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if not self.turned:
            return None, None, None
        rows = _tensor([(first, count) for first, count, _ in self.turned]).to(self.device)
        offsets = torch.tensor([offset for _, _, offset in self.turned])
        counts = torch.tensor([count for _, count, _ in self.turned])
        cos, sin = turn_tables(offsets.to(self.inv_freq.device), self.inv_freq, self.dtype)
        repeats = counts.to(cos.device)
        return rows, cos.repeat_interleave(repeats, 0), sin.repeat_interleave(repeats, 0)


def _merge_adjacent(runs: Runs) -> Runs:
    merged: Runs = []
    for first, length in runs:
        if merged and sum(merged[-1]) == first:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((first, length))
    return merged


def _clip(runs: Runs, num_slots: int) -> Runs:
    """The first `num_slots` slots of `runs`."""
    clipped: Runs = []
    for first, length in runs:
        if num_slots <= 0:
            break
        clipped.append((first, min(length, num_slots)))
        num_slots -= length
    return clipped


def _length(runs: Runs) -> int:
    return sum(length for _, length in runs)


def _index(runs: Runs) -> Index:
    """`runs` as one slice if they follow one another, else as a tensor."""
    at = runs[0][0]
    for first, length in runs:
        if first != at:
            return _tensor(runs)
        at += length
    return slice(runs[0][0], at)


def _tensor(runs: Runs) -> Tensor:
    return torch.cat([torch.arange(first, first + length) for first, length in runs])


def _to(index: Index, device: torch.device) -> Index:
    return index if isinstance(index, slice) else index.to(device)
