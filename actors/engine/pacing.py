"""Copies in their order, one direction's apart from the other's, and no faster than a link that is to be tried."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Protocol

from laban.actors.engine.copy_pieces import Part

LEAST_PART, MOST_PART = 64 << 10, 4 << 20
PART_S = 0.002  # of a paced link's time that one part takes


class Job(Protocol):
    """A copy, as whoever carries it out sees it."""

    parts: Iterable[Part]

    def begin(self) -> None: ...
    def move(self, part: Part) -> None: ...
    def end(self) -> None: ...
    def fail(self, problem: str) -> None: ...


class Pacer:
    """A link of a given rate: says when what is put on it now would have arrived."""

    def __init__(self, bytes_per_s: float, most_part: int = MOST_PART) -> None:
        """`most_part` are the bytes of one part at most."""
        if bytes_per_s <= 0:
            raise ValueError(f"limit_bytes_per_s is {bytes_per_s}, expected more than 0")
        self.bytes_per_s = bytes_per_s
        self._most_part = most_part
        self._free_at = 0.0

    @property
    def part_bytes(self) -> int:
        """Small enough to be even, and large enough to be worth a copy."""
        return min(max(int(PART_S * self.bytes_per_s), LEAST_PART), self._most_part)

    def arrival(self, num_bytes: int, since: float) -> float:
        """Takes the link for those bytes, which were there `since`, after what it has already."""
        self._free_at = max(self._free_at, since) + num_bytes / self.bytes_per_s
        return self._free_at


class Lane:
    """Jobs of one direction. With a thread of its own, `put` returns at once; without, when all is enqueued."""

    def __init__(
        self,
        name: str,
        *,
        threaded: bool,
        pacer: Pacer | None,
        clock: Callable[[], float],
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._pacer = pacer
        self._clock = clock
        self._closing = threading.Event()
        self._sleep = sleep or self._closing.wait
        self._jobs: queue.SimpleQueue[tuple[Job, float] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def put(self, job: Job) -> None:
        if self._closing.is_set():
            job.fail("the copier is closed")
        elif self._thread is None:
            self._carry_out(job, self._clock())
        else:
            self._jobs.put((job, self._clock()))

    def close(self) -> None:
        """Jobs not begun fail, one under way ends with the part that it is at."""
        self._closing.set()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            self._carry_out(*item)

    def _carry_out(self, job: Job, since: float) -> None:
        """`since` is when it was put: the link has worked at it from then on, whenever this thread gets to run."""
        try:
            job.begin()
            for part in job.parts:
                if self._pacer is not None:
                    due = self._pacer.arrival(part.num_bytes, since)
                    while (left := due - self._clock()) > 0 and not self._closing.is_set():
                        self._sleep(left)
                if self._closing.is_set():
                    job.fail("the copier is closed")
                    return
                job.move(part)
            job.end()
        except Exception as error:  # told by `fail`; the engine goes on, and encodes what did not arrive
            job.fail(f"{type(error).__name__}: {error}")
