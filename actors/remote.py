"""Ray's part: the processes of workers, of the directory's shards and of hosts, and the ports that reach them.

The one file that says `.remote(`. A call through Ray costs 1 to 3 ms, so nothing here is called for each
token or each call: calls go out in batches, and one stream for each worker carries everything back. Where both
processes are on one machine these go over a line of their own (`line`), past Ray.
Importing this module imports Ray and no torch; the engine is imported in its worker's process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from laban.actors.calls import Advice, Call, WorkerInfo, WorkerReport
from laban.actors.errors import Exhausted, FailedPrecondition, LabanError, Unavailable
from laban.actors.line import Line, LineFailure, Order
from laban.actors.logs import LogSettings
from laban.actors.ports import WorkerLost
from laban.actors.processes import (
    SHARD_CONCURRENCY_GROUPS,
    DirectoryProcess,
    HostProcess,
    ShardProcess,
    WorkerPlan,
    WorkerProcess,
    concurrency_groups,
)
from laban.actors.reach import Reach, Transport
from laban.actors.transfers import Chunk, Granted, PeerLost, PeerNews, Refused
from laban.kvstore.directory_messages import Answer, Batch, EncodingRecord, Epoch, Interest, News, ShardStatus, Watch
from laban.kvstore.encodings import EncodingId
from laban.kvstore.placements import shard_of

logger = logging.getLogger(__name__)

RESOURCE_PART = 0.001  # of a node's resource that only says which workers run there
MEET_TIMEOUT_S = 5.0
PEER_TIMEOUT_S = 8.0
"""For the answer of another worker: more than it waits for its engine, less than its leases last."""

__all__ = [
    "DirectoryHandle",
    "LoadingWatch",
    "RemoteDirectory",
    "RemoteHost",
    "RemotePeers",
    "RemoteSupervisor",
    "RemoteWorker",
    "WorkerHandle",
    "WorkerPlan",
    "spawn_directory",
    "spawn_worker",
]


@dataclass(frozen=True)
class WorkerHandle:
    """The processes of one life of a worker: the one that is talked to, and those of its other shards."""

    first: Any
    others: tuple[Any, ...] = ()
    endings: tuple[Any, ...] = ()  # of each other shard: a reference that fails or is ready once it has ended
    placement: PlacementGroup | None = None

    def end(self) -> None:
        """End all of them, soon. Idempotent, raises nothing."""
        for process in (self.first, *self.others):
            kill_actor(process)
        if self.placement is not None:
            remove_placement_group(self.placement)


def spawn_worker(plan: WorkerPlan) -> WorkerHandle:
    """Start a worker's processes and the loading of its model. Returns a handle, at once, that can be pickled."""
    place = {} if plan.resource is None else {plan.resource: RESOURCE_PART}
    options: dict[str, Any] = {
        "num_cpus": plan.num_cpus,
        "num_gpus": plan.num_gpus,
        "resources": place,
        "max_restarts": 0,  # a new life is a new actor, with a new epoch: the supervisor's decision
        "runtime_env": {"env_vars": dict(plan.env)} if plan.env else None,
    }
    remote: Any = ray.remote  # its types know tasks' options only
    worker = remote(concurrency_groups=concurrency_groups(plan.num_shards))(WorkerProcess)
    if plan.num_shards == 1:
        # Over the nodes, so that the loss of one costs as few workers as can be.
        alone: Any = worker.options(**options, scheduling_strategy="SPREAD").remote(plan)
        alone.load.remote()
        return WorkerHandle(alone)
    # On as few nodes as possible, and all at once: half of the shards would wait for the other half.
    bundle = {"CPU": plan.num_cpus, "GPU": plan.num_gpus, **place}
    placement = placement_group([bundle] * plan.num_shards, strategy="PACK")
    places = [
        {"scheduling_strategy": PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=rank)}
        for rank in range(plan.num_shards)
    ]
    first: Any = worker.options(**options, **places[0]).remote(plan)
    rendezvous = first.rendezvous.remote()
    first.load.remote()
    shard = remote(concurrency_groups=SHARD_CONCURRENCY_GROUPS)(ShardProcess)
    others: list[Any] = [
        shard.options(**options, **places[rank]).remote(plan, rank) for rank in range(1, plan.num_shards)
    ]
    endings = tuple(other.run.remote(rendezvous) for other in others)
    return WorkerHandle(first, tuple(others), endings, placement)


