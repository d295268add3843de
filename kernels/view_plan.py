"""Which rows of an iteration attend to which keys, as work for one launch of the fused kernel.

Rows that read the same encodings, at whatever offsets, are stacked into tiles, so that those keys are read once
for all of them; each tile's keys are cut into items of equal work, enough to fill the card; the items' results are
merged by log-sum-exp. The whole plan is one int32 buffer: one copy to the card an iteration, at fixed addresses,
so that a CUDA graph can be replayed over it. Compiled by numba: 64 calls of 16 messages take some 0.2 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

from laban.kernels import plan_loops
from laban.kernels.plan_layout import HEADER, ITEM_INTS, Buffer, Ints


@dataclass(frozen=True, slots=True)
class PlanShape:
    """What is fixed for all plans of one kernel: its tile, the card it fills, and the room in the buffer.

    Rows are stacked where that saves bytes: two readers or more, each filling at most half a tile, that have at least
    `min_shared_tokens` keys in common, in however many messages.
    """

    rows_per_tile: int  # tokens; times the query heads of a key head they fill the kernel's tile
    keys_per_block: int
    num_kv_heads: int
    num_programs: int  # that run at once: items are cut until items * num_kv_heads is about that many
    page_size: int
    window: int | None = None  # tokens; a query sees keys less than that far behind it
    min_shared_tokens: int = 64
    max_turned: int = 8192
    max_items: int = 2048
    max_tokens: int = 512
    max_partials: int = 8192
    size: int = 1 << 18  # int32s

    @property
    def items_at(self) -> int:
        return HEADER + 2 * self.max_turned

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
        own: [num_chunks], written: where `advance` finds the page that a chunk writes to.
    """
    status: int = plan_loops.build(
        chunks, reads, page_starts, pages, buffer, own,
        (shape.rows_per_tile, shape.keys_per_block, shape.num_kv_heads, shape.num_programs, shape.page_size,
         -1 if shape.window is None else shape.window, shape.min_shared_tokens, shape.max_turned, shape.max_items,
         shape.max_tokens, shape.max_partials),
    )  # fmt: skip
    if status < 0:
        raise PlanFull(f"{len(chunks)} chunks with {len(reads)} reads")
    return status


def advance(shape: PlanShape, buffer: Buffer, own: Ints) -> bool:
    """Makes it the plan of the next iteration, in place, where every chunk was one token and the next one follows it.

    False, and nothing is changed, if a message goes on in a page that is not listed: build it anew. A spare page is
    listed for each, so that happens once in `page_size` iterations or less often.
    """
    return bool(plan_loops.advance(buffer, own, shape.page_size))
