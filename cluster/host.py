"""The control plane's process: dispatcher, executor, sessions and gateway in one event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from laban.actors.adapter_folder import check_adapter_folder
from laban.actors.chat_template import ChatTemplate
from laban.actors.framing import derive_framing
from laban.actors.lasting import going_on, lasting
from laban.actors.logs import set_up_logs
from laban.actors.tokenizer import Tokenizer
from laban.cluster.audit.audits import Audits
from laban.cluster.audit.in_service import InService
from laban.cluster.audit.knowledge import Knowledge, Remembered
from laban.cluster.audit.resolving import Levels
from laban.cluster.audit.watching import Watch
from laban.cluster.chat_prompts import ChatPrompts
from laban.cluster.chats import Chats
from laban.cluster.config import LabanConfig
from laban.cluster.config_sections import EVERYWHERE
from laban.cluster.dispatch import Dispatcher, DispatchLimits
from laban.cluster.door import Door
from laban.cluster.executor import Executor, ExecutorLimits
from laban.cluster.gateway import Gateway, GatewayLimits, check_address
from laban.cluster.gateway_sharing import Sharing
from laban.cluster.grant_keeper import GrantKeeper
from laban.cluster.http.server import HttpServer
from laban.cluster.instruments import Instruments
from laban.cluster.journal import Journal
from laban.cluster.journal_findings import JournalKnowledge
from laban.cluster.journal_members import Presence
from laban.cluster.journal_place import open_store, peer_address
from laban.cluster.lookout import Lookout
from laban.cluster.membership import Membership
from laban.cluster.messages import Voice
from laban.cluster.metrics_server import MetricsServer, settled
from laban.cluster.records import ClusterStatus
from laban.cluster.routing.recorder import Recorder
from laban.cluster.routing.router import warm_up
from laban.cluster.run_log import RunLog
from laban.cluster.sessions import SessionLimits, Sessions
from laban.cluster.start_checks import worker_folder
from laban.cluster.survey import Survey
from laban.cluster.tokens import TokenBook
from laban.cluster.traces import NO_TRACES, Traces

if TYPE_CHECKING:
    from laban.actors.remote import WorkerPlan

logger = logging.getLogger(__name__)

FACTORY = "laban.cluster.host:ControlPlane"
READY_EVERY_S = 1.0


@dataclass(frozen=True)
class ModelPlace:
    """A model that is served: what it is called, its folder, and its adapters' names and folders."""

    name: str
    folder: str
    adapters: tuple[tuple[str, str], ...] = ()

    def fingerprints(self) -> dict[str, str]:
        """Of its adapters, by name. Reads them whole."""
        return {name: check_adapter_folder(path, self.folder).fingerprint for name, path in self.adapters}


@dataclass(frozen=True)
class HostPlan:
    """What the control plane is made of, the default model first. Handles are of processes that have been started
    already."""

    config: LabanConfig
    models: Sequence[ModelPlace]
    workers: Sequence[WorkerPlan]
    worker_handles: Mapping[str, Any]
    directory_handle: Any
    variables: Mapping[str, str] = field(default_factory=dict)  # OpenTelemetry's, of who started the cluster

    def another(self, worker_id: str, model: str, num_workers: int) -> WorkerPlan:
        """Of a worker of that model that is added to those planned, one of `num_workers` then."""
        folder = self.config.cache.disk_folder
        plan = next((each for each in self.workers if each.model == model), self.workers[0])
        engine = replace(plan.config, num_workers=num_workers, disk_folder=worker_folder(folder, worker_id))
        return replace(plan, worker_id=worker_id, config=engine)


