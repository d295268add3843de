"""Copies between the device and the host that are under way, numbered, so that all shards of a worker agree on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from laban.actors.engine.copier import Copier, Copy, Direction
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.runs import Runs

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Flight:
    copy: Copy
    on_done: Callable[[], None]
    on_failed: Callable[[], None]
    measures: bool  # it tells the link's rate


class Flights:
    """A copy counts as done once `land` was told so: in a worker of several shards the first one decides when."""

    def __init__(self, copier: Copier) -> None:
        self._copier = copier
        self._number = 0
        self._under_way: dict[int, _Flight] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def start(
        self,
        direction: Direction,
        device_runs: Runs,
        host_runs: Runs,
        on_done: Callable[[], None],
        on_failed: Callable[[], None],
        after: torch.cuda.Event | None = None,
        gates: LayerGates | None = None,
        gentle: bool = False,
    ) -> Copy:
        """One of `on_done` and `on_failed` is called within `land`; after the latter what it wrote must not be read."""
        copy = self._copier.start(direction, device_runs, host_runs, after=after, gates=gates, gentle=gentle)
        self._number += 1
        self._under_way[self._number] = _Flight(copy, on_done, on_failed, direction == "load" and not gentle)
        return copy

    def landed(self) -> tuple[int, ...]:
        """Those whose copying has ended, in order of their numbers."""
        return tuple(number for number, flight in self._under_way.items() if flight.copy.done())

    def land(self, numbers: Sequence[int], measure: Callable[[int, float], None]) -> list[str]:
        """Waits for these copies. `measure` is told bytes and seconds of loads at full rate. Returns what failed."""
        problems: list[str] = []
        for number in numbers:
            flight = self._under_way.pop(number)
            copy = flight.copy
            copy.wait()
            if (problem := copy.problem()) is not None:
                problems.append(f"a copy of {copy.num_tokens} tokens failed: {problem}")
                log.error(problems[-1])
                flight.on_failed()
                continue
            if flight.measures and copy.seconds:
                measure(copy.num_bytes, copy.seconds)
            flight.on_done()
        return problems

    def close(self) -> None:
        self._copier.close()


class AfterFree(Protocol):
    """What a copy into pages of the device has to wait for: an iteration that may still read what was there."""

    def __call__(self, pages: Sequence[int]) -> torch.cuda.Event | None: ...
