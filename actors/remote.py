"""Ray's part: the processes of workers, the directory and hosts, and the ports that reach them.

The one file that says `.remote(`. A call through Ray costs 1 to 3 ms, so nothing here is called for each
token or each call: calls go out in batches, and one stream for each worker carries everything back.
Importing this module imports Ray and no torch; the engine is imported in its worker's process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from laban.actors.calls import Call, WorkerInfo, WorkerReport
from laban.actors.directory import DirectoryService, DirectoryUpdate
from laban.actors.errors import LabanError, Unavailable
from laban.actors.ports import WorkerLost
from laban.actors.processes import CONCURRENCY_GROUPS, HostProcess, WorkerPlan, WorkerProcess
from laban.kvstore.directory import Holdings

logger = logging.getLogger(__name__)

__all__ = [
    "RemoteDirectory",
    "RemoteHost",
    "RemoteSupervisor",
    "RemoteWorker",
    "WorkerPlan",
    "spawn_directory",
    "spawn_worker",
]


def spawn_worker(plan: WorkerPlan) -> Any:
    """Start a worker's process and the loading of its model. Returns a handle, at once, that can be pickled."""
    remote: Any = ray.remote  # its types know tasks' options only
    actor = remote(concurrency_groups=CONCURRENCY_GROUPS)(WorkerProcess).options(
        num_cpus=plan.num_cpus,
        num_gpus=plan.num_gpus,
        max_restarts=0,  # a new life is a new actor, with a new epoch: the supervisor's decision
        runtime_env={"env_vars": dict(plan.env)} if plan.env else None,
    )
    handle: Any = actor.remote(plan)
    handle.load.remote()
    return handle


class RemoteWorker:
    """Implements WorkerPort over an actor handle."""

    def __init__(self, handle: Any, info: WorkerInfo) -> None:
        self._handle = handle
        self._info = info
        self._closed = False
        self._sends: set[asyncio.Task[None]] = set()

    @classmethod
    async def attach(cls, handle: Any, worker_id: str) -> RemoteWorker:
        """Wait for the worker to be loaded. Raises the LabanError that its engine raised, or WorkerLost.

        The process is ended if this is cancelled or fails.
        """
        try:
            info = await handle.load.remote()
        except RayTaskError as error:
            _kill(handle)
            cause = error.cause
            if isinstance(cause, LabanError):
                raise cause from None
            raise WorkerLost(f"worker {worker_id} could not load its model: {cause!r}") from error
        except RayError as error:
            _kill(handle)
            raise WorkerLost(f"worker {worker_id} died while it loaded: {_first_line(error)}") from None
        except asyncio.CancelledError:
            _kill(handle)
            raise
        return cls(handle, info)

    @property
    def info(self) -> WorkerInfo:
        return self._info

    def submit(self, calls: Sequence[Call]) -> None:
        self._send(self._handle.submit, tuple(calls))

    def abort(self, call_ids: Sequence[str]) -> None:
        self._send(self._handle.abort, tuple(call_ids))

    async def reports(self) -> AsyncGenerator[WorkerReport, None]:
        try:
            async for reference in self._handle.reports.remote():
                yield await reference
        except RayTaskError as error:
            raise WorkerLost(f"its engine failed: {error.cause!r}") from None
        except RayError as error:
            if not self._closed:
                raise WorkerLost(_first_line(error)) from None

    async def snapshot(self) -> Holdings:
        if self._closed:  # a killed process may still answer for a moment
            raise WorkerLost(f"worker {self._info.worker_id} is closed")
        try:
            holdings: Holdings = await self._handle.snapshot.remote()
        except RayError as error:
            raise WorkerLost(_first_line(error)) from None
        return holdings

    async def close(self) -> None:
        self._closed = True
        _kill(self._handle)

    def _send(self, method: Any, batch: tuple[object, ...]) -> None:
        async def send() -> None:
            try:
                await method.remote(batch)
            except RayActorError:
                logger.info("worker %s died before a batch reached it", self._info.worker_id)
            except Exception:
                # The worker lives but did not take the batch: its calls would wait for ever. End it, so that
                # the reader of its reports hears, and they run again.
                logger.exception("worker %s did not take a batch", self._info.worker_id)
                _kill(self._handle)

        # Tasks begin in the order they are made, so batches leave in order.
        task = asyncio.get_running_loop().create_task(send())
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)


