"""The disk tier of a worker, for the geometry of its pool in host memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laban.actors.engine.host_pool import HostPool
from laban.actors.errors import FailedPrecondition
from laban.kvstore.disk import DiskTier
from laban.kvstore.disk_files import Chunk, ChunkLayout
from laban.kvstore.disk_folder import FolderInUse

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # numpy knows no bfloat16


def open_disk(folder: Path, max_bytes: int, namespace_prefix: str, host: HostPool, **options: Any) -> DiskTier:
    """`options` are DiskTier's. Raises FailedPrecondition for a folder that is another's or cannot be used."""
    num_layers, _, num_kv_heads, head_dim = host.k.shape
    dtype = str(_INTEGERS[host.k.itemsize]).removeprefix("torch.")
    layout = ChunkLayout(dtype, (2, num_layers, -1, num_kv_heads, head_dim))
    try:
        return DiskTier(folder, max_bytes, namespace_prefix, layout, **options)
    except FolderInUse as error:
        raise FailedPrecondition(str(error), field="cache.disk_folder") from error
    except OSError as error:
        raise FailedPrecondition(f"{folder}: {error.strerror}", field="cache.disk_folder") from error


def chunk_of(rows: Tensor) -> Chunk:
    """rows [2, num_layers, num_tokens, num_kv_heads, head_dim], as HostPool reads them, for DiskTier; same memory."""
    return rows.view(_INTEGERS[rows.itemsize]).numpy()


def rows_of(chunk: Chunk, dtype: torch.dtype) -> Tensor:
    """A chunk of DiskTier as HostPool writes it; same memory."""
    return torch.from_numpy(chunk).view(dtype)
