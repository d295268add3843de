"""What the control plane asks of the data plane, whatever carries it. `remote` implements these over Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from laban.actors.calls import Advice, Call, WorkerInfo, WorkerReport
from laban.kvstore.directory_messages import Answer, Batch, EncodingRecord, Epoch, Interest, News, ShardStatus, Watch
from laban.kvstore.encodings import EncodingId


class WorkerLost(Exception):
    """The worker is gone, and with it every call it had not finished. The message says how that was noticed."""


class WorkerPort(Protocol):
    """One life of a worker (an epoch). After `reports` raised WorkerLost it is of no more use."""

    @property
    def info(self) -> WorkerInfo: ...

    def submit(self, calls: Sequence[Call]) -> None:
        """Hand over calls in one batch. Does not block, raises nothing: losses show in `reports`."""

    def abort(self, call_ids: Sequence[str]) -> None:
        """Stop calls. Does not block, raises nothing; unknown ids are ignored. An aborted call may still report."""

    def advise(self, advice: Advice) -> None:
        """Say what is to come. Does not block, raises nothing; it may be lost."""

    def reports(self) -> AsyncGenerator[WorkerReport, None]:
        """Every report of the worker, in order, for all its calls. One reader at a time: a new one displaces the old.
        A worker without news says so every few seconds (`worker.BEAT_S`).

        Raises WorkerLost when the worker is gone; ends only after `close`.
        """
        ...

    async def close(self) -> None:
        """End the worker and free what it holds. Idempotent, raises nothing."""


class WorkerSupervisor(Protocol):
    """Makes workers, and makes them anew."""

    async def start(self, worker_id: str, model: str = "") -> WorkerPort:
        """A new life of the worker, ready to serve, under a new epoch. One that there never was serves that `model`.

        Raises WorkerLost if it does not come up.
        """
        ...


class DirectoryPort(Protocol):
    """The directory, in shards (`placements.shard_of`). All methods raise ConnectionError while a shard that they need
    is down; it comes back empty."""

    @property
    def num_shards(self) -> int: ...

    async def register(self, worker_id: str) -> Epoch:
        """Begin a new life of the worker, under the epoch returned: later, and greater, than those of its others."""
        ...

    async def publish(self, shard: int, batch: Batch) -> Answer: ...

    async def drop(self, worker_id: str, epoch: Epoch) -> None:
        """The worker died: its entries vanish from every shard that is up."""

    async def watch(self, shard: int, watch: Watch) -> bool:
        """False if a message before it is missing: one that is `anew` must come next."""
        ...

    async def poll(self, shard: int, subscriber: str, taken: int, wait_s: float) -> News | None:
        """Waits up to `wait_s` for news after number `taken`. One poll at a time: a later one ends it.

        None for a subscriber that the shard does not know: it has to watch anew.
        """
        ...

    async def tell(self, shard: int, interest: Interest) -> None: ...

    async def find(self, encoding_ids: Sequence[EncodingId]) -> list[EncodingRecord]:
        """In the same order. For people who ask: a decision never does."""
        ...

    async def status(self) -> list[ShardStatus]:
        """Of every shard, in order."""
        ...


class HostedService(Protocol):
    """What a host process runs: made by an importable factory, so that hosts need not know it."""

    async def start(self) -> str:
        """Begin to serve; returns the address."""
        ...

    async def stop(self) -> None: ...
