"""An iteration's batch as the flat arrays that the fused kernel's planner takes: no object a token or a read.

What stays from one iteration to the next (who reads what, in which pages) is kept, and only the positions move on.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laban.actors.engine.sequence import UNKNOWN, Chunk, Sequence
from laban.kernels.plan_layout import CHUNK_INTS, ENTRY, READ_INTS, READER
from laban.kvstore.store import Entry

Ints = NDArray[np.int64]
Small = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """`chunks`, `reads`, `page_starts` and `pages` are what `view_plan.build_plan` takes."""

    token_ids: Small  # [num_tokens]; UNKNOWN where the token was sampled on the device and the host was not told yet
    sources: Small  # [num_tokens] the row of the last iteration's samples that holds such a token; -1 for others
    positions: Small  # [num_tokens]
    slots: Small  # [num_tokens] where its key and value go
    logit_rows: list[int]  # tokens whose next token is wanted, in order of the chunks
    chunks: Ints
    reads: Ints
    page_starts: Ints
    pages: Small
    follows: bool  # the same calls as in the batch before, a token each in both
    number: int = 0  # which of its flattener's batches it is

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class _Context:
    """What a list of sequences reads: everything in a batch that does not move with its tokens."""

    sequences: tuple[Sequence, ...]
    read_by: tuple[object, ...]  # each sequence's `reads`, by identity
    reads: Ints
    entries: tuple[Entry, ...]  # read, in the order that `reads` numbers them
    pages: tuple[Small, ...]


class Flattener:
    """Makes batches, and remembers the last one's context."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._context: _Context | None = None
        self._ends: list[int] = []  # of the last batch's chunks, if each was one token
        self._reads_of: dict[Sequence, tuple[object, Ints]] = {}
        self._num_made = 0

    def flatten(self, chunks: Seq[Chunk]) -> FlatBatch:
        """The batch of `chunks`, in order."""
        context = self._context_of(chunks)
        ends = [chunk.begin + chunk.count for chunk in chunks]
        single = all(chunk.count == 1 for chunk in chunks)
        follows = single and context is self._context and self._ends == [end - 1 for end in ends]
        self._context, self._ends = context, ends if single else []
        self._num_made += 1
        num_read = len(context.entries)
        token_ids: list[int] = []
        sources: list[int] = []
        slots: list[int] = []
        logit_rows: list[int] = []
        positions: list[int] = []
        flat = np.empty((len(chunks), CHUNK_INTS), np.int64)
        page_size, pages = self._page_size, list(context.pages)
        for i, chunk in enumerate(chunks):
            sequence, begin, end = chunk.sequence, chunk.begin, chunk.begin + chunk.count
            flat[i] = len(token_ids), chunk.count, sequence.start + begin, num_read + i, begin, sequence.start
            own = sequence.entry.pages
            token_ids += chunk.token_ids
            sources += [-1] * chunk.count
            newest = len(token_ids) - 1 - len(chunk.drafted)
            if token_ids[newest] == UNKNOWN:
                sources[newest] = sequence.sample_row
            positions += range(sequence.start + begin, sequence.start + end)
            slots += [own[at // page_size] * page_size + at % page_size for at in range(begin, end)]
            # As many pages as hold the tokens so far, and one for those to come.
            pages.append(sequence.entry.page_numbers[: (end - 1) // page_size + 2])
            if chunk.samples:
                logit_rows += range(newest, len(token_ids))
        page_starts = np.zeros(len(pages) + 1, np.int64)
        np.cumsum([len(numbers) for numbers in pages], out=page_starts[1:])
        return FlatBatch(
            np.array(token_ids, np.int32),
            np.array(sources, np.int32),
            np.array(positions, np.int32),
            np.array(slots, np.int32),
            logit_rows,
            flat,
            context.reads,
            page_starts,
            np.concatenate(pages),
            follows,
            self._num_made,
        )

    def _context_of(self, chunks: Seq[Chunk]) -> _Context:
        last = self._context
        if (
            last is not None
            and len(last.sequences) == len(chunks)
            and all(
                chunk.sequence is sequence and sequence.reads is reads
                for chunk, sequence, reads in zip(chunks, last.sequences, last.read_by, strict=True)
            )
        ):
            return last
        sequences = tuple(chunk.sequence for chunk in chunks)
        known, self._reads_of = self._reads_of, {}
        entries: dict[int, Entry] = {}
        parts = []
        for i, sequence in enumerate(sequences):
            kept = known.get(sequence)
            reads = kept[1] if kept is not None and kept[0] is sequence.reads else _flat_reads(sequence)
            self._reads_of[sequence] = (sequence.reads, reads)
            entries.update((read.entry.serial, read.entry) for read in sequence.reads)
            part = reads.copy()
            part[:, READER] = i
            parts.append(part)
        joined = np.concatenate(parts)
        serials, numbers = np.unique(joined[:, ENTRY], return_inverse=True)
        joined[:, ENTRY] = numbers.reshape(-1)
        used = tuple(entries[serial] for serial in serials.tolist())
        return _Context(
            sequences,
            tuple(sequence.reads for sequence in sequences),
            joined,
            used,
            tuple(entry.page_numbers for entry in used),
        )


def _flat_reads(sequence: Sequence) -> Ints:
    rows = [(0, r.entry.serial, r.begin, r.end, r.offset, r.start) for r in sequence.reads]
    return np.array(rows, np.int64).reshape(-1, READ_INTS)
