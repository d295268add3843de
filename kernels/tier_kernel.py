"""The Triton kernel behind `tier_copy`, which says what it computes and what it moves."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["num_units", "first_layer", "num_layers", "source_slots", "target_slots"]
)
def copy_units(
    source_k: tl.tensor,
    source_v: tl.tensor,
    target_k: tl.tensor,
    target_v: tl.tensor,
    units: tl.tensor,
    num_units: tl.tensor,
    first_layer: tl.tensor,
    num_layers: tl.tensor,
    source_slots: tl.tensor,
    target_slots: tl.tensor,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Each program goes through every so-manyth unit of a layer. ROW is the words of one layer's keys of a token.

    All loads of a block are under way before its first store, which hides the link's latency.
    """
    columns = tl.arange(0, BLOCK)
    for item in range(tl.program_id(0), num_units * num_layers, tl.num_programs(0)):
        unit = units + 3 * (item % num_units)
        layer = (first_layer + item // num_units).to(tl.int64)
        source_at = (layer * source_slots + tl.load(unit)) * ROW
        target_at = (layer * target_slots + tl.load(unit + 1)) * ROW
        num_words = tl.load(unit + 2) * ROW
        for start in range(0, num_words, BLOCK):
            at = start + columns
            inside = at < num_words
            keys = tl.load(source_k + source_at + at, mask=inside)
            values = tl.load(source_v + source_at + at, mask=inside)
            tl.store(target_k + target_at + at, keys, mask=inside)
            tl.store(target_v + target_at + at, values, mask=inside)
