"""Packed placements, shards that are the same everywhere, and changes added up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from laban.kvstore.placements import (
    MAX_PACKED_TOKENS,
    PACKED_BITS,
    MergedChanges,
    PlacementChange,
    PlacementState,
    Tier,
    pack,
    shard_of,
    unpack,
)


@given(st.sampled_from(Tier), st.sampled_from(PlacementState), st.integers(0, MAX_PACKED_TOKENS))
def test_what_is_packed_comes_out(tier, state, num_tokens):
    packed = pack(tier, state, num_tokens)
    assert packed < 1 << PACKED_BITS
    assert unpack(packed) == (tier, state, num_tokens)


def test_more_tokens_than_fit_are_the_most_that_do():
    assert unpack(pack(Tier.DISK, PlacementState.READY, MAX_PACKED_TOKENS + 7))[2] == MAX_PACKED_TOKENS


def test_the_shard_of_an_encoding_depends_on_nothing_but_its_id():
    assert [shard_of(name, 4) for name in ("a", "b", "c", "00ff")] == [3, 1, 3, 1]
    assert shard_of("anything", 1) == 0


def test_shards_are_about_equal():
    counts = [0] * 8
    for number in range(8000):
        counts[shard_of(f"{number:032x}", 8)] += 1
    assert max(counts) < 1200


def test_of_merged_changes_the_last_of_each_tier_counts_in_the_order_in_which_they_came():
    ready, gone = PlacementState.READY, PlacementState.GONE
    merged = MergedChanges()
    assert not merged
    merged.add([PlacementChange("a", Tier.DEVICE, ready, 1), PlacementChange("b", Tier.DEVICE, ready, 2)])
    merged.add([PlacementChange("a", Tier.HOST, ready, 1), PlacementChange("a", Tier.DEVICE, gone, 0)])
    assert merged.take() == (
        PlacementChange("b", Tier.DEVICE, ready, 2),
        PlacementChange("a", Tier.HOST, ready, 1),
        PlacementChange("a", Tier.DEVICE, gone, 0),
    )
    assert not merged
