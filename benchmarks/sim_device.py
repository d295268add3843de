"""A worker's device and links in the simulator: what computes, and what copies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import ceil
from typing import Any, Protocol

from sim_costs import Costs

Then = Callable[[float], None]
"""Told the time."""


class Clock(Protocol):
    def at(self, time_s: float, do: Callable[..., None], *arguments: Any) -> None: ...


class Device:
    """Forwards: chunks of what is to be encoded, in order, and a token of every running call each time.

    While calls only decode, many forwards are one event; what comes to be encoded joins the next of them.
    """

    def __init__(self, clock: Clock, costs: Costs) -> None:
        self._clock = clock
        self._costs = costs
        self._jobs: deque[tuple[int, Then]] = deque()
        self._decodes: list[tuple[int, int, Then]] = []  # by the forward in which they end
        self._num_forwards = 0
        self._version = 0
        self._began_s = 0.0
        self._each_s = 0.0
        self._planned = 0  # forwards under way
        self._stopped = False
        self.queued_tokens = 0
        self.busy_s = 0.0  # with forwards that encode; those that only decode wait for nobody

    @property
    def num_decoding(self) -> int:
        return len(self._decodes)

    def encode(self, num_tokens: int, then: Then, now_s: float) -> None:
        if self._stopped:
            return
        self._jobs.append((num_tokens, then))
        self.queued_tokens += num_tokens
        if not self._planned:
            self._go(now_s)
        elif self._planned > 1:
            done = max(1, ceil((now_s - self._began_s) / self._each_s))
            if done < self._planned:
                self._plan(done, [])

    def decode(self, num_tokens: int, serial: int, then: Then) -> None:
        """So many more: to be called at the end of the forward that gave the first."""
        heappush(self._decodes, (self._num_forwards + num_tokens, serial, then))

    def stop(self) -> None:
        self._version += 1
        self._stopped = True

    def _plan(self, num_forwards: int, done: list[Then]) -> None:
        self._planned = num_forwards
        self._version += 1
        self._clock.at(self._began_s + num_forwards * self._each_s, self._end, self._version, done)

    def _go(self, now_s: float) -> None:
        done: list[Then] = []
        jobs, room = self._jobs, self._costs.batch_tokens
        while jobs and room > 0:
            num_tokens, then = jobs.popleft()
            if num_tokens > room:
                jobs.appendleft((num_tokens - room, then))
                room = 0
            else:
                room -= num_tokens
                done.append(then)
        num_new = self._costs.batch_tokens - room
        self.queued_tokens -= num_new
        self._planned = 0
        if num_new or self._decodes:
            self._began_s = now_s
            self._each_s = self._costs.forward_s(num_new, len(self._decodes))
            self.busy_s += self._each_s if num_new else 0.0
            self._plan(1 if num_new else max(1, self._decodes[0][0] - self._num_forwards), done)

    def _end(self, now_s: float, version: int, done: list[Then]) -> None:
        if version != self._version:
            return
        self._num_forwards += self._planned
        self._planned = 1  # whatever is told now and encodes joins the next one
        ended = []
        while self._decodes and self._decodes[0][0] <= self._num_forwards:
            ended.append(heappop(self._decodes)[2])
        for then in done:
            then(now_s)
        for then in ended:
            then(now_s)
        if not self._stopped:
            self._go(now_s)


class Link:
    """Copies one way, one after the other."""

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.free_s = 0.0
        self.moved = 0.0
        self.busy_s = 0.0

    def copy_s(self, num_bytes: float) -> float:
        return num_bytes / self.bytes_per_s

    def wait_s(self, now_s: float) -> float:
        return max(0.0, self.free_s - now_s)

    def copy(self, num_bytes: float, now_s: float) -> float:
        """When it is done."""
        copy_s = num_bytes / self.bytes_per_s
        self.free_s = max(self.free_s, now_s) + copy_s
        self.moved += num_bytes
        self.busy_s += copy_s
        return self.free_s