def lacking_for(plan: WorkerPlan) -> str:
    """What Ray has too little of, on all nodes together, for a worker like this one; "" if it has room."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    needed = {"CPU": plan.num_cpus * plan.num_shards, "GPU": plan.num_gpus * plan.num_shards}
    if plan.resource is not None:
        needed[plan.resource] = RESOURCE_PART * plan.num_shards
    return " and ".join(
        f"{free.get(name, 0.0):g} {name}s are free, expected {number:g}"
        for name, number in needed.items()
        if free.get(name, 0.0) < number
    )


class LoadingWatch:
    """How far a worker is with loading its model; used from the driver, outside of any event loop."""

    def __init__(self, handle: WorkerHandle) -> None:
        self._handle = handle
        self._asked: Any = None
        self._last: tuple[str, float | None] | None = None

    def poll(self) -> tuple[str, float | None] | None:
        """What it does and the share of that done, by its last answer; asks again. Does not block, raises nothing."""
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            try:
                self._last = ray.get(self._asked)
            except RayError as error:  # whoever waits for the worker hears of it, too
                logger.info("a worker does not say how far it is: %s", _first_line(error))
            self._asked = None
        if self._asked is None:
            self._asked = self._handle.first.progress.remote()
        return self._last


class RemoteWorker:
    """Implements WorkerPort over an actor handle, or over a line where the worker is on this machine."""

    def __init__(
        self,
        handle: WorkerHandle,
        info: WorkerInfo,
        endings: Sequence[asyncio.Future[None]] = (),
        line: Line | None = None,
    ) -> None:
        """`endings` are done when a shard other than the first has ended; then the others are ended too."""
        self._handle = handle
        self._line = line
        self._info = info
        self._closed = False
        self._lost_shard: str | None = None
        self._endings = endings
        for ending in endings:
            ending.add_done_callback(self._shard_ended)
        self._sends: set[asyncio.Task[None]] = set()
        self.on_lost: Callable[[], None] = lambda: None

    @classmethod
    async def attach(cls, handle: WorkerHandle, worker_id: str) -> RemoteWorker:
        """Wait for the worker to be loaded. Raises the LabanError that its engine raised, or WorkerLost.

        Its processes are ended if this is cancelled or fails.
        """
        loading: asyncio.Future[WorkerInfo] = asyncio.ensure_future(handle.first.load.remote())
        endings: list[asyncio.Future[None]] = [asyncio.ensure_future(ending) for ending in handle.endings]
        waiting: list[asyncio.Future[Any]] = [loading, *endings]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for ending in endings:
                if ending.done():
                    ending.result()
            info = await loading
            address: str | None = await handle.first.open_line.remote()
            line = None if address is None else await Line.connect(address)
            return cls(handle, info, endings, line)
        except BaseException as error:
            handle.end()
            for future in waiting:
                future.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            if isinstance(error, RayTaskError):
                if isinstance(error.cause, LabanError):
                    raise error.cause from None
                raise WorkerLost(f"worker {worker_id} could not load its model: {error.cause!r}") from error
            if isinstance(error, RayError):
                raise WorkerLost(f"worker {worker_id} died while it loaded: {_first_line(error)}") from None
            raise

    @property
    def info(self) -> WorkerInfo:
        return self._info

    def submit(self, calls: Sequence[Call]) -> None:
        self._tell("submit", tuple(calls))

    def abort(self, call_ids: Sequence[str]) -> None:
        self._tell("abort", tuple(call_ids))

    def advise(self, advice: Advice) -> None:
        self._tell("advise", advice)

    async def meet(self, news: PeerNews) -> None:
        """Say which other workers there are, and wait a while until all shards know. Raises nothing: a shard that does
        not listen is ending, or encodes what it would have fetched."""
        await asyncio.wait(self.tell(news), timeout=MEET_TIMEOUT_S)

    def tell(self, news: PeerNews) -> list[asyncio.Task[None]]:
        """As `meet`, without waiting."""
        told = [self._send(self._handle.first.meet, news)]
        return told + [self._keep(asyncio.create_task(self._tell_shard(shard, news))) for shard in self._handle.others]

    async def _tell_shard(self, shard: Any, news: PeerNews) -> None:
        try:
            await shard.meet.remote(news)
        except RayError as error:
            logger.info("a shard of worker %s did not hear of others: %s", self._info.worker_id, _first_line(error))

    @property
    def as_peer(self) -> tuple[str, Epoch, Reach, tuple[Any, ...]]:
        """As PeerNews names it."""
        return self._info.worker_id, self._info.epoch, self._info.reach, (self._handle.first, *self._handle.others)

    @property
    def has_line(self) -> bool:
        return self._line is not None

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def reports(self) -> AsyncGenerator[WorkerReport, None]:
        reports = self._reports_of_ray() if self._line is None else self._reports_of_line(self._line)
        async with aclosing(reports):
            async for report in reports:
                yield report

    async def _reports_of_line(self, line: Line) -> AsyncGenerator[WorkerReport, None]:
        async with aclosing(line.reports()) as reports:
            async for report in reports:
                if isinstance(report, LineFailure):
                    raise self._lost(f"its engine failed: {report.reason}")
                yield report
        if not (line.is_open or self._closed):
            raise self._lost(self._lost_shard or "its process ended")

    async def _reports_of_ray(self) -> AsyncGenerator[WorkerReport, None]:
        try:
            async for reference in self._handle.first.reports.remote():
                yield await reference
        except RayTaskError as error:
            raise self._lost(f"its engine failed: {error.cause!r}") from None
        except RayError as error:
            if not self._closed:
                raise self._lost(self._lost_shard or _first_line(error)) from None

    def _lost(self, reason: str) -> WorkerLost:
        self._handle.end()
        self.on_lost()
        return WorkerLost(reason)

    async def close(self) -> None:
        self._closed = True
        for ending in self._endings:
            ending.cancel()
        if self._line is not None:
            self._line.close()
        self._handle.end()

    def _shard_ended(self, ending: asyncio.Future[None]) -> None:
        error = None if ending.cancelled() else ending.exception()
        if self._closed or self._lost_shard:
            return
        rank = 1 + self._endings.index(ending)
        self._lost_shard = f"shard {rank} ended: {'of itself' if error is None else _first_line(error)}"
        self._handle.end()  # so the reports end, too

    def _tell(self, order: Order, batch: object) -> None:
        if self._line is None:
            self._send(getattr(self._handle.first, order), batch)
            return
        try:
            self._line.send(order, batch)
        except Exception:
            self._not_taken()

    def _not_taken(self) -> None:
        """The worker lives but did not take a batch: its calls would wait for ever. End it, so that the reader of its
        reports hears, and they run again."""
        logger.exception("worker %s did not take a batch", self._info.worker_id)
        self._handle.end()

    def _send(self, method: Any, batch: object) -> asyncio.Task[None]:
        async def send() -> None:
            try:
                await method.remote(batch)
            except RayActorError:
                logger.info("worker %s died before a batch reached it", self._info.worker_id)
            except Exception:
                self._not_taken()

        # Tasks begin in the order they are made, so batches leave in order.
        return self._keep(asyncio.get_running_loop().create_task(send()))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Until it is done."""
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)
        return task