class RemoteSupervisor:
    """Implements WorkerSupervisor: workers by their plans."""

    def __init__(self, plans: Sequence[WorkerPlan], handles: Mapping[str, Any] | None = None) -> None:
        """`handles` are of workers spawned already, by id; each is used for the first start."""
        self._plans = {plan.worker_id: plan for plan in plans}
        self._handles = dict(handles or {})

    async def start(self, worker_id: str) -> RemoteWorker:
        handle = self._handles.pop(worker_id, None) or spawn_worker(self._plans[worker_id])
        return await RemoteWorker.attach(handle, worker_id)

    async def start_all(self, on_up: Callable[[WorkerInfo], None] = lambda info: None) -> list[RemoteWorker]:
        """All workers, in the order of their plans, started side by side. Fails as a whole, with the first error."""

        async def start(worker_id: str) -> RemoteWorker:
            worker = await self.start(worker_id)
            on_up(worker.info)
            return worker

        starts = [asyncio.ensure_future(start(worker_id)) for worker_id in self._plans]
        try:
            return list(await asyncio.gather(*starts))
        except BaseException:
            for started in starts:
                started.cancel()
            for outcome in await asyncio.gather(*starts, return_exceptions=True):
                if isinstance(outcome, RemoteWorker):
                    await outcome.close()
            raise


def spawn_directory() -> Any:
    """Start the directory's process. Ray brings it back, empty, whenever it dies. The handle can be pickled."""
    return ray.remote(DirectoryService).options(num_cpus=0, max_restarts=-1, max_task_retries=0).remote()


class RemoteDirectory:
    """Implements DirectoryPort over an actor handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def apply(self, updates: Sequence[DirectoryUpdate]) -> tuple[str, ...]:
        return tuple(await self._ask(self._handle.apply, tuple(updates)))

    async def replace(self, holdings: Sequence[Holdings]) -> None:
        await self._ask(self._handle.replace, tuple(holdings))

    async def drop(self, worker_id: str, epoch: str) -> None:
        await self._ask(self._handle.drop, worker_id, epoch)

    async def snapshot(self) -> list[Holdings]:
        return list(await self._ask(self._handle.snapshot))

    async def _ask(self, method: Any, *arguments: object) -> Any:
        try:
            return await method.remote(*arguments)
        except RayError as error:
            raise ConnectionError(_first_line(error)) from None


class RemoteHost:
    """A service in a process of its own; used from the driver, outside of any event loop."""

    def __init__(self, factory: str, *arguments: object, num_cpus: float = 0.0, env: Mapping[str, str] | None = None):
        """`factory` is "module:name" of a callable that takes `arguments` and makes a HostedService."""
        actor: Any = ray.remote(HostProcess).options(
            num_cpus=num_cpus, max_restarts=0, runtime_env={"env_vars": dict(env)} if env else None
        )
        self._handle: Any = actor.remote(factory, arguments)
        self._starting = self._handle.start.remote()

    def wait(self, timeout_s: float) -> str | None:
        """The service's address once it serves; None if it does not yet after `timeout_s`.

        Raises the LabanError that it raised, or Unavailable if the process died.
        """
        try:
            address: str = ray.get(self._starting, timeout=timeout_s)
        except GetTimeoutError:
            return None
        except RayTaskError as error:
            if isinstance(error.cause, LabanError):
                raise error.cause from None
            raise Unavailable(f"the service did not start: {error.cause!r}") from error
        except RayError as error:
            raise Unavailable(f"the service's process died: {_first_line(error)}") from None
        return address

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the service, then its process, the latter after `timeout_s` in any case. Idempotent, raises nothing."""
        try:
            ray.get(self._handle.stop.remote(), timeout=timeout_s)
        except (RayError, TimeoutError) as error:
            logger.info("the service did not stop by itself: %s", _first_line(error))
        _kill(self._handle)


def _kill(handle: Any) -> None:
    try:
        ray.kill(handle, no_restart=True)
    except (RayError, ValueError) as error:
        logger.info("an actor was gone already: %s", _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
