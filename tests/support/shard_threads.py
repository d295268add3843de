"""Shards of a worker as threads of one process, for tests that look into all of them at once, and into two workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from engine_harness import byte_tokenizer
from engine_reference import MAX_CONTEXT, random_model
from torch import Tensor

from laban.actors.calls import Call, CallEvent, CallFinished, WorkerRates
from laban.actors.engine.config import EngineConfig
from laban.actors.engine.engine import Engine
from laban.actors.engine.load import make_engine
from laban.actors.engine.lockstep import Lockstep, follow
from laban.actors.exporting import Exporting
from laban.actors.lending import Lending
from laban.actors.reach import Transport
from laban.actors.transfers import Chunk, FindPeer, Granted, Refused
from laban.actors.worker import WorkerLoop
from laban.kvstore.encodings import EncodingSpec

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2}
WAIT_S = 60.0
HOST_BYTES = 1 << 22  # of a worker's shards together


class Meeting:
    """Where the shards of one worker meet."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.told: list[Any] = [None] * size


class ThreadGroup:
    """What ShardGroup does, among threads."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        self.rank, self.size, self.device, self._meeting = rank, size, torch.device("cpu"), meeting

    def gather_objects(self, value: Any) -> list[Any]:
        meeting = self._meeting
        meeting.told[self.rank] = value
        meeting.barrier.wait()
        told = list(meeting.told)
        meeting.barrier.wait()
        return told

    def all_reduce(self, x: Tensor) -> Tensor:
        parts = self.gather_objects(x.clone())
        return x.copy_(torch.stack(parts).sum(0))

    def all_gather_last_dim(self, x: Tensor) -> Tensor:
        return torch.cat(self.gather_objects(x.clone()), dim=1)

    def broadcast_(self, x: Tensor) -> Tensor:
        return x.copy_(self.gather_objects(x.clone())[0])

    def broadcast_object(self, value: Any = None) -> Any:
        return self.gather_objects(value)[0]

    def smallest(self, value: int) -> int:
        return min(self.gather_objects(value))

    def gather(self, rows: Sequence[Sequence[float]]) -> list[list[list[float]]]:
        told = self.gather_objects([list(map(float, row)) for row in rows])
        assert len({len(each) for each in told}) == 1, "the shards do not have the same under way"
        return told

    def fail(self) -> None:
        self._meeting.barrier.abort()


class ShardedWorker:
    """A WorkerLoop over a Lockstep, and threads that follow it; `engines` in order of rank, to be looked into while
    nothing runs."""

    def __init__(self, size: int, rates: WorkerRates, **config: Any) -> None:
        settings = EngineConfig(**{"dtype": "float32", "drafting": False, "host_bytes": HOST_BYTES, **config})
        meeting = Meeting(size)
        self._groups = [ThreadGroup(rank, size, meeting) for rank in range(size)]
        # One after the other: they draw their weights from torch's one generator.
        models = [random_model("llama", **HEADS) for _ in range(size)]
        self.engines: list[Any] = [None] * size
        self.lendings = [Lending() for _ in range(size)]
        self.find_peers: list[FindPeer] = [lambda worker_id, epoch: None] * size
        self.problems: list[BaseException] = []
        self.specs: dict[str, EncodingSpec] = {}

        made = threading.Barrier(size)

        def engine_of(rank: int) -> Engine:
            group: Any = self._groups[rank]
            engine = make_engine(
                models[rank], byte_tokenizer(), settings, group.device, group, namespace="test", max_context=MAX_CONTEXT
            )
            engine.tiers.rates.adopt = lambda known: None  # type: ignore[method-assign]
            engine.tiers.rates._values = {name: getattr(rates, name) for name in rates.__dataclass_fields__}
            engine.connect(lambda worker_id, epoch: self.find_peers[rank](worker_id, epoch))
            self.engines[rank] = engine
            made.wait(WAIT_S)
            return engine

        def guarded(rank: int, body: Callable[[], Any]) -> Any:
            try:
                return body()
            except BaseException as error:
                self.problems.append(error)
                self._groups[rank].fail()
                raise

        def run(rank: int) -> None:
            guarded(rank, lambda: follow(engine_of(rank), self._groups[rank], self.lendings[rank]))  # type: ignore[arg-type]

        self._threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(1, size)]
        for thread in self._threads:
            thread.start()

        def lead() -> Any:
            lockstep = Lockstep(engine_of(0), self._groups[0])  # type: ignore[arg-type]
            step = lockstep.step
            lockstep.step = lambda: guarded(0, step)  # type: ignore[method-assign]
            self._lockstep = lockstep
            return lockstep

        self.loop = WorkerLoop(lambda: guarded(0, lead))
        self.exporting = Exporting(self.loop, chunk_tokens=32)

    def answer(self, call: Call) -> CallFinished:
        """Runs the call, and all that follows from it."""
        found: list[CallEvent] = []
        self.loop.submit([call])
        for report in self.loop.reports():
            found += [event for event in report.events if event.call_id == call.call_id]
            if found and isinstance(found[-1], CallFinished):
                self.settle()
                self.specs[found[-1].encoding.encoding_id] = found[-1].encoding
                return found[-1]
        raise AssertionError(f"the reports ended: {self.problems}")

    def settle(self) -> None:
        """Until the engines have nothing to do."""
        at_rest = 0
        pause = threading.Event()
        for _ in range(int(WAIT_S / 0.005)):
            at_rest = 0 if self._lockstep.has_work() or self.loop._inbox else at_rest + 1
            if at_rest == 3:
                return
            pause.wait(0.005)
        raise AssertionError(f"the engine does not come to rest: {self.problems}")

    def check(self) -> None:
        """All shards are sound and have the same."""
        assert not self.problems
        seen = []
        for engine in self.engines:
            stores = [engine.store, engine.tiers.host]
            for store in stores:
                store.check_integrity()
            entries = [
                [(e.key, e.num_tokens, tuple(e.pages), e.pins, e.last_use) for e in store._entries.values()]
                for store in stores
            ]
            disk = engine.tiers.disk
            if disk is not None:
                assert disk.used_bytes == engine.tiers.disk_bytes_used <= disk.max_bytes
                assert {key: what for key, what in engine.tiers._spills._held.items()} == dict(disk.held())
            seen.append((entries, None if disk is None else disk.held(), engine.exports.num_open))
        assert all(each == seen[0] for each in seen), "the shards differ"

    def close(self) -> None:
        self.loop.stop()
        if not self.problems:
            self._lockstep.close()
        for thread in self._threads:
            thread.join(10)
        for engine in self.engines:
            if engine is not None:
                engine.close()


class ShardPeer:
    """PeerPort of one shard of another worker, without anything between."""

    def __init__(self, worker: ShardedWorker, rank: int) -> None:
        self.worker, self.rank = worker, rank
        self.reach = worker.loop.info.reach

    def renew(self, lease_id: int) -> Refused | None:
        return self.worker.exporting.renew(lease_id)

    def open(self, encoding_id: str, transport: Transport = "object_store") -> Granted | Refused:
        assert transport == "object_store"
        return self.worker.exporting.open(encoding_id, self.worker.loop.info.epoch)

    def ask(self, lease_id: int, begin: int, end: int) -> Callable[[], Chunk | Refused]:
        if self.rank == 0:
            return lambda: self.worker.exporting.read(lease_id, begin, end)
        self.worker.exporting.renew(lease_id)
        return lambda: self.worker.lendings[self.rank].read(lease_id, begin, end)

    def close(self, lease_id: int) -> None:
        self.worker.exporting.close(lease_id)