class RemoteSupervisor:
    """Implements WorkerSupervisor: workers by their plans."""

    def __init__(
        self,
        plans: Sequence[WorkerPlan],
        handles: Mapping[str, WorkerHandle] | None = None,
        another: Callable[[str, str, int], WorkerPlan] | None = None,
    ) -> None:
        """`handles` are of workers spawned already, by id; each is used for the first start. `another` plans workers
        that are not among `plans`, by id, model and how many there are then; None: there are no others."""
        self._plans = {plan.worker_id: plan for plan in plans}
        self._handles = dict(handles or {})
        self._another = another
        self._up: dict[str, RemoteWorker] = {}

    async def start(self, worker_id: str, model: str = "") -> RemoteWorker:
        """Raises Exhausted for a worker that is not among the plans and that Ray has no room for."""
        plan = self._plans.get(worker_id)
        if plan is None or (model and plan.model and plan.model != model):  # a name may be another model's now
            plan = await self._plan_another(worker_id, model)
        handle = self._handles.pop(worker_id, None) or spawn_worker(plan)
        worker = await RemoteWorker.attach(handle, worker_id)
        worker.on_lost = partial(self._lost, worker)
        try:
            await self._introduce(worker)
        except BaseException:
            await worker.close()
            raise
        return worker

    async def _introduce(self, newcomer: RemoteWorker) -> None:
        """To the others, so that they can fetch encodings from each other, before any call says that they should."""
        left = tuple(worker_id for worker_id, worker in self._up.items() if worker.is_closed)
        for worker_id in left:
            del self._up[worker_id]
        others = [worker for worker_id, worker in self._up.items() if worker_id != newcomer.info.worker_id]
        self._up[newcomer.info.worker_id] = newcomer
        meetings = [other.meet(PeerNews((newcomer.as_peer,), left)) for other in others]
        await asyncio.gather(*meetings, newcomer.meet(PeerNews(tuple(other.as_peer for other in others))))

    def _lost(self, worker: RemoteWorker) -> None:
        """Say so to the others: who fetches from it now, or is about to, would wait for an answer."""
        worker_id = worker.info.worker_id
        if self._up.get(worker_id) is worker:
            del self._up[worker_id]
            for other in self._up.values():
                other.tell(PeerNews(left=(worker_id,)))

    async def _plan_another(self, worker_id: str, model: str) -> WorkerPlan:
        if self._another is None:
            raise FailedPrecondition("is none of the workers planned", field="worker_id", value=worker_id)
        plan = self._another(worker_id, model, len(self._plans) + 1)
        # Ray would let it wait until there is room, without a word.
        lacking = await asyncio.to_thread(lacking_for, plan)
        if lacking:
            more = "" if "CPU" not in lacking else "; ray.num_cpus says how many a Ray has that `laban serve` starts"
            raise Exhausted(f"Ray has no room for another worker: {lacking}{more}")
        self._plans[worker_id] = plan
        return plan

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


