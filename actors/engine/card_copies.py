"""A copy on a card: by its copy engines where pieces are large, by a kernel where they are many and small."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from laban.actors.engine.copy_pieces import Part, Pieces, cut
from laban.actors.engine.cuda_runtime import DEVICE_TO_HOST, HOST_TO_DEVICE, cuda_runtime
from laban.actors.engine.host_pool import HostPool
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.pacing import Job
from laban.kernels.tier_copy import copy_units, max_unit_tokens

logger = logging.getLogger(__name__)

Path = Literal["auto", "dma", "slices", "kernel"]
"""`dma`: one request a piece for all layers; `slices`: one a layer; `auto`: by the size of pieces."""

LEAST_DMA_BYTES = 128 << 10  # of a piece in one layer, keys or values, that a copy engine moves at a good rate
LEAST_SLICE_BYTES = 1 << 20  # the same where it has to be asked for each layer
FEW_PIECES = 4  # of any size, that are not worth a kernel
TABLE_UNITS = 8192


class CardMover:
    """One direction's stream, and the ways to put copies on it. None of them waits for the card."""

    def __init__(self, k_pool: Tensor, v_pool: Tensor, host: HostPool, loads: bool, num_programs: int) -> None:
        """Compiles the kernel, so that no copy waits for it."""
        self.device = k_pool.device
        # Priority 0 is the lowest: where both have kernels ready, what computes goes first if its stream is above.
        self.stream = torch.cuda.Stream(self.device, priority=0)  # type: ignore[no-untyped-call]
        self.loads, self._num_programs = loads, num_programs
        device, there = (k_pool, v_pool), (host.k, host.v)
        self._sources, self._targets = (there, device) if loads else (device, there)
        self._row_bytes = k_pool[0, 0].numel() * k_pool.itemsize
        self._by_kernel = host.is_pinned
        self._runtime = cuda_runtime()
        self._by_pitch = host.is_pinned and self._runtime is not None
        self._tables: list[_Table] = []
        if self._by_kernel:
            with torch.cuda.stream(self.stream):
                self._launch(np.zeros((1, 3), np.int64), range(1))
            self.stream.synchronize()

    def move(self, part: Part, path: Path) -> None:
        """Puts it on the stream, which is to be the current one."""
        if len(part.layers) == 0:
            return
        pieces = part.pieces[:, [1, 0, 2]] if self.loads else part.pieces  # source, target, length
        by_engine = self._engine_moves(pieces, path)
        self._request(pieces[by_engine], part.layers, by_layer=path == "slices")
        if not by_engine.all():
            units = cut(pieces[~by_engine], max_unit_tokens(self._row_bytes))
            for begin in range(0, len(units), TABLE_UNITS):
                self._launch(units[begin : begin + TABLE_UNITS], part.layers)

    def _engine_moves(self, pieces: Pieces, path: Path) -> Any:
        """[num_pieces] bool"""
        if path == "kernel" and self._by_kernel:
            return np.zeros(len(pieces), bool)
        least = LEAST_DMA_BYTES if self._by_pitch else LEAST_SLICE_BYTES
        large = pieces[:, 2] * self._row_bytes >= least
        if path != "auto" or not self._by_kernel or len(pieces) - large.sum() <= FEW_PIECES:
            large[:] = True
        return large

    def _request(self, pieces: Pieces, layers: range, *, by_layer: bool) -> None:
        """Asks the copy engines: once for all layers of a piece if they can, else for each."""
        for source, target in zip(self._sources, self._targets, strict=True):
            for source_slot, target_slot, length in pieces.tolist():
                if (
                    not by_layer
                    and self._by_pitch
                    and self._request_pitched(source, target, source_slot, target_slot, length, layers)
                ):
                    continue
                for layer in layers:
                    rows = source[layer, source_slot : source_slot + length]
                    target[layer, target_slot : target_slot + length].copy_(rows, non_blocking=True)

    def _request_pitched(
        self, source: Tensor, target: Tensor, source_slot: int, target_slot: int, length: int, layers: range
    ) -> bool:
        """Layers as lines of a rectangle. False if it cannot be had, and then never again."""
        assert self._runtime is not None
        row = self._row_bytes
        source_pitch, target_pitch = source.shape[1] * row, target.shape[1] * row
        status = self._runtime.copy_rectangle(
            target.data_ptr() + layers.start * target_pitch + target_slot * row, target_pitch,
            source.data_ptr() + layers.start * source_pitch + source_slot * row, source_pitch,
            length * row, len(layers), HOST_TO_DEVICE if self.loads else DEVICE_TO_HOST, self.stream.cuda_stream,
        )  # fmt: skip
        if status != 0:
            logger.warning("cudaMemcpy2DAsync failed with %d (pitches %d, %d)", status, source_pitch, target_pitch)
            self._by_pitch = False
        return status == 0

    def _launch(self, units: Pieces, layers: range) -> None:
        table = next((table for table in self._tables if table.free.query()), None)  # type: ignore[no-untyped-call]
        if table is None:
            table = _Table(self.device)
            self._tables.append(table)
        copy_units(*self._sources, *self._targets, table.send(units), layers, self._num_programs)
        table.free.record(self.stream)

    def close(self) -> None:
        """Waits for what is on the stream and lets go of the pools. Nothing may be moved after."""
        self.stream.synchronize()
        nothing = torch.empty(0)
        self._sources = self._targets = (nothing, nothing)


