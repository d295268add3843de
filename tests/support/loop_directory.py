"""The directory without processes: its shards live in the caller's event loop, and can be lost there."""

from __future__ import annotations

import time
from collections.abc import Sequence

from laban.actors.directory import DirectoryService
from laban.actors.publishing import Publisher
from laban.kvstore.directory_messages import Answer, Batch, EncodingRecord, Epoch, Interest, News, ShardStatus, Watch
from laban.kvstore.placements import PlacementChange, shard_of


class LoopDirectory:
    """Implements DirectoryPort. Workers' changes go in by `put`, at once. Shards in `down` answer nobody."""

    def __init__(self, num_shards: int = 1, **settings: float) -> None:
        self._settings = {"gather_s": 0.0, "settle_s": 0.01, **settings}
        self.shards = [DirectoryService(**self._settings) for _ in range(num_shards)]
        self.down: set[int] = set()
        self.polls = 0
        self._publishers: dict[str, Publisher] = {}

    @property
    def num_shards(self) -> int:
        return len(self.shards)

    def restart(self, shard: int) -> None:
        """It died and came back with nothing; polls that wait there are for nothing, as with a process."""
        self.shards[shard] = DirectoryService(restarted=True, **self._settings)

    # The workers' side

    def begin(self, worker_id: str) -> Epoch:
        epoch = self.shards[0]._shard.register(worker_id, time.monotonic(), time.time_ns() // 1000)
        self._publishers[worker_id] = Publisher(worker_id, epoch, self.num_shards, heartbeat_s=0.0)
        return epoch

    def put(self, worker_id: str, changes: Sequence[PlacementChange]) -> None:
        self._publishers[worker_id].put(changes)
        self.flush(worker_id)

    def flush(self, worker_id: str) -> None:
        """Say what there is to say, or a heartbeat, to every shard that is up, until it has it all."""
        publisher = self._publishers[worker_id]
        for number, service in enumerate(self.shards):
            answer = Answer.GAP
            while number not in self.down and answer is Answer.GAP:
                batch = publisher.take(number, time.monotonic())
                assert batch is not None
                answer = service._shard.publish(batch, time.monotonic())
                publisher.answered(number, answer)
            service._wake()

    # DirectoryPort

    async def register(self, worker_id: str) -> Epoch:
        return await self._up(0).register(worker_id)

    async def publish(self, shard: int, batch: Batch) -> Answer:
        return await self._up(shard).publish(batch)

    async def drop(self, worker_id: str, epoch: Epoch) -> None:
        for shard in range(self.num_shards):
            await self._up(shard).drop(worker_id, epoch)

    async def watch(self, shard: int, watch: Watch) -> bool:
        return await self._up(shard).watch(watch)

    async def poll(self, shard: int, subscriber: str, taken: int, wait_s: float) -> News | None:
        self.polls += 1
        service = self._up(shard)
        news = await service.poll(subscriber, taken, wait_s)
        if service is not self._up(shard):
            raise ConnectionError("died meanwhile")
        return news

    async def tell(self, shard: int, interest: Interest) -> None:
        await self._up(shard).tell(interest)

    async def find(self, encoding_ids: Sequence[str]) -> list[EncodingRecord]:
        found = [await self._up(shard_of(each, self.num_shards)).find([each]) for each in encoding_ids]
        return [record for records in found for record in records]

    async def status(self) -> list[ShardStatus]:
        return [await self._up(shard).status() for shard in range(self.num_shards)]

    def _up(self, shard: int) -> DirectoryService:
        if shard in self.down:
            raise ConnectionError("down")
        return self.shards[shard]