class ControlPlane:
    """Implements HostedService."""

    def __init__(self, plan: HostPlan) -> None:
        self._plan = plan
        self._gateway: Gateway | None = None
        self._http: HttpServer | None = None
        self._executor: Executor | None = None
        self._journal: Journal | None = None
        self._metrics = MetricsServer(lambda: self._why_not_ready() or self._why_no_journal())
        self._traces = NO_TRACES
        self._membership: Membership | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        """Wait for the workers, then serve. Returns the address for clients.

        Raises FailedPrecondition for a port in use, and what the workers raise.
        """
        from laban.actors.remote import RemoteDirectory, RemoteSupervisor

        config, places = self._plan.config, self._plan.models
        traces = _traces(config.tracing.endpoint, self._plan.variables)
        self._traces = traces
        set_up_logs(config.log.settings, trace_of=traces.trace_id)
        check_address(config.server.host, config.server.port)  # before the model takes its time
        listens = settled(config.http)
        if config.metrics.port is not None:
            await self._metrics.start(config.metrics.host, config.metrics.port)
        presence = Presence(socket.gethostname())
        store = await asyncio.to_thread(
            open_store, config.journal.url, config.journal.sync, presence, config.journal.lease_s
        )
        self._journal = journal = None if store is None else Journal(store)
        supervisor = RemoteSupervisor(self._plan.workers, self._plan.worker_handles, self._plan.another)
        parses = config.engine.parse_special_tokens
        spoken = {place.name: await asyncio.to_thread(_prompts_of, place.folder, parses) for place in places}
        adapters = {place.name: await asyncio.to_thread(place.fingerprints) for place in places}
        prompts = spoken[places[0].name]
        framing, tokenizer = prompts.framing, prompts.tokenizer
        workers, _ = await asyncio.gather(supervisor.start_all(), asyncio.to_thread(warm_up))

        def status() -> ClusterStatus:
            return replace(
                executor.status(sessions_open=sessions.num_open),
                routing_policy=config.routing.policy,
                eviction_policy=config.cache.eviction,
                members=() if membership is None else membership.status,
                divergences=watch.diverging,
            )

        def survey() -> Survey:
            return Survey(status(), dispatcher.survey(), lookout.count_steps(), keeper.num_ready)

        meter = Instruments(workers[0].info.model_name, survey)
        book = None if config.auth.tokens_file is None else TokenBook(config.auth.tokens_file)
        door = Door(book, meter=meter)
        dispatcher = Dispatcher(
            workers,
            supervisor=supervisor,
            directory=RemoteDirectory(self._plan.directory_handle),
            limits=DispatchLimits(
                max_attempts=config.limits.max_attempts, start_timeout_s=config.limits.start_timeout_s
            ),
            policy=config.routing.policy,
            replicate=config.routing.replicate,
            recorder=None if config.routing.record is None else Recorder(config.routing.record),
            meter=meter,
            traces=traces,
            tenants=door,
            default_model=workers[0].info.model_name,
        )
        lookout = Lookout(
            dispatcher, prefetch=config.routing.prefetch, admission=config.routing.admission, meter=RunLog(meter)
        )
        knowledge: Knowledge = Remembered()
        if store is not None and journal is not None:
            knowledge = JournalKnowledge(journal, store, dispatcher.pools.identity)
        levels = Levels(knowledge, dispatcher.pools.identity, config.audit.fallback)
        watch = Watch(knowledge, config.audit.tolerance, falls_back=config.audit.fallback)
        auditing = InService(config.audit, dispatcher, levels, watch, meter) if config.audit.share else None
        executor = Executor(
            dispatcher,
            framing,
            tokenizer,
            limits=ExecutorLimits(
                config.limits.max_active_workflows, config.limits.max_finished_workflows, config.journal.max_age_s
            ),
            lookout=lookout,
            journal=journal,
            traces=traces,
            meter=meter,
            levels=levels,
            audits=auditing,
            voices={name: Voice(each.framing, each.tokenizer, adapters[name]) for name, each in spoken.items()},
            grants=config.grants,
        )
        keeper = GrantKeeper(executor.languages.grants, dispatcher, lookout.foresight)
        membership = None
        if store is not None and journal is not None:
            membership = Membership(store, journal, executor, max_finished=config.limits.max_finished_workflows)
        chats = Chats(
            dispatcher,
            executor.languages.of,
            prompts,
            others=spoken,
            adapters=adapters,
            next_rank=executor.intake.next_rank,
            meter=meter,
            audits=auditing,
        )
        sessions = Sessions(
            dispatcher,
            executor.languages.of,
            chats=chats,
            limits=SessionLimits(default_ttl_s=config.limits.session_ttl_s, max_sessions=config.limits.max_sessions),
            hint_taker=lookout.foresight,
            onlooker=lookout.foresight,
            next_rank=executor.intake.next_rank,
            meter=meter,
            audits=auditing,
        )
        limits = GatewayLimits(
            config.server.max_message_bytes,
            config.server.max_concurrent_calls,
            config.server.max_connection_age_s,
        )
        gateway = Gateway(
            executor,
            sessions,
            status,
            limits,
            fleet=dispatcher.fleet,
            audits=Audits(dispatcher, executor.languages.new_book, executor.intake.next_rank, levels, watch),
            meter=meter,
            traces=traces,
            door=door,
            tls=config.server.tls,
            sharing=None if membership is None else Sharing(config, executor, membership),
        )
        executor.start()
        try:
            server = config.server
            if membership is not None:
                here = peer_address(server.peer_address, server.host, server.port)
                await membership.start(here, dispatcher.pools.identity)
            port = await gateway.start(server.host, server.port)
            http = HttpServer(
                chats,
                limits,
                why_not_ready=self._why_not_ready,
                door=door,
                tls=server.tls,
                meter=meter,
                traces=traces,
            )
            if listens.port is not None:
                await http.start(listens.host, listens.port)
        except BaseException:
            await executor.stop()
            raise
        if membership is not None:
            membership.show(address=peer_address(server.peer_address, server.host, port))
            self._look_after("being a member of the journal", membership.run)
        gateway.set_ready(True)
        self._gateway, self._executor, self._membership = gateway, executor, membership
        self._http = http
        self._metrics.show(meter)
        if auditing is not None:
            self._look_after("auditing in service", auditing.run)
        if auditing is not None or config.audit.fallback:
            self._look_after("looking who diverges", watch.run)
        self._look_after("ticking", partial(self._tick, gateway, executor, sessions, keeper, meter))
        host = "127.0.0.1" if config.server.host in EVERYWHERE else config.server.host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def stop(self) -> None:
        """End the workflows, their watches, the gateway and the workers. Workflows in a journal go on at others who
        share it, or when it is served again: calls that run may end before."""
        executor, self._executor = self._executor, None
        gateway, self._gateway = self._gateway, None
        if self._membership is not None:
            self._membership.show(state="ending")
        if gateway is not None and executor is not None:
            gateway.set_ready(False)
            drain_s = self._plan.config.server.drain_s
            http, self._http = self._http, None
            await asyncio.gather(executor.drain(drain_s), *([] if http is None else [http.stop(drain_s)]))
        for task in self._tasks:
            task.cancel()
        if executor is not None:
            executor.refuse()
        if gateway is not None:
            await gateway.stop(grace_s=0.5)
        if executor is not None:
            await executor.stop()
        await asyncio.to_thread(self._traces.close)
        await self._metrics.stop()

    def _why_not_ready(self) -> str:
        if self._gateway is None or self._executor is None:
            return "the workers are loading the model, or the control plane is stopping"
        status = self._executor.status()
        if status.ready:
            return ""
        missing = ", ".join(model.name for model in status.models if not model.workers_up)
        return f"no worker of {missing} is up" if len(status.models) > 1 else "no worker is up"

    def _why_no_journal(self) -> str:
        """What somebody has to see to before this takes workflows again; sessions and chats go on without."""
        return "" if self._journal is None else self._journal.lost

    def _look_after(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Until this stops."""
        self._tasks.append(asyncio.get_running_loop().create_task(lasting(what, work), name=what))

    async def _tick(
        self, gateway: Gateway, executor: Executor, sessions: Sessions, keeper: GrantKeeper, meter: Instruments
    ) -> None:
        """Keep health true and what is granted there, and forget sessions that have expired: each whatever becomes of
        the others."""
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(READY_EVERY_S)
            meter.loop_lagged(time.monotonic() - began_s - READY_EVERY_S)
            with going_on("forgetting expired sessions"):
                sessions.sweep()
            with going_on("forgetting old workflows"):
                executor.sweep()
            with going_on("keeping what is granted"):
                keeper.tick()
            with going_on("saying whether workers are up"):
                gateway.set_ready(executor.status().ready)
            with going_on("renewing the certificates of HTTP"):
                if self._http is not None:
                    self._http.refresh()


def _prompts_of(folder: str, parse_special_tokens: bool) -> ChatPrompts:
    """How a model writes and is spoken to."""
    tokenizer = Tokenizer.from_folder(folder, parse_special_tokens=parse_special_tokens)
    return ChatPrompts(derive_framing(folder, tokenizer), tokenizer, ChatTemplate.from_folder(folder))


def _traces(endpoint: str | None, variables: Mapping[str, str]) -> Traces:
    """`variables` are of who started the cluster: this process may be elsewhere, and what it has itself comes first."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    named = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if endpoint is None and not (named and os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "otlp"):
        return NO_TRACES
    from laban.cluster.tracing import exporting

    return exporting(endpoint)
