"""A worker of several shards, each a process with a slice of every layer: what needs neither Ray nor torch."""

from __future__ import annotations

from dataclasses import dataclass

from laban.actors.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """Which shard a process is, and where the shards of its worker meet. Rank 0 leads the others."""

    rank: int
    size: int
    address: str  # host:port of the worker's rendezvous


def heads_per_shard(num_heads: int, num_kv_heads: int, num_shards: int) -> tuple[int, int]:
    """Query and KV heads of one shard. Where there are more shards than KV heads, several shards have the same one.

    Raises InvalidInput for a number of shards over which the heads cannot be spread evenly.

    >>> heads_per_shard(9, 3, 3), heads_per_shard(8, 2, 4)
    ((3, 1), (2, 1))
    """
    if num_heads % num_shards:
        raise InvalidInput(f"must divide the model's {num_heads} query heads", field="engine.shards", value=num_shards)
    if num_kv_heads % num_shards and num_shards % num_kv_heads:
        raise InvalidInput(
            f"must divide the model's {num_kv_heads} KV heads or be a multiple of them",
            field="engine.shards",
            value=num_shards,
        )
    return num_heads // num_shards, max(1, num_kv_heads // num_shards)
