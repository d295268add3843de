"""What the control plane asks of the data plane, whatever carries it. `remote` implements these over Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from laban.actors.calls import Call, WorkerInfo, WorkerReport
from laban.actors.directory import DirectoryUpdate
from laban.kvstore.directory import Holdings


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

    def reports(self) -> AsyncGenerator[WorkerReport, None]:
        """Every report of the worker, in order, for all its calls. One reader at a time: a new one displaces the old.

        Raises WorkerLost when the worker is gone; ends only after `close`.
        """
        ...

    async def snapshot(self) -> Holdings:
        """What the store holds after the last report that was delivered. Raises WorkerLost."""
        ...

    async def close(self) -> None:
        """End the worker and free what it holds. Idempotent, raises nothing."""


class WorkerSupervisor(Protocol):
    """Makes workers, and makes them anew."""

    async def start(self, worker_id: str) -> WorkerPort:
        """A new life of the worker, ready to serve, under a new epoch. Raises WorkerLost if it does not come up."""
        ...


class DirectoryPort(Protocol):
    """The shared directory. All methods raise ConnectionError while it is down; it comes back empty."""

    async def apply(self, updates: Sequence[DirectoryUpdate]) -> tuple[str, ...]:
        """Returns the workers of which a snapshot is needed."""
        ...

    async def replace(self, holdings: Sequence[Holdings]) -> None: ...

    async def drop(self, worker_id: str, epoch: str) -> None: ...

    async def snapshot(self) -> list[Holdings]: ...


class HostedService(Protocol):
    """What a host process runs: made by an importable factory, so that hosts need not know it."""

    async def start(self) -> str:
        """Begin to serve; returns the address."""
        ...

    async def stop(self) -> None: ...
