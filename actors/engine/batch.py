"""One iteration's batch: which tokens are computed, where their keys go, and who attends to what.

Chunks of sequences become blocks of rows with the same reads; reads become the tiles of an
`AttentionPlan`. What several blocks read is stacked into one tile, whatever their offsets; the rest is
gathered per block and offset, and single rows with little to read are padded together.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from laban.actors.engine.sequence import Read, Sequence
from laban.kernels.rotary import turn_tables
from laban.kernels.view_attention import AttentionPlan, Index, PaddedTile, StackedTile
from laban.kvstore.store import Entry

# Below this many tokens a shared read costs more in queries and partial results than it saves in keys.
MIN_SHARED_TOKENS = 128
# For few rows, a stretch of keys this long is read where it lies: a gather would copy more than another tile costs.
MIN_SLICE_TOKENS = 256
MAX_SLICE_ROWS = 8
# Of the padded tiles: a longer piece pads more, a shorter one repeats the query more often.
PIECE_TOKENS = 64

Runs = list[tuple[int, int]]  # (first, length)


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a sequence from token `begin` on."""

    sequence: Sequence
    begin: int
    count: int


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

    @property
    def num_rows(self) -> int:
        return self.stop - self.first

    @property
    def own_keys(self) -> Runs:
        """The block's own tokens in the pool: those of earlier iterations, and a single row itself."""
        return self.entry.runs(0, self.begin + (self.num_rows == 1))


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
    planner = _Planner(len(token_ids))
    plan = planner.plan(_blocks(chunks), inv_freq, dtype, device)
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
        if previous is not None and _continues(previous, chunk):
            blocks[-1].stop += chunk.count
        else:
            blocks.append(_Block(row, row + chunk.count, chunk.sequence.reads, chunk.sequence.entry, chunk.begin))
        row += chunk.count
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

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.turned: list[tuple[int, int, int]] = []  # (first row, number of rows, offset)
        self.num_turned = 0
        self.turned_at: dict[tuple[int, int], int] = {}  # (block's first row, offset) -> first turned row

    def plan(self, blocks: list[_Block], inv_freq: Tensor, dtype: torch.dtype, device: torch.device) -> AttentionPlan:
        causal = [block for block in blocks if block.num_rows > 1]
        shared, private = _split(blocks)
        # (members, keys): each member is a block and the offset at which it reads the keys.
        tiles: list[tuple[list[tuple[_Block, int]], Runs]] = []
        single: list[tuple[_Block, dict[int, Runs]]] = []
        for (entry, begin, end), members in shared.items():
            tiles.append((members, entry.runs(begin, end)))
        sharing = {block.first for members in shared.values() for block, _ in members}
        for block, by_offset in zip(blocks, private, strict=True):
            # A single tile needs no merge, which is worth the gather of up to four times as many tokens.
            alone = block.num_rows == 1 and len(by_offset) == 1 and block.first not in sharing
            if alone and _length(by_offset[next(iter(by_offset))]) < 4 * MIN_SLICE_TOKENS:
                single.append((block, by_offset))
                continue
            little: dict[int, Runs] = {}
            for offset, runs in by_offset.items():
                if block.num_rows <= MAX_SLICE_ROWS:
                    merged = _merge_adjacent(runs)
                    tiles += [([(block, offset)], [run]) for run in merged if run[1] >= MIN_SLICE_TOKENS]
                    runs = [run for run in merged if run[1] < MIN_SLICE_TOKENS]
                if runs and block.num_rows == 1:
                    little[offset] = runs
                elif runs:
                    tiles.append(([(block, offset)], runs))
            if little:
                single.append((block, little))

        owners: Runs = [(block.first, block.num_rows) for block in causal]
        stacked_tiles = []
        for members, runs in tiles:
            rows = [self._rows(block, offset) for block, offset in members]
            owners += [(block.first, block.num_rows) for block, _ in members]
            stacked_tiles.append(StackedTile(_to(_index(rows), device), _to(_index(runs), device)))
        padded_tiles = []
        for group in _pad_groups(single):
            owners += [(block.first, 1) for block, _ in group]
            pieces = [
                [(self._rows(block, offset)[0], piece) for offset, runs in little.items() for piece in _pieces(runs)]
                for block, little in group
            ]
            padded_tiles.append(_padded_tile(pieces, device))
        in_order = _index(owners) == slice(0, self.num_tokens)
        turned, cos, sin = self._turn(inv_freq, dtype, device)
        return AttentionPlan(
            num_tokens=self.num_tokens,
            turned=turned,
            turn_cos=cos,
            turn_sin=sin,
            causal=tuple(slice(block.first, block.stop) for block in causal),
            stacked=tuple(stacked_tiles),
            padded=tuple(padded_tiles),
            owners=_tensor(owners).to(device),
            in_order=in_order,
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

    def _turn(
        self, inv_freq: Tensor, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if not self.turned:
            return None, None, None
        rows = _tensor([(first, count) for first, count, _ in self.turned]).to(device)
        offsets = torch.tensor([offset for _, _, offset in self.turned])
        counts = torch.tensor([count for _, count, _ in self.turned])
        cos, sin = turn_tables(offsets.to(inv_freq.device), inv_freq, dtype)
        repeats = counts.to(cos.device)
        return rows, cos.repeat_interleave(repeats, 0), sin.repeat_interleave(repeats, 0)


def _split(
    blocks: list[_Block],
) -> tuple[dict[tuple[Entry, int, int], list[tuple[_Block, int]]], list[dict[int, Runs]]]:
    """Reads worth stacking, by what is read, and for each block what it reads alone, by offset."""
    readers: dict[tuple[Entry, int, int], list[tuple[_Block, int]]] = {}
    for block in blocks:
        for read in block.reads:
            readers.setdefault((read.entry, read.begin, read.end), []).append((block, read.offset))
    shared = {
        key: members for key, members in readers.items() if len(members) > 1 and key[2] - key[1] >= MIN_SHARED_TOKENS
    }
    private: list[dict[int, Runs]] = []
    for block in blocks:
        by_offset: dict[int, Runs] = {}
        for read in block.reads:
            if (read.entry, read.begin, read.end) not in shared:
                by_offset.setdefault(read.offset, []).extend(read.entry.runs(read.begin, read.end))
        if own_keys := block.own_keys:
            by_offset.setdefault(0, []).extend(own_keys)
        private.append(by_offset)
    return shared, private


def _pad_groups(single: list[tuple[_Block, dict[int, Runs]]]) -> list[list[tuple[_Block, dict[int, Runs]]]]:
    """Rows with about as much to read together, so that padding at most doubles the work."""
    sizes = {block.first: sum(len(_pieces(runs)) for runs in little.values()) for block, little in single}
    groups: list[list[tuple[_Block, dict[int, Runs]]]] = []
    for item in sorted(single, key=lambda item: sizes[item[0].first]):
        if groups and sizes[item[0].first] <= 2 * sizes[groups[-1][0][0].first]:
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _pieces(runs: Runs) -> list[Runs]:
    """`runs` cut into pieces of PIECE_TOKENS; the last may be shorter."""
    pieces: list[Runs] = [[]]
    room = PIECE_TOKENS
    for first, length in runs:
        at, left = first, length
        while left:
            if not room:
                pieces.append([])
                room = PIECE_TOKENS
            taken = min(left, room)
            pieces[-1].append((at, taken))
            at, left, room = at + taken, left - taken, room - taken
    return pieces


def _padded_tile(rows: list[list[tuple[int, Runs]]], device: torch.device) -> PaddedTile:
    """A tile of one row for each list of (query, keys)."""
    most = max(map(len, rows))
    longest = max(_length(runs) for pieces in rows for _, runs in pieces)
    queries = torch.empty(len(rows), most, dtype=torch.int64)
    slots = torch.empty(len(rows), most, longest, dtype=torch.int64)
    bias = torch.full((len(rows), 1, 1, most, longest), -torch.inf)
    for i, pieces in enumerate(rows):
        # Padding reads what the row may read anyway, and weighs nothing.
        queries[i], slots[i] = pieces[0][0], pieces[0][1][0][0]
        for j, (query, runs) in enumerate(pieces):
            queries[i, j] = query
            slots[i, j, : _length(runs)] = _tensor(runs)
            bias[i, ..., j, : _length(runs)] = 0
    return PaddedTile(queries.to(device), slots.to(device), bias.flatten(3).to(device))


def _merge_adjacent(runs: Runs) -> Runs:
    merged: Runs = []
    for first, length in runs:
        if merged and sum(merged[-1]) == first:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((first, length))
    return merged


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
