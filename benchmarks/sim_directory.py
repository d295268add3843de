"""The directory in the simulator: the publishers, shards and view that serve, over messages that come late or never."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from laban.actors.publishing import Publisher
from laban.cluster.routing.directory_view import DirectoryView
from laban.kvstore.directory import DirectoryShard
from laban.kvstore.directory_messages import Answer, Batch, Epoch, News, Watch
from laban.kvstore.placements import PlacementChange

ROUTER = "router"
HEARTBEAT_S = 1.0


class Clock(Protocol):
    now_s: float

    def at(self, time_s: float, do: Callable[..., None], *arguments: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Post:
    """How messages between workers, the directory and the control plane fare."""

    delay_s: float = 0.002
    interval_s: float = 0.05  # a publisher gathers changes for so long, and the view's poll likewise
    lost: float = 0.0  # share of messages
    late: float = 0.0  # share that comes after up to `late_s`, when their sender has given them up
    late_s: float = 2.0
    repeated: float = 0.0


class SimDirectory:
    """`view` is what routing goes by."""

    def __init__(self, clock: Clock, post: Post, rng: random.Random, *, num_shards: int = 1) -> None:
        self._clock, self._post, self._rng = clock, post, rng
        self.shards = [DirectoryShard() for _ in range(num_shards)]
        self.view = DirectoryView(num_shards, clock=lambda: clock.now_s)
        self.view.watching.on_interest = self._interest
        self._publishers: dict[str, tuple[Epoch, Publisher]] = {}
        self._due: dict[tuple[str, int], float] = {}  # when each publisher speaks to each shard next
        self._polling: set[int] = set()
        self._taken = [0] * num_shards
        self._watch_numbers = [0] * num_shards
        self._known = [False] * num_shards
        self._watching = False
        self.num_changes = 0
        self.num_batches = 0
        self.num_gaps = 0
        self.shards_cpu_s = 0.0  # of this process's time
        self.view_cpu_s = 0.0
        self.stopped = False
        self._clock.at(1.0, self._tick)

    # Workers

    def join(self, worker_id: str) -> Epoch:
        now_s = self._clock.now_s
        epoch = self.shards[0].register(worker_id, now_s, int(now_s * 1e6) + 1)
        self._publishers[worker_id] = (epoch, Publisher(worker_id, epoch, len(self.shards), heartbeat_s=HEARTBEAT_S))
        self.view.begin(worker_id, epoch)
        for shard in range(len(self.shards)):
            self._speak(worker_id, shard, self._rng.uniform(0, HEARTBEAT_S))
        return epoch

    def die(self, worker_id: str) -> None:
        """Seen at once by the control plane, which tells the shards."""
        epoch, _ = self._publishers.pop(worker_id)
        self.view.drop(worker_id, epoch)
        for shard in range(len(self.shards)):
            self._due.pop((worker_id, shard), None)
            self._send(lambda now_s, shard=shard: self.shards[shard].drop(worker_id, epoch, now_s))
            self._poll(shard)

    def change(self, worker_id: str, changes: Sequence[PlacementChange]) -> None:
        found = self._publishers.get(worker_id)
        if found is not None:
            found[1].put(changes)
            self.num_changes += len(changes)
            for shard in range(len(self.shards)):
                self._speak(worker_id, shard, self._post.interval_s)

    def _speak(self, worker_id: str, shard: int, in_s: float) -> None:
        """Unless it does so sooner anyway."""
        at_s = self._clock.now_s + in_s
        if at_s < self._due.get((worker_id, shard), inf):
            self._due[worker_id, shard] = at_s
            self._clock.at(at_s, self._publish, worker_id, shard, at_s)

    def _publish(self, now_s: float, worker_id: str, shard: int, due_s: float) -> None:
        if self._due.get((worker_id, shard)) != due_s or self.stopped:
            return  # it spoke sooner
        del self._due[worker_id, shard]
        found = self._publishers.get(worker_id)
        if found is None:
            return
        publisher, post = found[1], self._post
        batch = publisher.take(shard, now_s)
        if batch is not None:
            self.num_batches += 1
            luck = self._rng.random()
            if luck < post.lost + post.late:
                publisher.failed(shard, now_s)
                if luck >= post.lost:
                    self._clock.at(now_s + self._rng.uniform(0, post.late_s), self._deliver, batch, shard, None)
            else:
                self._clock.at(now_s + post.delay_s, self._deliver, batch, shard, publisher)
                if self._rng.random() < post.repeated:
                    self._clock.at(now_s + self._rng.uniform(0, post.late_s), self._deliver, batch, shard, None)
        self._speak(worker_id, shard, max(post.interval_s, publisher.due_s(shard) - now_s))

    def _deliver(self, now_s: float, batch: Batch, shard: int, publisher: Publisher | None) -> None:
        began = time.thread_time()
        answer = self.shards[shard].publish(batch, now_s)
        self.shards_cpu_s += time.thread_time() - began
        self.num_gaps += answer is Answer.GAP
        if publisher is not None:
            publisher.answered(shard, answer)
            if answer is Answer.GAP:
                self._speak(batch.worker_id, shard, self._post.delay_s)
        self._poll(shard)

    # The view

    def _poll(self, shard: int) -> None:
        if shard not in self._polling and self.shards[shard].has_news(ROUTER, self._taken[shard], self._clock.now_s):
            self._polling.add(shard)
            self._clock.at(self._clock.now_s + self._post.interval_s, self._news, shard)

    def _news(self, now_s: float, shard: int) -> None:
        self._polling.discard(shard)
        began = time.thread_time()
        news = self.shards[shard].take_news(ROUTER, self._taken[shard], now_s)
        self.shards_cpu_s += time.thread_time() - began
        if news is None:
            self._known[shard] = False
            self._interest()
            return
        if news and self._rng.random() >= self._post.lost:
            self._taken[shard] = news.number
            self._send(lambda now_s: self._take(shard, news))
        self._poll(shard)

    def _take(self, shard: int, news: News) -> None:
        began = time.thread_time()
        self.view.take(shard, news)
        self.view_cpu_s += time.thread_time() - began

    def _interest(self) -> None:
        if not self._watching:
            self._watching = True
            self._clock.at(self._clock.now_s + self._post.interval_s, self._watch)

    def _watch(self, now_s: float) -> None:
        self._watching = False
        for number, shard in enumerate(self.shards):
            anew = not self._known[number]
            added, removed = (self.view.watching.all_of(number), ()) if anew else self.view.watching.take(number)
            if anew or added or removed:
                self._watch_numbers[number] += 1
                self._known[number] = shard.watch(
                    Watch(ROUTER, self._watch_numbers[number], added, removed, anew), now_s
                )
                if not self._known[number]:
                    self._interest()
                self._poll(number)

    def _send(self, do: Callable[[float], None]) -> None:
        self._clock.at(self._clock.now_s + self._post.delay_s, do)

    def _tick(self, now_s: float) -> None:
        if self.stopped:
            return
        for number, shard in enumerate(self.shards):
            shard.tick(now_s)
            shard.sweep(10_000)
            self._poll(number)
        self.view.tick()
        self._clock.at(now_s + 1.0, self._tick)
