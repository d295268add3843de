"""From workers' publishers over a network that loses, repeats and reorders, through two shards, to a subscriber's view.

After every rule everything that is kept must add up, and nobody holds what it was told is gone. Whatever happened, once
messages arrive again shards and view know what the workers hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from laban.actors.publishing import Publisher
from laban.cluster.routing.directory_view import DirectoryView
from laban.kvstore.directory import IDLE_S, LATE_S, DirectoryShard
from laban.kvstore.directory_messages import Batch, Watch
from laban.kvstore.placements import PlacementChange, PlacementState, Tier, shard_of

pytestmark = pytest.mark.slow

NUM_SHARDS = 2
WORKERS = ("w0", "w1")
IDS = tuple(f"e{number}" for number in range(6))
EXPIRE_S = 5.0
QUIET_S = 2.5

workers = st.sampled_from(WORKERS)
shards = st.integers(0, NUM_SHARDS - 1)
fates = st.lists(st.sampled_from(["answered", "answered", "unanswered", "lost"]), min_size=2, max_size=10)
tiers, states = st.sampled_from(Tier), st.sampled_from([*PlacementState, PlacementState.GONE])
ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=6)


@dataclass
class Worker:
    """One life: what it holds in truth, and what it has to say."""

    worker_id: str
    epoch: str
    publisher: Publisher
    held: dict[tuple[str, Tier], tuple[PlacementState, int]] = field(default_factory=dict)


class DirectoryMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.now = 1000.0
        self.wall_us = 1
        self.shards = [DirectoryShard() for _ in range(NUM_SHARDS)]
        self.over: list[dict[str, str]] = [{} for _ in range(NUM_SHARDS)]  # what each shard was told is over
        self.network: list[tuple[int, Batch]] = []
        self.lives: dict[str, Worker] = {}
        self.view = DirectoryView(NUM_SHARDS, expire_s=EXPIRE_S, linger_s=60.0, clock=lambda: self.now)
        self.numbers = [0] * NUM_SHARDS
        self.known = [False] * NUM_SHARDS
        self.taken = [0] * NUM_SHARDS
        for worker_id in WORKERS:
            self.start(worker_id)
        self.view.watch("run", IDS[1:])
        for number in range(NUM_SHARDS):
            self._speak(number, "answered")

    # Workers

    @rule(worker_id=workers)
    def start(self, worker_id):
        """A new life; the one before it, if there was one, was killed at this very point."""
        before = self.lives.get(worker_id)
        if before is not None:
            self.view.drop(worker_id, before.epoch)
        self.wall_us += 1
        epoch = self.shards[0].register(worker_id, self.now, self.wall_us)
        if before is not None:
            assert epoch > before.epoch
            self.over[0][worker_id] = before.epoch
        self.lives[worker_id] = Worker(worker_id, epoch, Publisher(worker_id, epoch, NUM_SHARDS))
        self.view.begin(worker_id, epoch)

    @rule(worker_id=workers, told=st.lists(shards, unique=True), again=st.booleans())
    def kill(self, worker_id, told, again):
        """Dead, and only some shards hear of it before it begins again, if it does."""
        life = self.lives.pop(worker_id, None)
        if life is None:
            return
        self.view.drop(worker_id, life.epoch)
        for shard in told:
            self.shards[shard].drop(worker_id, life.epoch, self.now)
            self.over[shard][worker_id] = life.epoch
        if again:
            self.start(worker_id)

    @rule(
        worker_id=workers,
        changed=st.lists(st.tuples(ids, tiers, states, st.integers(1, 4000)), min_size=1, max_size=3),
        fates=fates,
        heard=fates,
    )
    def work(self, worker_id, changed, fates, heard):
        """Something changes, some of it is said, and some of that heard. Without an answer the publisher gives up
        waiting; the batch may arrive late, or never."""
        life = self.lives.get(worker_id)
        if life is None:
            return
        for encoding_ids, tier, state, num_tokens in changed:
            self._change(life, encoding_ids, tier, state, num_tokens)
        for number, fate in enumerate(fates):
            shard = number % NUM_SHARDS
            batch = life.publisher.take(shard, self.now)
            self.now += 0.1
            if batch is None:
                continue
            answer = None if fate == "lost" else self._arrive(shard, batch)
            if answer is not None and fate == "answered":
                life.publisher.answered(shard, answer)
            else:
                life.publisher.failed(shard, self.now)
                self.network.append((shard, batch))
        for number, fate in enumerate(heard):
            self._poll(number % NUM_SHARDS, fate, 20)

    def _change(self, life, encoding_ids, tier, state, num_tokens):
        life.publisher.put([PlacementChange(each, tier, state, num_tokens, f"of/{each}") for each in encoding_ids])
        for encoding_id in encoding_ids:
            if state is PlacementState.GONE:
                life.held.pop((encoding_id, tier), None)
            else:
                life.held[encoding_id, tier] = state, num_tokens

    @rule(data=st.data(), repeated=st.booleans())
    def arrive_late(self, data, repeated):
        if self.network:
            index = data.draw(st.integers(0, len(self.network) - 1))
            self._arrive(*(self.network[index] if repeated else self.network.pop(index)))

    @rule(worker_id=workers, encoding_id=st.sampled_from(IDS))
    def expect(self, worker_id, encoding_id):
        life = self.lives.get(worker_id)
        if life is not None:
            self.view.expect(worker_id, life.epoch, encoding_id, 7)
            assert self.view.tier_of(worker_id, encoding_id) is Tier.DEVICE

    # Shards and time

    @rule(shard=shards)
    def lose_shard(self, shard):
        self.shards[shard] = DirectoryShard(quiet_until_s=self.now + QUIET_S)
        self.over[shard] = {}

    @rule(seconds=st.sampled_from([0.5, QUIET_S, LATE_S, IDLE_S]))
    def wait(self, seconds):
        self.now += seconds
        for shard in self.shards:
            shard.tick(self.now)
        self.view.tick()

    @rule(shard=shards, limit=st.integers(1, 8))
    def sweep(self, shard, limit):
        self.shards[shard].sweep(limit)

    # The subscriber

    @rule(source=st.sampled_from(["run", "session"]), encoding_ids=ids, also=st.booleans())
    def name(self, source, encoding_ids, also):
        (self.view.watch_also if also else self.view.watch)(source, encoding_ids)

    @rule(source=st.sampled_from(["run", "session"]))
    def unname(self, source):
        self.view.unwatch(source)

    @rule(fates=fates, heard=fates, limit=st.integers(1, 3))
    def listen(self, fates, heard, limit):
        """Say what is watched, and poll."""
        for number, fate in enumerate(fates):
            self._speak(number % NUM_SHARDS, fate)
        for number, fate in enumerate(heard):
            self._poll(number % NUM_SHARDS, fate, limit)

    def _speak(self, shard, fate):
        anew = not self.known[shard]
        watching = self.view.watching
        added, removed = (watching.all_of(shard), ()) if anew else watching.take(shard)
        self.numbers[shard] += 1
        watch = Watch("router", self.numbers[shard], added, removed, anew)
        taken = fate != "lost" and self.shards[shard].watch(watch, self.now)
        self.known[shard] = taken and fate == "answered"

    def _poll(self, shard, fate, limit):
        news = None if fate == "lost" else self.shards[shard].take_news("router", self.taken[shard], self.now, limit)
        if fate != "answered":
            return
        if news is None:
            self.known[shard] = False
        else:
            self.taken[shard] = news.number
            self.view.take(shard, news)

    # What must hold

    @rule()
    def settle(self):
        """No message is lost any more: before anyone is late who lives, everything is where it should be."""
        self.network.clear()
        for _ in range(8):
            self.now += 1.0
            for life in self.lives.values():
                for number, shard in enumerate(self.shards):
                    for _ in range(3):  # a heartbeat, a gap, a snapshot
                        batch = life.publisher.take(number, self.now)
                        if batch is not None:
                            life.publisher.answered(number, shard.publish(batch, self.now))
            self.view.tick()
            for number, shard in enumerate(self.shards):
                shard.tick(self.now)
                self._speak(number, "answered")
                self._poll(number, "answered", 1000)
        for number, shard in enumerate(self.shards):
            while shard.sweep(3):
                shard.check_integrity()
            records = [shard.find(encoding_id, self.now) for encoding_id in IDS]
            assert {
                (record.encoding_id, placed.worker_id, placed.tier): (placed.state, placed.num_tokens)
                for record in records
                for placed in record.placements
            } == {key: value for key, value in self._truth().items() if shard_of(key[0], NUM_SHARDS) == number}
            assert all(each.namespace == f"of/{each.encoding_id}" for each in records if each.placements)
            assert shard._subscriptions.get("router").watched == set(self.view.watching.all_of(number))
        assert {
            (encoding_id, worker_id, tier): (state, num_tokens)
            for encoding_id in self.view.watching.named()
            for worker_id, placed in self.view.holders(encoding_id).items()
            for tier, state, num_tokens in placed
        } == {key: value for key, value in self._truth().items() if key[0] in self.view.watching.named()}

    def _truth(self):
        return {
            (encoding_id, worker_id, tier): value
            for worker_id, life in self.lives.items()
            for (encoding_id, tier), value in life.held.items()
        }

    @invariant()
    def adds_up(self):
        for number, shard in enumerate(self.shards):
            shard.check_integrity()
            for encoding_id in IDS:
                for placed in shard.find(encoding_id, self.now).placements:
                    assert placed.epoch > self.over[number].get(placed.worker_id, ""), "what is over has nothing"
        self.view.check_integrity()
        for encoding_id in IDS:
            for worker_id in self.view.holders(encoding_id):
                assert worker_id in self.lives, "the dead have nothing"

    def teardown(self):
        if hasattr(self, "shards"):
            self.settle()

    def _arrive(self, shard, batch):
        before = self._epoch(shard, batch.worker_id)
        answer = self.shards[shard].publish(batch, self.now)
        after = self._epoch(shard, batch.worker_id)
        assert after >= before, "no way back to a life that is over"
        if after:
            over = self.over[shard]
            over[batch.worker_id] = max(over.get(batch.worker_id, ""), f"{int(after, 16) - 1:016x}")
        return answer

    def _epoch(self, shard, worker_id):
        known = {each.worker_id: each.epoch for each in self.shards[shard].status().workers}
        return known.get(worker_id, "")


DirectoryMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestDirectory = DirectoryMachine.TestCase
