"""The host tier's pool: keys and values in pages of the device pool's geometry, in memory that the card can reach."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laban.actors.engine.host_memory import HUGE_PAGE, HostBlock
from laban.actors.engine.runs import Runs, length_of
from laban.actors.models import Progress, say_nothing
from laban.kvstore.pages import PageAllocator


class HostPool:
    """`k` and `v` [num_layers, num_slots, num_kv_heads, head_dim] in host memory, page by page as on the device.

    Whoever owns it allocates pages from `allocator`. `read` and `write` may be called by any thread, for slots that
    nobody writes meanwhile.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        pinned: bool,
        progress: Progress = say_nothing,
    ) -> None:
        """Takes the memory at once; to pin it takes about 0.2 s a GiB, of which `progress` is told."""
        self.page_size = page_size
        self.num_slots = num_pages * page_size
        self.allocator = PageAllocator(num_pages)
        shape = (num_layers, self.num_slots, num_kv_heads, head_dim)
        self.bytes_per_token = 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize
        half = self.num_slots * self.bytes_per_token // 2
        stride = -(-half // HUGE_PAGE) * HUGE_PAGE
        doing = f"{'pinning' if pinned else 'taking'} {self.num_bytes / 2**30:.1f} GiB of host memory"
        self._block: HostBlock | None = HostBlock(
            stride + half, pinned=pinned, progress=lambda share: progress(doing, share)
        )
        self.is_pinned = self._block.is_pinned
        halves = (self._block.bytes[at : at + half] for at in (0, stride))
        self.k, self.v = (part.view(dtype).view(shape) for part in halves)

    @staticmethod
    def num_pages_for(num_bytes: int, page_size: int, bytes_per_token: int) -> int:
        """Pages that fit into `num_bytes`; 0 if none does."""
        return num_bytes // (page_size * bytes_per_token)

    @property
    def num_bytes(self) -> int:
        return self.num_slots * self.bytes_per_token

    @property
    def used_bytes(self) -> int:
        """Of the pages that are taken."""
        pages = self.allocator.num_pages - self.allocator.num_free
        return pages * self.page_size * self.bytes_per_token

    def read(self, runs: Runs) -> Tensor:
        """A copy of those slots: [2, num_layers, num_tokens, num_kv_heads, head_dim], keys first."""
        num_layers, _, *row = self.k.shape
        out = torch.empty(2, num_layers, length_of(runs), *row, dtype=self.k.dtype)
        self._move(runs, out, out_of_pool=True)
        return out

    def write(self, runs: Runs, rows: Tensor) -> None:
        """`rows` [2, num_layers, num_tokens, num_kv_heads, head_dim] into those slots. Raises ValueError."""
        num_layers, _, *row = self.k.shape
        expected = (2, num_layers, length_of(runs), *row)
        if rows.shape != expected or rows.dtype != self.k.dtype:
            raise ValueError(f"rows are {rows.dtype} {tuple(rows.shape)}, expected {self.k.dtype} {expected}")
        self._move(runs, rows, out_of_pool=False)

    def _move(self, runs: Runs, rows: Tensor, *, out_of_pool: bool) -> None:
        planes: list[tuple[Any, Any]] = [(bytes_of(self.k), bytes_of(rows[0])), (bytes_of(self.v), bytes_of(rows[1]))]
        at = 0
        for first, length in runs:
            for pool, flat in planes:
                here, there = pool[:, first : first + length], flat[:, at : at + length]
                if out_of_pool:
                    there[:] = here
                else:
                    here[:] = there
            at += length

    def close(self) -> None:
        """Gives the memory back. Copies to and from it must have ended; nothing may use the pool after."""
        if self._block is not None:
            self.k = self.v = torch.empty(0, dtype=self.k.dtype)
            self._block.close()
            self._block = None


def bytes_of(rows: Tensor) -> Any:
    """rows [num_layers, num_rows, num_kv_heads, head_dim] as numpy [num_layers, num_rows, bytes] over the same memory.

    Numpy copies without torch's pool of threads, which a forward beside it wants for itself.
    """
    return rows.contiguous().flatten(2).view(torch.uint8).numpy() if rows.numel() else rows.flatten(2).numpy()
