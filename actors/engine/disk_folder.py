"""The disk tier of a worker, for the geometry of its pool in host memory."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.shard_group import ShardGroup
from laban.actors.errors import FailedPrecondition
from laban.kvstore.disk import DiskTier
from laban.kvstore.disk_files import Chunk, ChunkLayout
from laban.kvstore.disk_folder import FolderInUse, clear

log = logging.getLogger(__name__)

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # numpy knows no bfloat16
_SHARD = "shard-"


def open_disk(folder: Path, max_bytes: int, namespace_prefix: str, host: HostPool, **options: Any) -> DiskTier:
    """`options` are DiskTier's. Raises FailedPrecondition for a folder that is another's or cannot be used."""
    _clear_shards(folder, 0)
    return _open(folder, max_bytes, namespace_prefix, host, "", options)


def open_disk_of_shard(
    folder: Path, max_bytes: int, namespace_prefix: str, host: HostPool, group: ShardGroup, **options: Any
) -> DiskTier:
    """As `open_disk`, for a shard, in a folder of its own within the worker's. All shards have the same there: what one
    lacks is dropped by the others. Waits for them."""
    clear(folder)  # of a worker that was not cut into shards
    _clear_shards(folder, group.size)
    width = len(str(group.size))  # so that files are as long in all shards
    part = f"{group.rank:0{width}}/{group.size}"
    disk = _open(folder / f"{_SHARD}{group.rank}", max_bytes, namespace_prefix, host, part, options)
    held = disk.held()
    common = set.intersection(*(set(each.items()) for each in group.gather_objects(dict(held))))
    for encoding_id, what in held.items():
        if (encoding_id, what) not in common:
            disk.drop(encoding_id)
    return disk


def _clear_shards(folder: Path, num_shards: int) -> None:
    """Of a worker that had more shards than this one."""
    for other in sorted(folder.glob(f"{_SHARD}*")):
        number = other.name.removeprefix(_SHARD)
        if number.isdecimal() and int(number) >= num_shards:
            clear(other)


def _open(
    folder: Path, max_bytes: int, namespace_prefix: str, host: HostPool, part: str, options: dict[str, Any]
) -> DiskTier:
    num_layers, _, num_kv_heads, head_dim = host.k.shape
    dtype = str(_INTEGERS[host.k.itemsize]).removeprefix("torch.")
    layout = ChunkLayout(dtype, (2, num_layers, -1, num_kv_heads, head_dim), part)
    try:
        tier = DiskTier(folder, max_bytes, namespace_prefix, layout, **options)
        _check_room(tier)
        return tier
    except FolderInUse as error:
        raise FailedPrecondition(str(error), field="cache.disk_folder") from error
    except OSError as error:
        raise FailedPrecondition(f"{folder}: {error.strerror}", field="cache.disk_folder") from error


def _check_room(tier: DiskTier) -> None:
    """Warns of a budget that the file system has not. Only what is within the budget makes room for something newer."""
    room = shutil.disk_usage(tier.folder).free + tier.used_bytes
    if room < tier.max_bytes:
        log.warning(
            "%s may take %.3g GiB (cache.disk_bytes), and its file system has room for %.3g: once that is full, "
            "the encodings on disk stay the old ones", tier.folder, tier.max_bytes / 2**30, room / 2**30,
        )  # fmt: skip


def chunk_of(rows: Tensor) -> Chunk:
    """rows [2, num_layers, num_tokens, num_kv_heads, head_dim], as HostPool reads them, for DiskTier; same memory."""
    return rows.view(_INTEGERS[rows.itemsize]).numpy()


def rows_of(chunk: Chunk, dtype: torch.dtype) -> Tensor:
    """A chunk of DiskTier as HostPool writes it; same memory."""
    return torch.from_numpy(chunk).view(dtype)