class RemotePeers:
    """The other workers that a shard of a worker may fetch from, in its process: those that have as many shards, so
    that each has what its like elsewhere needs."""

    def __init__(self, rank: int, num_shards: int) -> None:
        self._rank, self._num_shards = rank, num_shards
        self._peers: dict[str, RemotePeer] = {}

    def take(self, news: PeerNews) -> None:
        for worker_id in news.left:
            self._peers.pop(worker_id, None)
        for worker_id, epoch, reach, handles in news.joined:
            self._peers.pop(worker_id, None)
            if len(handles) == self._num_shards:
                self._peers[worker_id] = RemotePeer(handles[0], handles[self._rank], epoch, reach)

    def find(self, worker_id: str, epoch: Epoch) -> RemotePeer | None:
        peer = self._peers.get(worker_id)
        return peer if peer is not None and peer.epoch == epoch else None


class RemotePeer:
    """Implements PeerPort over the actor handles of a worker: chunks go through Ray's object store. For threads."""

    def __init__(self, first: Any, holder: Any, epoch: Epoch, reach: Reach) -> None:
        """The worker's first shard, which grants leases, and the one whose part is read; they may be the same."""
        self._first, self._holder, self.epoch, self.reach = first, holder, epoch, reach

    def open(self, encoding_id: EncodingId, transport: Transport) -> Granted | Refused:
        granted: Granted | Refused = _take(self._first.open_export.remote(encoding_id, self.epoch, transport))
        return granted

    def renew(self, lease_id: int) -> Refused | None:
        refused: Refused | None = _take(self._first.renew_export.remote(lease_id))
        return refused

    def ask(self, lease_id: int, begin: int, end: int) -> Callable[[], Chunk | Refused]:
        if self._holder is not self._first:
            self._first.renew_export.remote(lease_id)
        return partial(_take, self._holder.read_export.remote(lease_id, begin, end))

    def close(self, lease_id: int) -> None:
        self._first.close_export.remote(lease_id)


def _take(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=PEER_TIMEOUT_S)
    except RayTaskError as error:
        raise PeerLost(f"it failed: {error.cause!r}") from None
    except RayError as error:
        raise PeerLost(_first_line(error)) from None