class _Table:
    """Units on their way to the card. Not to be used again until `free` has passed."""

    def __init__(self, device: torch.device) -> None:
        self._staged = torch.zeros(TABLE_UNITS, 3, dtype=torch.int32, pin_memory=True)
        self._units = torch.zeros(TABLE_UNITS, 3, dtype=torch.int32, device=device)
        self.free = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def send(self, units: Pieces) -> Tensor:
        self._staged.numpy()[: len(units)] = units
        return self._units[: len(units)].copy_(self._staged[: len(units)], non_blocking=True)


class CardCopy(Job):
    """A copy on a card's stream."""

    def __init__(
        self,
        mover: CardMover,
        parts: Iterable[Part],
        num_tokens: int,
        num_bytes: int,
        after: torch.cuda.Event | None,
        gates: LayerGates | None,
        path: Path,
        least_s: float,
    ) -> None:
        """`least_s` is what it takes over a link of the limited rate, though the card be faster."""
        self._mover, self.parts = mover, parts
        self.num_tokens, self.num_bytes = num_tokens, num_bytes
        self._after, self._gates, self._path, self._least_s = after, gates, path, least_s
        self._began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._given = threading.Event()
        self._over = False
        self._problem: str | None = None
        self._seconds: float | None = None

    def begin(self) -> None:
        if self._after is not None:
            self._mover.stream.wait_event(self._after)
        self._began.record(self._mover.stream)

    def move(self, part: Part) -> None:
        with torch.cuda.stream(self._mover.stream):
            self._mover.move(part, self._path)
            if part.gate is not None and self._gates is not None:
                self._gates.events[part.gate].record(self._mover.stream)

    def end(self) -> None:
        self._ended.record(self._mover.stream)
        self._given.set()

    def fail(self, problem: str) -> None:
        self._problem = problem
        try:
            self._ended.record(self._mover.stream)  # what the card was given before still writes
        except RuntimeError:
            logger.exception("the card failed")
        self._given.set()

    def enqueued(self) -> bool:
        return self._given.is_set()

    def done(self) -> bool:
        if not self._given.is_set():
            return False
        if self._over:
            return True
        try:
            if not self._ended.query():  # type: ignore[no-untyped-call]
                return False
            if self._problem is None:
                self._seconds = max(self._began.elapsed_time(self._ended) / 1000, self._least_s)
        except RuntimeError as error:  # of the card
            self._problem = self._problem or str(error)
        self._over = True
        return True

    def problem(self) -> str | None:
        return self._problem

    def wait(self) -> None:
        self._given.wait()
        try:
            self._ended.synchronize()
        except RuntimeError as error:
            self._problem = self._problem or str(error)
        self.done()

    @property
    def seconds(self) -> float | None:
        return self._seconds if self.done() else None

    def event(self, group: int) -> torch.cuda.Event | None:
        return self._gates.events[group] if self._gates is not None else self._ended
