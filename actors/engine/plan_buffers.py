"""The plans of the fused kernel on their way to the device, one for each kind of layer, at fixed addresses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from laban.actors.engine.flat_batch import FlatBatch
from laban.actors.engine.layers import LayerKind
from laban.kernels.fused_ops import TurnedRows, turn_table, turn_table_reference
from laban.kernels.plan_layout import HEADER, NUM_TURNED, TOTAL_BLOCKS, USED, Buffer
from laban.kernels.view_plan import PlanShape, advance, build_plan

NARROW_SHARE = 1.25
"""A tile of few rows costs less; it may have so many times the blocks of keys of a tile of many and still be chosen."""


@dataclass(frozen=True, slots=True)
class TileChoice:
    """The kernel's tiles that a batch may be planned for, from the one of fewest rows, with their plans' shapes."""

    narrow: PlanShape
    wide: PlanShape

    def of(self, wide: bool) -> PlanShape:
        return self.wide if wide else self.narrow

    def enlarged(self, max_tokens: int) -> TileChoice:
        """With room for batches that are not captured, of up to `max_tokens`."""
        room = {"max_tokens": max_tokens, "max_turned": 4 * max_tokens, "max_items": 2 * max_tokens}
        room["size"] = (1 << 20) + 32 * max_tokens
        return TileChoice(replace(self.narrow, **room), replace(self.wide, **room))


class PlanBuffers:
    """The plan of one kind of layer: built on the host, copied to the device, with the turns' cosines and sines."""

    def __init__(self, kind: LayerKind, choice: TileChoice, device: torch.device) -> None:
        self.kind = kind
        self.choice = TileChoice(*(replace(s, window=kind.window) for s in (choice.narrow, choice.wide)))
        shape = choice.wide
        self._host: tuple[Buffer, Buffer] = (np.zeros(shape.size, np.int32), np.zeros(shape.size, np.int32))
        on_card = device.type == "cuda"
        # Two, for the copy of the iteration before may not have begun.
        self._staged = tuple(torch.zeros(shape.size, dtype=torch.int32, pin_memory=on_card) for _ in range(2))
        self._own = (np.zeros(shape.max_tokens, np.int64), np.zeros(shape.max_tokens, np.int64))
        self._turn = 0
        self._made_for = -1  # the number of the batch whose whole plan is there
        self.is_wide = False
        self._on_card = on_card
        self.plan: Tensor = torch.zeros(shape.size, dtype=torch.int32, device=device) if on_card else self._staged[0]
        half = kind.inv_freq.shape[0]
        self.cos = torch.zeros(shape.max_turned, half, device=device)
        self.sin = torch.zeros(shape.max_turned, half, device=device)
        self.inv_freq = kind.inv_freq.to(device)

    @property
    def shape(self) -> PlanShape:
        """Of the last plan made."""
        return self.choice.of(self.is_wide)

    @property
    def host(self) -> Buffer:
        """The last plan made."""
        return self._host[self.is_wide]

    def make(self, batch: FlatBatch, *, wide: bool | None = None) -> None:
        """The plan of `batch`, from the last one's if it can be. Raises PlanFull.

        `wide` says for which tile; None takes the one that has less to do.
        """
        own = self._own[self.is_wide][: len(batch.chunks)]
        follows = batch.follows and self._made_for == batch.number - 1
        self._made_for = -1  # until it is made: half of one is no use to the next
        if not (wide in (None, self.is_wide) and follows and advance(self.shape, self.host, own)):
            self._build_best(batch, wide)
        self._made_for = batch.number

    def _build_best(self, batch: FlatBatch, wide: bool | None) -> None:
        if not wide:
            self._build(batch, wide=False)
        if wide or (wide is None and batch.num_tokens > self.choice.narrow.rows_per_tile):
            self._build(batch, wide=True)
            if not wide and self._host[0][TOTAL_BLOCKS] <= NARROW_SHARE * self._host[1][TOTAL_BLOCKS]:
                self.is_wide = False

    def clear(self, *, wide: bool) -> None:
        """The plan of nothing, on the device."""
        self.is_wide = wide
        at = self.shape.merge_at
        self.host[: self.shape.rest_at] = 0
        self.host[at : self.shape.rest_at] = self.host[USED] = self.shape.rest_at
        self.send()

    def _build(self, batch: FlatBatch, *, wide: bool) -> None:
        self.is_wide = wide
        own = self._own[wide][: len(batch.chunks)]
        build_plan(self.shape, batch.chunks, batch.reads, batch.page_starts, batch.pages, self._host[wide], own)

    def send(self) -> None:
        """Copies the last plan made to the device; the host does not wait."""
        self._turn = 1 - self._turn
        used = int(self.host[USED])
        staged = self._staged[self._turn]
        staged.numpy()[:used] = self.host[:used]
        if self._on_card:
            self.plan[:used].copy_(staged[:used], non_blocking=True)
        else:
            self.plan = staged

    def fill_tables(self) -> None:
        """The cosines and sines of the plan's turned rows, on the device."""
        positions = self.plan[HEADER : HEADER + self.shape.max_turned]
        fill = turn_table if self._on_card else turn_table_reference
        fill(positions, self.inv_freq, self.kind.attention_scaling, self.cos, self.sin)

    @property
    def turned(self) -> TurnedRows:
        """The plan's turned rows, as the kernel that rotates takes them."""
        at = HEADER + self.shape.max_turned
        tokens = self.plan[at : at + self.shape.max_turned]
        return TurnedRows(tokens, self.plan[NUM_TURNED], self.cos, self.sin)