@dataclass(frozen=True)
class DirectoryHandle:
    """The processes of the directory's shards. Can be pickled."""

    shards: tuple[Any, ...]

    def end(self) -> None:
        """Idempotent, raises nothing."""
        for shard in self.shards:
            kill_actor(shard)


def spawn_directory(num_shards: int = 1, log: LogSettings | None = None) -> DirectoryHandle:
    """Start the directory's processes. Ray brings each back, empty, whenever it dies."""
    shard: Any = ray.remote(DirectoryProcess).options(num_cpus=0, max_restarts=-1, max_task_retries=0)
    return DirectoryHandle(tuple(shard.remote(log or LogSettings()) for _ in range(num_shards)))


class RemoteDirectory:
    """Implements DirectoryPort over actor handles."""

    def __init__(self, handle: DirectoryHandle) -> None:
        self._shards = handle.shards

    @property
    def num_shards(self) -> int:
        return len(self._shards)

    async def register(self, worker_id: str) -> Epoch:
        epoch: Epoch = await _ask(self._shards[0].register, worker_id)
        return epoch

    async def publish(self, shard: int, batch: Batch) -> Answer:
        answer: Answer = await _ask(self._shards[shard].publish, batch)
        return answer

    async def drop(self, worker_id: str, epoch: Epoch) -> None:
        drops = [_ask(shard.drop, worker_id, epoch) for shard in self._shards]
        for outcome in await asyncio.gather(*drops, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def watch(self, shard: int, watch: Watch) -> bool:
        taken: bool = await _ask(self._shards[shard].watch, watch)
        return taken

    async def poll(self, shard: int, subscriber: str, taken: int, wait_s: float) -> News | None:
        news: News | None = await _ask(self._shards[shard].poll, subscriber, taken, wait_s)
        return news

    async def tell(self, shard: int, interest: Interest) -> None:
        await _ask(self._shards[shard].tell, interest)

    async def find(self, encoding_ids: Sequence[EncodingId]) -> list[EncodingRecord]:
        homes = [shard_of(encoding_id, self.num_shards) for encoding_id in encoding_ids]
        parts = {home: [each for each, at in zip(encoding_ids, homes, strict=True) if at == home] for home in {*homes}}
        found = await asyncio.gather(*(_ask(self._shards[home].find, part) for home, part in parts.items()))
        records = {record.encoding_id: record for part in found for record in part}
        return [records[encoding_id] for encoding_id in encoding_ids]

    async def status(self) -> list[ShardStatus]:
        return list(await asyncio.gather(*(_ask(shard.status) for shard in self._shards)))


async def _ask(method: Any, *arguments: object) -> Any:
    try:
        return await method.remote(*arguments)
    except RayError as error:
        raise ConnectionError(_first_line(error)) from None


class RemoteHost:
    """A service in a process of its own, on the driver's node; used from the driver, outside of any event loop."""

    def __init__(self, factory: str, *arguments: object, num_cpus: float = 0.0, env: Mapping[str, str] | None = None):
        """`factory` is "module:name" of a callable that takes `arguments` and makes a HostedService."""
        # Whoever started the service expects its port, and looks for its files, on this machine.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(HostProcess).options(
            num_cpus=num_cpus,
            max_restarts=0,
            scheduling_strategy=here,
            runtime_env={"env_vars": dict(env)} if env else None,
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

    def answers(self, timeout_s: float) -> bool:
        """Whether the process answers in time. Raises Unavailable if it is gone."""
        try:
            ray.get(self._handle.answer.remote(), timeout=timeout_s)
        except TimeoutError:
            return False
        except RayError as error:
            raise Unavailable(f"the service's process died: {_first_line(error)}") from None
        return True

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the service, then its process, the latter after `timeout_s` in any case. Idempotent, raises nothing."""
        try:
            ray.get(self._handle.stop.remote(), timeout=timeout_s)
        except (RayError, TimeoutError) as error:
            logger.info("the service did not stop by itself: %s", _first_line(error))
        kill_actor(self._handle)


def kill_actor(handle: ActorHandle[Any]) -> None:
    """Ends its process now. Raises nothing."""
    try:
        ray.kill(handle, no_restart=True)
    except (RayError, ValueError) as error:
        logger.info("an actor was gone already: %s", _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
