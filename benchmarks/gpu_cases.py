"""Batches of decodes that read messages, as arrays that the planner takes: what one attention layer is timed on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from gpu_model import LLAMA_8B, TINY, Size

from laban.actors.engine.flat_batch import FlatBatch

PAGE = 16


@dataclass(frozen=True, slots=True)
class Case:
    """Calls of one new token that read messages, each all of them in an order of its own, or messages of its own."""

    name: str
    num_calls: int
    num_messages: int
    message_tokens: int
    target_us: float | None = None
    private: bool = False
    ungrouped: bool = False  # though readers have enough in common

    def scaled(self, size: Size) -> Case:
        calls, messages = size.calls(self.num_calls), size.calls(self.num_messages)
        return replace(self, num_calls=calls, num_messages=messages, message_tokens=size.tokens(self.message_tokens))

    @property
    def tokens_read(self) -> int:
        """By one call."""
        return self.num_messages * self.message_tokens


CASES = (
    Case("1x8x1024", 1, 8, 1024, 23),
    Case("16x8x1024", 16, 8, 1024, 30),
    Case("64x16x512", 64, 16, 512, 60),
    Case("private_32x5120", 32, 1, 5120, private=True),
    Case("short_16x200x30", 16, 200, 30),
    Case("short_16x200x30.ungrouped", 16, 200, 30, ungrouped=True),
)
COMPARED = ("1x8x1024", "16x8x1024", "64x16x512", "private_32x5120")


@dataclass(frozen=True, slots=True)
class Heads:
    num: int
    num_kv: int
    dim: int

    @staticmethod
    def of(size: Size) -> Heads:
        shape = TINY if size.tiny else LLAMA_8B
        return Heads(*(int(shape[name]) for name in ("num_attention_heads", "num_key_value_heads", "head_dim")))


def batch_of(case: Case, draw: np.random.Generator) -> FlatBatch:
    """Messages encoded at position 0, in pages that lie anywhere; each call's own message has one token so far."""
    num_entries = case.num_messages * (case.num_calls if case.private else 1)
    sizes = np.full(num_entries + case.num_calls, -(-case.message_tokens // PAGE))
    sizes[num_entries:] = 2  # a page for tokens to come
    page_starts = np.concatenate(([0], np.cumsum(sizes)))
    pages = draw.permutation(int(page_starts[-1])).astype(np.int32)
    calls, stop = np.arange(case.num_calls), case.tokens_read
    zeros = np.zeros_like(calls)
    chunks = np.stack([calls, zeros + 1, zeros + stop, num_entries + calls, zeros, zeros + stop], axis=1)
    reads = []
    for call in range(case.num_calls):
        first = call * case.num_messages if case.private else 0
        for place, which in enumerate(draw.permutation(case.num_messages)):
            reads.append((call, first + which, 0, case.message_tokens, place * case.message_tokens, 0))
    slots = pages[page_starts[num_entries:-1]] * PAGE
    ints = zeros.astype(np.int32)
    return FlatBatch(
        token_ids=ints,
        sources=ints - 1,
        positions=ints + stop,
        slots=slots,
        logit_rows=calls.tolist(),
        chunks=chunks,
        reads=np.array(reads, np.int64),
        page_starts=page_starts.astype(np.int64),
        pages=pages,
        follows=False,
    )
