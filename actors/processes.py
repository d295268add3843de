"""What runs in the processes that `remote` makes: a worker around its engine, a host around its service."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import ray

from laban.actors.calls import Advice, Call, WorkerInfo, WorkerReport
from laban.actors.directory import DirectoryService
from laban.actors.errors import FailedPrecondition, LabanError, Unavailable, cause_of
from laban.actors.exporting import MAX_LEASES, Exporting
from laban.actors.lending import Lending
from laban.actors.line import REPORTS_IN_FLIGHT, LineServer
from laban.actors.logs import LogSettings, set_up_logs
from laban.actors.models import Progress, say_nothing
from laban.actors.ports import HostedService
from laban.actors.publishing import Publishing
from laban.actors.reach import Transport
from laban.actors.shards import ShardPlace
from laban.actors.transfers import Chunk, FindPeer, Granted, PeerNews, Refused
from laban.actors.worker import WorkerLoop
from laban.kvstore.directory_messages import Epoch
from laban.kvstore.encodings import EncodingId

if TYPE_CHECKING:
    from laban.actors.remote import RemotePeers

logger = logging.getLogger(__name__)

CONTROL, CHUNKS = {"control": 1}, {"chunks": 2}
SHARD_CONCURRENCY_GROUPS = {**CONTROL, **CHUNKS}


def concurrency_groups(num_shards: int) -> dict[str, int]:
    """Threads of a worker's process. One for control, so an abort never overtakes the call it means; two for readers
    of the reports, so that a new one can displace the old. Leases may wait for the engine, and each shard of another
    worker asks for its own; chunks do not wait."""
    return {**CONTROL, "stream": 2, "leases": 2 * num_shards, **CHUNKS}


DEFAULT_ENGINE = "laban.actors.engine.load:load_engine"
SWITCH_S = 0.0005
"""How long a thread of ours may keep the interpreter from another one that waits for it; Python's own 5 ms are more
than all else that a token goes through. Ray's threads are among those that wait."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How to make a worker, now and after every loss.

    `engine_factory` is "module:name" of a callable taking (model_folder, config, worker_id), the ShardGroup where
    there are several shards, and `progress`, to say how far it is. Ray limits a process's threads to its `num_cpus`
    (OMP_NUM_THREADS) unless `env` or the engine's own setting says otherwise. `model` is what others call the model;
    "": by its folder.
    """

    worker_id: str
    model_folder: str
    config: Any  # the engine's
    engine_factory: str = DEFAULT_ENGINE
    num_shards: int = 1
    num_cpus: float = 1.0  # of each shard; so are the GPUs
    num_gpus: float = 0.0
    env: Mapping[str, str] = field(default_factory=dict)
    directory: Any = None  # the handle of `spawn_directory`; None: the worker tells nobody what it holds
    log: LogSettings = field(default_factory=LogSettings)
    model: str = ""
    resource: str | None = None  # of Ray's nodes, that it needs a little of


def import_path(path: str) -> Callable[..., Any]:
    """What "module:name" names. Raises FailedPrecondition if there is no such thing."""
    module, _, name = path.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise FailedPrecondition(
            f"cannot be imported ({error}), expected module:name", field="factory", value=path
        ) from None
    return found


def lead_shards(plan: WorkerPlan, rendezvous: str, progress: Progress) -> Any:
    """The engine of the first shard, with which the others step. Waits for them."""
    from laban.actors.engine.lockstep import Lockstep

    engine, group = _load_shard(plan, 0, rendezvous, progress)
    return Lockstep(engine, group)


def follow_shards(plan: WorkerPlan, rank: int, rendezvous: str, find_peer: FindPeer, lending: Lending) -> None:
    from laban.actors.engine.lockstep import follow

    engine, group = _load_shard(plan, rank, rendezvous)
    engine.connect(find_peer)
    follow(engine, group, lending)


def _load_shard(plan: WorkerPlan, rank: int, rendezvous: str, progress: Progress = say_nothing) -> tuple[Any, Any]:
    from laban.actors.engine.load import pick_device
    from laban.actors.engine.shard_group import ShardGroup

    place = ShardPlace(rank, plan.num_shards, rendezvous)
    with _told_plainly(plan):
        group = ShardGroup.join(place, pick_device(plan.config.device))
        factory = import_path(plan.engine_factory)
        return factory(plan.model_folder, plan.config, plan.worker_id, group, progress=progress), group


@contextmanager
def _told_plainly(plan: WorkerPlan) -> Iterator[None]:
    """Whatever a model fails to load by ends as an error that any process can read; at `debug` the log has all."""
    try:
        yield
    except LabanError:
        raise
    except Exception as error:
        logger.debug("%s: %s could not be loaded", plan.worker_id, plan.model_folder, exc_info=True)
        raise Unavailable(f"worker {plan.worker_id} could not load its model: {cause_of(error)}") from None


class WorkerProcess:
    """A worker's process, or that of its first shard. Constructed at once; `load` takes as long as the model does."""

    def __init__(self, plan: WorkerPlan) -> None:
        set_up_logs(plan.log, worker=plan.worker_id)
        sys.setswitchinterval(SWITCH_S)
        self._plan = plan
        self._progress: tuple[str, float | None] | None = None
        self._rendezvous: tuple[object, str] | None = None
        self._loop: WorkerLoop | None = None
        self._exporting: Exporting | None = None
        self._line: LineServer | None = None
        self._failure: Exception | None = None
        self._peers = _no_peers(plan, 0)

    def rendezvous(self) -> str:
        """Where the shards of this worker meet: host:port, open as long as this process lives."""
        if self._rendezvous is None:
            from laban.actors.engine.shard_group import open_rendezvous

            self._rendezvous = open_rendezvous(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        return self._rendezvous[1]

    def load(self) -> WorkerInfo:
        """Loads once; later calls have the same outcome."""
        if self._failure is not None:
            raise self._failure
        if self._loop is None:
            plan = self._plan

            def make_engine() -> Any:
                if plan.num_shards > 1:
                    engine = lead_shards(plan, self.rendezvous(), self._note)
                else:
                    factory = import_path(plan.engine_factory)
                    engine = factory(plan.model_folder, plan.config, plan.worker_id, progress=self._note)
                engine.connect(self._peers.find)
                return engine

            publishing = self._publishing()
            try:
                with _told_plainly(plan):
                    self._loop = WorkerLoop(make_engine, publishing=publishing)
            except Exception as error:
                self._failure = error
                if publishing is not None:
                    publishing.stop()
                raise
            self._exporting = Exporting(self._loop, max_leases=MAX_LEASES * plan.num_shards)
        info = self._loop.info
        return replace(info, model_name=self._plan.model or info.model_name)

    @ray.method(concurrency_group="control")
    def progress(self) -> tuple[str, float | None] | None:
        """What `load` said last: what is being done, and the share of it done. None before it began."""
        return self._progress

    @ray.method(concurrency_group="control")
    def open_line(self) -> str | None:
        """Where a process of this machine reaches the worker without Ray; None where that cannot be."""
        if self._line is None:
            try:
                self._line = LineServer(self._running())
            except OSError as error:
                logger.warning("calls and reports go through Ray: %s", error)
                return None
        return self._line.address

    @ray.method(concurrency_group="control")
    def submit(self, calls: tuple[Call, ...]) -> None:
        self._running().submit(calls)

    @ray.method(concurrency_group="control")
    def abort(self, call_ids: tuple[str, ...]) -> None:
        self._running().abort(call_ids)

    @ray.method(concurrency_group="control")
    def advise(self, advice: Advice) -> None:
        self._running().advise(advice)

    @ray.method(concurrency_group="control")
    def meet(self, news: PeerNews) -> None:
        """Other workers have come or gone."""
        self._peers.take(news)

    @ray.method(concurrency_group="leases")
    def open_export(self, encoding_id: EncodingId, epoch: Epoch, transport: Transport) -> Granted | Refused:
        return self._lending().open(encoding_id, epoch, transport)

    @ray.method(concurrency_group="chunks")
    def renew_export(self, lease_id: int) -> Refused | None:
        """Somebody reads its memory, or from another shard."""
        return self._lending().renew(lease_id)

    @ray.method(concurrency_group="chunks")
    def read_export(self, lease_id: int, begin: int, end: int) -> Chunk | Refused:
        return self._lending().read(lease_id, begin, end)

    @ray.method(concurrency_group="chunks")
    def close_export(self, lease_id: int) -> None:
        self._lending().close(lease_id)

    @ray.method(
        concurrency_group="stream",
        num_returns="streaming",
        _generator_backpressure_num_objects=REPORTS_IN_FLIGHT,
    )
    def reports(self) -> Iterator[WorkerReport]:
        yield from self._running().reports()

    def _publishing(self) -> Publishing | None:
        if self._plan.directory is None:
            return None
        from laban.actors.remote import RemoteDirectory

        return Publishing(RemoteDirectory(self._plan.directory), self._plan.worker_id)

    def _note(self, doing: str, share: float | None) -> None:
        if self._progress is None or self._progress[0] != doing:
            logger.info("%s: %s", self._plan.worker_id, doing)
        self._progress = doing, share

    def _lending(self) -> Exporting:
        if self._exporting is None:
            raise FailedPrecondition("the worker has not loaded its model")
        return self._exporting

    def _running(self) -> WorkerLoop:
        if self._loop is None:
            raise FailedPrecondition("the worker has not loaded its model")
        return self._loop


class ShardProcess:
    """A process of a worker's other shards. `run` has the engine; the rest is for transfers of this shard's part."""

    def __init__(self, plan: WorkerPlan, rank: int) -> None:
        set_up_logs(plan.log, worker=plan.worker_id)
        self._plan, self._rank = plan, rank
        self._peers, self._lending = _no_peers(plan, rank), Lending()

    def run(self, rendezvous: str) -> None:
        """Loads, then steps with the first shard. Ends, mostly by raising, when the worker does."""
        follow_shards(self._plan, self._rank, rendezvous, self._peers.find, self._lending)

    @ray.method(concurrency_group="control")
    def meet(self, news: PeerNews) -> None:
        """Other workers have come or gone."""
        self._peers.take(news)

    @ray.method(concurrency_group="chunks")
    def read_export(self, lease_id: int, begin: int, end: int) -> Chunk | Refused:
        return self._lending.read(lease_id, begin, end)


def _no_peers(plan: WorkerPlan, rank: int) -> RemotePeers:
    from laban.actors.remote import RemotePeers

    return RemotePeers(rank, plan.num_shards)


class DirectoryProcess(DirectoryService):
    """A shard of the directory. Ray brings it back, empty, whenever it dies."""

    def __init__(self, log: LogSettings) -> None:
        set_up_logs(log)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Ray calls what it deprecates
            restarted: bool = ray.get_runtime_context().was_current_actor_reconstructed
        super().__init__(restarted=restarted)


class HostProcess:
    """Runs one service in its event loop. Async methods make Ray give the actor a loop."""

    def __init__(self, factory: str, arguments: tuple[object, ...]) -> None:
        sys.setswitchinterval(SWITCH_S)
        self._factory = factory
        self._arguments = arguments
        self._service: HostedService | None = None

    async def start(self) -> str:
        service: HostedService = import_path(self._factory)(*self._arguments)
        address = await service.start()
        self._service = service
        # What is there now stays: the collector need not look at the libraries' objects again and again.
        gc.collect()
        gc.freeze()
        return address

    async def answer(self) -> None:
        """Shows that the process lives and its event loop turns."""

    async def stop(self) -> None:
        if self._service is not None:
            await self._service.stop()
