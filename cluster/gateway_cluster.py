"""The service Cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from laban.actors.errors import FailedPrecondition
from laban.cluster.callers import caller
from laban.cluster.gateway_ports import FleetPort, StatusPort
from laban.cluster.gateway_requests import read_id
from laban.cluster.records import WorkerStatus
from laban.cluster.translate_cluster import drain_to_pb, status_to_pb, worker_to_pb
from laban.proto import laban_pb2 as pb


class ClusterService:
    """laban.v1.Cluster. Without a fleet the workers are what they are."""

    def __init__(self, status: StatusPort, fleet: FleetPort | None = None) -> None:
        self._status = status
        self._fleet = fleet
        self._adding: set[asyncio.Task[WorkerStatus]] = set()

    async def GetStatus(self, request: pb.GetStatusRequest) -> pb.ClusterStatus:
        status = self._status()
        if not caller().may("admin"):
            own = tuple(each for each in status.divergences if each.tenant == caller().tenant)
            status = replace(status, divergences=own)
        return status_to_pb(status)

    async def AddWorker(self, request: pb.AddWorkerRequest) -> pb.WorkerStatus:
        # In a task of its own: a client that leaves does not leave a worker half started.
        task = asyncio.ensure_future(self._changeable().add_worker(model=request.model))
        self._adding.add(task)
        task.add_done_callback(self._added)
        return worker_to_pb(await asyncio.shield(task))

    async def DrainWorker(self, request: pb.DrainWorkerRequest) -> AsyncGenerator[pb.DrainProgress, None]:
        draining = self._changeable().drain_worker(read_id(request.worker_id, "worker_id"))
        async with aclosing(draining) as items:
            async for item in items:
                yield drain_to_pb(item)

    def _changeable(self) -> FleetPort:
        if self._fleet is None:
            raise FailedPrecondition("this cluster can neither start workers nor take any out")
        return self._fleet

    def _added(self, task: asyncio.Task[WorkerStatus]) -> None:
        self._adding.discard(task)
        if not task.cancelled():
            task.exception()  # taken note of, in case that the client has left
