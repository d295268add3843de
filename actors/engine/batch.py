"""One iteration's batch: which tokens are computed, where their keys go, and who attends to what.

Chunks of sequences become blocks of rows with the same reads; reads become the tiles and row reads of an
`AttentionPlan`, one for each kind of layer. What several blocks read is stacked into one tile, whatever their
offsets; the rest is gathered per block and offset, or left to the kernel for single rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from laban.actors.engine.blocks import Block, ByOffset, Stretch, apply_window, make_blocks
from laban.actors.engine.layers import LayerKind
from laban.actors.engine.runs import Runs, as_index, as_tensor, length_of, merge_adjacent
from laban.actors.engine.sequence import Chunk
from laban.kernels.rotary import turn_tables
from laban.kernels.row_attention import RowReads, has_compiled_rows
from laban.kernels.view_attention import AttentionPlan, Index, MaskedTile, StackedTile
from laban.kvstore.store import Entry

# Below this many tokens a shared read costs more in queries and partial results than it saves in keys.
MIN_SHARED_TOKENS = 128
# For few rows, a stretch of keys this long is read where it lies: a gather would copy more than another tile costs.
MIN_SLICE_TOKENS = 256
MAX_SLICE_ROWS = 8
# Rows times keys that the compiled kernel for single rows does in the time that a tile costs besides its arithmetic.
ROW_WORK_PER_TILE = 2048


@dataclass(frozen=True, slots=True)
class Batch:
    token_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    write_slots: Index  # [num_tokens]
    logit_rows: Tensor  # [num_sampled] int64: rows whose next token is wanted, in chunk order
    plans: tuple[AttentionPlan, ...]  # of each kind of layer

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]


def build_batch(chunks: Seq[Chunk], kinds: Seq[LayerKind], dtype: torch.dtype, device: torch.device) -> Batch:
    """The batch of `chunks`, in order, for a model with layers of `kinds`."""
    token_ids: list[int] = []
    positions: list[Tensor] = []
    slots: Runs = []
    logit_rows: list[int] = []
    for chunk in chunks:
        sequence, end = chunk.sequence, chunk.begin + chunk.count
        token_ids += chunk.token_ids
        positions.append(torch.arange(sequence.start + chunk.begin, sequence.start + end))
        slots += sequence.entry.runs(chunk.begin, end)
        if chunk.samples:
            logit_rows += range(len(token_ids) - 1 - len(chunk.drafted), len(token_ids))
    return Batch(
        torch.tensor(token_ids, device=device),
        torch.cat(positions).to(device),
        _to(as_index(slots), device),
        torch.tensor(logit_rows, dtype=torch.int64, device=device),
        _plans(make_blocks(chunks), len(token_ids), kinds, dtype, device),
    )


def _plans(
    blocks: list[Block], num_tokens: int, kinds: Seq[LayerKind], dtype: torch.dtype, device: torch.device
) -> tuple[AttentionPlan, ...]:
    """A plan for each kind. Kinds whose windows hide nothing share their work; those that turn alike, their plan."""
    max_single_rows = MAX_SLICE_ROWS if has_compiled_rows(device, dtype) else 1
    planners: dict[int | None, _Planner] = {}
    plans: list[AttentionPlan] = []
    made: list[tuple[_Planner, LayerKind, AttentionPlan]] = []
    for kind in kinds:
        window = kind.window
        seen = blocks if window is None else apply_window(blocks, window, max_single_rows)
        if seen is blocks:
            window = None
        if window not in planners:
            planners[window] = _Planner(num_tokens, seen, dtype, device)
        planner = planners[window]
        plan = next((p for of, other, p in made if of is planner and kind.turns_like(other)), None)
        if plan is None:
            plan = planner.plan(kind.inv_freq)
            made.append((planner, kind, plan))
        plans.append(plan)
    return tuple(plans)


class _Planner:
    """Collects tiles. Rows of the queries are 0 .. num_tokens - 1; turned copies are numbered after them."""

    def __init__(self, num_tokens: int, blocks: list[Block], dtype: torch.dtype, device: torch.device) -> None:
        self.num_tokens, self.dtype, self.device = num_tokens, dtype, device
        self.compiled_rows = has_compiled_rows(device, dtype)
        self.turned: list[tuple[int, int, int]] = []  # (first row, number of rows, offset)
        self.num_turned = 0
        self.turned_at: dict[tuple[int, int], int] = {}  # (block's first row, offset) -> first turned row
        self.row_turns: dict[int, int] = {}  # of the rows left to the kernel for single rows: offset -> its number
        self.untabled = self._collect(blocks)

    def plan(self, inv_freq: Tensor) -> AttentionPlan:
        """The plan for layers with these inverse frequencies."""
        plan, rows = self.untabled, self.untabled.rows
        if rows is not None and self.row_turns:
            cos, sin = turn_tables(torch.tensor(list(self.row_turns), device=inv_freq.device), inv_freq, self.dtype)
            plan = replace(plan, rows=replace(rows, turn_cos=cos, turn_sin=sin))
        if self.turned:
            offsets = torch.tensor([offset for _, _, offset in self.turned], device=inv_freq.device)
            counts = torch.tensor([count for _, count, _ in self.turned], device=inv_freq.device)
            cos, sin = (x.repeat_interleave(counts, 0) for x in turn_tables(offsets, inv_freq, self.dtype))
            plan = replace(plan, turn_cos=cos, turn_sin=sin)
        return plan

    def _collect(self, blocks: list[Block]) -> AttentionPlan:
        """The plan, less the tables of its turns."""
        causal: list[Block] = []
        # (members, keys): each member is a block and the offset at which it reads the keys.
        tiles: list[tuple[list[tuple[Block, int]], Runs]] = []
        single: list[tuple[int, ByOffset]] = []  # (token, what it reads)
        shared, private = self._split(blocks)
        for (entry, begin, end), members in shared.items():
            tiles.append((members, entry.runs(begin, end)))
        for block, by_offset in zip(blocks, private, strict=True):
            if self._belongs_to_rows(block, by_offset):
                single += block.row_reads(by_offset)
                continue
            rest: ByOffset = {}
            for offset, runs in by_offset.items():
                if block.num_rows <= MAX_SLICE_ROWS:
                    merged = merge_adjacent(runs)
                    tiles += [([(block, offset)], [run]) for run in merged if run[1] >= MIN_SLICE_TOKENS]
                    runs = [run for run in merged if run[1] < MIN_SLICE_TOKENS]
                if runs:
                    rest[offset] = runs
            if block.num_rows == 1:
                single += block.row_reads(rest)
            else:
                if block.window is None:
                    causal.append(block)
                tiles += [([(block, offset)], runs) for offset, runs in rest.items()]

        owners: Runs = [(block.first, block.num_rows) for block in causal]
        stacked_tiles = []
        for members, runs in tiles:
            rows = [self._rows(block, offset) for block, offset in members]
            owners += [(block.first, block.num_rows) for block, _ in members]
            stacked_tiles.append(StackedTile(_to(as_index(rows), self.device), _to(as_index(runs), self.device)))
        masked_tiles = []
        for block in blocks:
            for tile, tokens in self._masked(block) if block.window is not None else ():
                masked_tiles.append(tile)
                owners += tokens
        owners += [(token, 1) for token, _ in single]
        turned = [(first, count) for first, count, _ in self.turned]
        return AttentionPlan(
            num_tokens=self.num_tokens,
            turned=as_tensor(turned).to(self.device) if turned else None,
            turn_cos=None,
            turn_sin=None,
            causal=tuple(slice(block.first, block.stop) for block in causal),
            stacked=tuple(stacked_tiles),
            masked=tuple(masked_tiles),
            rows=self._row_reads(single) if single else None,
            owners=as_tensor(owners).to(self.device),
            in_order=as_index(owners) == slice(0, self.num_tokens),
        )

    def _split(
        self, blocks: list[Block]
    ) -> tuple[dict[tuple[Entry, int, int], list[tuple[Block, int]]], list[ByOffset]]:
        """Reads worth stacking, by what is read, and for each block what it reads alone."""
        readers: dict[tuple[Entry, int, int], list[tuple[Block, int]]] = {}
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
            for stretch in block.before:
                by_offset.setdefault(0, []).extend(stretch.runs)
            private.append(by_offset)
        return shared, private

    def _belongs_to_rows(self, block: Block, by_offset: ByOffset) -> bool:
        """Whether to leave all that `block` reads alone to the compiled kernel."""
        if not self.compiled_rows or block.window is not None:
            return False
        num_keys = block.num_rows + sum(map(length_of, by_offset.values()))
        return block.num_rows == 1 or block.num_rows * num_keys <= ROW_WORK_PER_TILE * (1 + len(by_offset))

    def _row_reads(self, single: list[tuple[int, ByOffset]]) -> RowReads:
        turns = self.row_turns
        starts, runs, turn_of_run = [0], Runs(), list[int]()
        for _, by_offset in single:
            for offset, merged in by_offset.items():
                runs += merged
                turn_of_run += [turns.setdefault(offset, len(turns)) if offset else -1] * len(merged)
            starts.append(len(runs))
        first, length = torch.tensor(runs, device=self.device).T.contiguous()
        none = torch.empty(0, 1, 0, dtype=self.dtype, device=self.device)
        return RowReads(
            torch.tensor([token for token, _ in single], device=self.device),
            torch.tensor(starts, device=self.device),
            first,
            length,
            torch.tensor(turn_of_run, device=self.device),
            none,
            none,
        )

    def _masked(self, block: Block) -> Iterator[tuple[MaskedTile, Runs]]:
        """A tile for each offset of what rows of `block` see in part, of the rows that see any of it; their tokens."""
        assert block.window is not None
        by_offset: dict[int, list[Stretch]] = {}
        for offset, stretch in (*block.partly, *((0, stretch) for stretch in block.rows)):
            by_offset.setdefault(offset, []).append(stretch)
        at, n = as_tensor(block.positions()), block.num_rows
        for offset, keys in by_offset.items():
            keys_at = as_tensor([(stretch.position, stretch.num_keys) for stretch in keys])
            hidden = at[:, None] - keys_at[None, :] >= block.window
            if offset == 0:  # the last keys are the rows' own
                hidden[:, -n:].logical_or_(torch.ones(n, n, dtype=torch.bool).triu_(1))
            seeing = merge_adjacent([(row, 1) for row in (~hidden.all(1)).nonzero().flatten().tolist()])
            first, _ = self._rows(block, offset)
            rows = as_index([(first + row, count) for row, count in seeing])
            slots = as_index([run for stretch in keys for run in stretch.runs])
            hidden = hidden[as_index(seeing)].to(self.device)
            tokens = [(block.first + row, count) for row, count in seeing]
            yield MaskedTile(_to(rows, self.device), _to(slots, self.device), hidden), tokens

    def _rows(self, block: Block, offset: int) -> tuple[int, int]:
        """The rows of `block`'s queries, turned for `offset`."""
        if offset == 0:
            return block.first, block.num_rows
        key = (block.first, offset)
        if key not in self.turned_at:
            self.turned_at[key] = self.num_tokens + self.num_turned
            self.turned.append((block.first, block.num_rows, offset))
            self.num_turned += block.num_rows
        return self.turned_at[key], block.num_rows


def _to(index: Index, device: torch.device) -> Index:
    return index if isinstance(index, slice) else index.to(device)
