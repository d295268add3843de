"""Copies of tokens' keys and values between the device's pool and the host's, beside whatever the engine computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from laban.actors.engine.card_copies import CardCopy, CardMover, Path
from laban.actors.engine.copy_pieces import Part, check_runs, parts_of, pieces_of
from laban.actors.engine.host_pool import HostPool, bytes_of
from laban.actors.engine.layer_gates import LayerGates
from laban.actors.engine.pacing import MOST_PART, Job, Lane, Pacer
from laban.actors.engine.runs import Runs
from laban.kernels.tier_copy import NUM_PROGRAMS

Direction = Literal["load", "save"]

GENTLE_BYTES_PER_S = 8e9
GENTLE_PART = 8 << 20
"""In parts of 4 MiB at 5 GB/s a decode of an 8B model took 6.69 ms a token on one H100, as without copies (6.66); with
1 GiB given to the card at once it stood still until that was over."""


class Copy(Protocol):
    """One copy under way. Nothing here waits but `wait`, and nothing raises."""

    num_tokens: int
    num_bytes: int

    def enqueued(self) -> bool:
        """Whether the card has been given all of it, so that a forward launched now waits at its gates."""
        ...

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        ...

    def problem(self) -> str | None:
        """Why what it wrote must not be read; None if it went well or goes on."""
        ...

    def wait(self) -> None:
        """Until it is done."""
        ...

    @property
    def seconds(self) -> float | None:
        """As the device measured them, without the time in the queue; None until it is done, and if it failed."""
        ...

    def event(self, group: int) -> torch.cuda.Event | None:
        """What a stream may wait for to read that group of layers; None off a card."""
        ...


class Copier:
    """Loads (host to device) and saves (device to host), each in order, at the same time as the others.

    `start` is called by one thread, the engine's, and returns at once. On a card each direction has a stream; a copy is
    given to it there and then, or by a thread as it is due if the rate is limited. On a CPU each has a thread.
    """

    def __init__(
        self,
        k_pool: Tensor,
        v_pool: Tensor,
        host: HostPool,
        *,
        limit_bytes_per_s: float | None = None,
        num_programs: int = NUM_PROGRAMS,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """`limit_bytes_per_s` is of each direction, to try a slower link; `num_programs` are the kernel's, on a card.

        The pools must outlive the copier.
        """
        for pool in (k_pool, v_pool):
            if pool.shape[2:] != host.k.shape[2:] or len(pool) != len(host.k) or pool.dtype != host.k.dtype:
                raise ValueError(f"the device's pool is {tuple(pool.shape)}, the host's {tuple(host.k.shape)}")
            assert pool.is_contiguous()
        self.device = k_pool.device
        self.limit_bytes_per_s = limit_bytes_per_s
        self._clock = clock
        self._num_layers = len(k_pool)
        self._num_slots = k_pool.shape[1], host.num_slots
        self._layer_bytes = 2 * k_pool[0, 0].numel() * k_pool.itemsize
        on_card = self.device.type == "cuda"
        self._planes = [] if on_card else [(bytes_of(k_pool), bytes_of(host.k)), (bytes_of(v_pool), bytes_of(host.v))]
        self._ways: dict[tuple[Direction, bool], _Way] = {}
        directions: tuple[Direction, ...] = ("load", "save")
        for direction in directions:
            for gentle in (False, True) if on_card else (False,):
                rate = limit_bytes_per_s
                if gentle:
                    if rate is not None and rate <= GENTLE_BYTES_PER_S:
                        continue  # slow enough as it is
                    rate = GENTLE_BYTES_PER_S
                pacer = None if rate is None else Pacer(rate, GENTLE_PART if gentle else MOST_PART)
                name = f"gentle {direction}s" if gentle else f"{direction}s"
                lane = Lane(name, threaded=pacer is not None or not on_card, pacer=pacer, clock=clock, sleep=sleep)
                mover = CardMover(k_pool, v_pool, host, direction == "load", num_programs) if on_card else None
                self._ways[direction, gentle] = _Way(lane, mover, rate, None if pacer is None else pacer.part_bytes)

    def start(
        self,
        direction: Direction,
        device_runs: Runs,
        host_runs: Runs,
        layers: range | None = None,
        after: torch.cuda.Event | None = None,
        gates: LayerGates | None = None,
        path: Path = "auto",
        gentle: bool = False,
    ) -> Copy:
        """Begins to copy the tokens of the one list of runs to those of the other, in order.

        A `gentle` copy goes in small parts with gaps between them: a forward's own inputs take the same engine of the
        card, and would wait for all that was given to it before. On the card the copy waits for `after`, and `gates`
        are recorded as their layers arrive. Raises ValueError for runs that do not fit together or lie outside of a
        pool; what goes wrong later is `Copy.problem`.
        """
        layers = range(self._num_layers) if layers is None else layers
        pieces = pieces_of(device_runs, host_runs)
        check_runs(device_runs, self._num_slots[0], "device")
        check_runs(host_runs, self._num_slots[1], "host")
        groups: list[tuple[range, int | None]] = [(layers, None)]
        if gates is not None:
            cut = (range(max(g.start, layers.start), min(g.stop, layers.stop)) for g in gates.groups)
            groups = [(group, number) for number, group in enumerate(cut)]
        way = self._ways.get((direction, gentle)) or self._ways[direction, False]
        parts = parts_of(pieces, groups, self._layer_bytes, way.part_bytes)
        num_tokens = int(pieces[:, 2].sum())
        num_bytes = num_tokens * len(layers) * self._layer_bytes
        copy: CardCopy | HostCopy
        if way.mover is not None:
            least_s = 0.0 if way.bytes_per_s is None else num_bytes / way.bytes_per_s
            copy = CardCopy(way.mover, parts, num_tokens, num_bytes, after, gates, path, least_s)
        else:
            copy = HostCopy(self._planes, direction == "load", parts, num_tokens, num_bytes, self._clock)
        way.lane.put(copy)
        return copy

    def close(self) -> None:
        """Ends the threads and waits for what is under way; what has not begun fails. The pools are let go."""
        for way in self._ways.values():
            way.lane.close()
            if way.mover is not None:
                way.mover.close()
        self._planes = []


@dataclass(frozen=True, slots=True)
class _Way:
    """Through which copies of one direction go: `bytes_per_s` and `part_bytes` None are as much as there is."""

    lane: Lane
    mover: CardMover | None
    bytes_per_s: float | None
    part_bytes: int | None


class HostCopy(Job):
    """A copy between two pools in host memory, carried out by a thread."""

    def __init__(
        self,
        planes: list[tuple[np.ndarray, np.ndarray]],
        loads: bool,
        parts: Iterable[Part],
        num_tokens: int,
        num_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        """`planes` are (device, host) of keys and of values: [num_layers, num_slots, bytes]."""
        self._planes, self._loads = planes, loads
        self.parts = parts
        self.num_tokens, self.num_bytes = num_tokens, num_bytes
        self._clock = clock
        self._began_s = 0.0
        self._seconds: float | None = None
        self._problem: str | None = None
        self._ended = threading.Event()

    def begin(self) -> None:
        self._began_s = self._clock()

    def move(self, part: Part) -> None:
        layers = slice(part.layers.start, part.layers.stop)
        for device_slot, host_slot, length in part.pieces.tolist():
            for device, host in self._planes:
                there = device[layers, device_slot : device_slot + length]
                here = host[layers, host_slot : host_slot + length]
                if self._loads:
                    there[:] = here
                else:
                    here[:] = there

    def end(self) -> None:
        self._seconds = self._clock() - self._began_s
        self._ended.set()

    def fail(self, problem: str) -> None:
        self._problem = problem
        self._ended.set()

    def enqueued(self) -> bool:
        return self._ended.is_set()

    def done(self) -> bool:
        return self._ended.is_set()

    def problem(self) -> str | None:
        return self._problem

    def wait(self) -> None:
        self._ended.wait()

    @property
    def seconds(self) -> float | None:
        return self._seconds if self._ended.is_set() else None

    def event(self, group: int) -> torch.cuda.Event | None:
        return None
