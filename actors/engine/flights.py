"""Copies between the device and the host that are under way, numbered, so that all shards of a worker agree on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from laban.actors.engine.copier import Copier, Copy, Direction
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.runs import Runs


class Flights:
    """A copy counts as done once `land` was told so: in a worker of several shards the first one decides when."""

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._number = 0
        self._under_way: dict[int, tuple[bool, Copy, Callable[[], None]]] = {}  # whether it tells the link's rate

    def __len__(self) -> int:
        return len(self._under_way)

    def start(
        self,
        direction: Direction,
        device_runs: Runs,
        host_runs: Runs,
        on_done: Callable[[], None],
        after: torch.cuda.Event | None = None,
        gates: LayerGates | None = None,
        gentle: bool = False,
    ) -> Copy:
        """`on_done` is called within `land`."""
        copy = self._copier.start(direction, device_runs, host_runs, after=after, gates=gates, gentle=gentle)
        self._number += 1
        self._under_way[self._number] = direction == "load" and not gentle, copy, on_done
        return copy

    def landed(self) -> tuple[int, ...]:
        """Those whose copying has ended, in order of their numbers."""
        return tuple(number for number, (_, copy, _) in self._under_way.items() if copy.done())

    def land(self, numbers: Sequence[int], measure: Callable[[int, float], None]) -> None:
        """Waits for these copies. `measure` is told bytes and seconds of loads at full rate. Raises if one failed."""
        for number in numbers:
            measures, copy, on_done = self._under_way.pop(number)
            copy.wait()
            if (problem := copy.problem()) is not None:
                raise RuntimeError(f"a copy of {copy.num_tokens} tokens failed: {problem}")
            if measures and copy.seconds:
                measure(copy.num_bytes, copy.seconds)
            on_done()

    def close(self) -> None:
        self._copier.close()


class AfterFree(Protocol):
    """What a copy into pages of the device has to wait for: an iteration that may still read what was there."""

    def __call__(self, pages: Sequence[int]) -> torch.cuda.Event | None: ...
