"""The asynchronous client's handler loop: coroutine functions are awaited, plain functions run in threads."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from laban.actors.errors import FailedPrecondition, LabanError
from laban.cluster.client_tools import MAX_REFUSALS
from laban.cluster.records import Lease, WorkflowRecord
from laban.cluster.tool_calls import (
    PASSING,
    POLL_S,
    RENEWALS,
    Outcome,
    Tool,
    arguments_of,
    check_tools,
    default_handler,
    failure_of,
    outcome_of,
    pauses,
    refused,
)

logger = logging.getLogger(__name__)


class AsyncStepClient(Protocol):
    """What the loop needs of an `AsyncClient`."""

    async def lease_step(
        self, tools: Mapping[str, Tool], *, workflow_id: str = "", handler: str = "", wait_s: float = 20.0
    ) -> Lease | None: ...

    async def renew_lease(self, lease_id: str) -> Lease: ...

    async def complete_step(
        self, workflow_id: str, address: str, text: str | None = None, *, output: object = ..., lease_id: str = ""
    ) -> WorkflowRecord: ...

    async def fail_step(
        self, workflow_id: str, address: str, message: str, *, lease_id: str = "", final: bool = False
    ) -> WorkflowRecord: ...


class AsyncToolServer:
    """One poll at a time asks for steps, as long as fewer than `concurrency` are in hand."""

    def __init__(
        self,
        client: AsyncStepClient,
        tools: Mapping[str, Tool],
        *,
        workflow_id: str,
        handler: str,
        concurrency: int,
        grace_s: float,
    ) -> None:
        check_tools(tools, concurrency)
        self._client = client
        self._tools = dict(tools)
        self._workflow_id = workflow_id
        self._handler = handler or default_handler()
        self._grace_s = grace_s
        self._room = asyncio.Semaphore(concurrency)
        self._threads = ThreadPoolExecutor(concurrency, "laban-tool")
        self._works: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until cancelled, or the end of the workflow where one is named. Raises what does not pass by waiting."""
        try:
            await self._serve()
        finally:
            # What runs may end in time; the leases of what does not run out.
            try:
                if self._works:
                    await asyncio.wait(self._works, timeout=self._grace_s)
            finally:
                for work in self._works:
                    work.cancel()
                self._threads.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        waits = pauses()
        while True:
            await self._room.acquire()
            lease: Lease | None = None
            try:
                lease = await self._client.lease_step(
                    self._tools, workflow_id=self._workflow_id, handler=self._handler, wait_s=POLL_S
                )
                waits = pauses()
            except FailedPrecondition:
                if self._workflow_id:
                    return
                raise
            except LabanError as error:
                if error.status not in PASSING:
                    raise
                logger.info("no steps for now: %s", error)
                await asyncio.sleep(next(waits))
            finally:
                if lease is None:
                    self._room.release()
            if lease is not None:
                work = asyncio.create_task(self._do(lease), name=f"do {lease.address}")
                self._works.add(work)
                work.add_done_callback(self._works.discard)

    async def _do(self, lease: Lease) -> None:
        lost = threading.Event()
        working = asyncio.create_task(self._work(lease, lost))
        renewing = asyncio.create_task(self._renew(lease))
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if working.done() and (error := working.exception()) is not None:
                logger.error("the answer to %s was lost", lease.address, exc_info=error)
        finally:
            lost.set()
            working.cancel()
            renewing.cancel()
            self._room.release()

    async def _work(self, lease: Lease, lost: threading.Event) -> None:
        try:
            outcome = outcome_of(await self._call(self._tools[lease.tool], lease, lost))
        except (Exception, SystemExit) as error:
            logger.info("the tool %s failed at %s: %r", lease.tool, lease.address, error)
            outcome = failure_of(error)
        await self._answer(lease, outcome)

    async def _call(self, tool: Tool, lease: Lease, lost: threading.Event) -> object:
        arguments = arguments_of(tool, lease, lost)
        if inspect.iscoroutinefunction(tool) or inspect.iscoroutinefunction(getattr(tool, "__call__", None)):  # noqa: B004
            result = tool(**arguments)
        else:
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(self._threads, lambda: tool(**arguments))
        return await result if inspect.isawaitable(result) else result

    async def _answer(self, lease: Lease, outcome: Outcome) -> None:
        refusals = 0
        for wait_s in pauses():
            try:
                await self._send(lease, outcome)
                return
            except LabanError as error:
                refusals += error.status == "RESOURCE_EXHAUSTED"
                if error.status in PASSING and refusals < MAX_REFUSALS:
                    await asyncio.sleep(wait_s)
                    continue
                instead = refused(outcome, error)
                if instead is None:
                    logger.info("the answer to %s was refused: %s", lease.address, error)
                    return
                outcome, refusals = instead, 0

    async def _send(self, lease: Lease, outcome: Outcome) -> None:
        step = (lease.workflow_id, lease.address)
        if outcome.error is not None:
            await self._client.fail_step(*step, outcome.error, lease_id=lease.lease_id, final=outcome.final)
        elif outcome.text is not None:
            await self._client.complete_step(*step, outcome.text, lease_id=lease.lease_id)
        else:
            await self._client.complete_step(*step, output=outcome.output, lease_id=lease.lease_id)

    async def _renew(self, lease: Lease) -> None:
        """Returns once the lease is lost."""
        loop = asyncio.get_running_loop()
        renewed_at = loop.time()
        while True:
            await asyncio.sleep(lease.duration_s / RENEWALS)
            try:
                await self._client.renew_lease(lease.lease_id)
                renewed_at = loop.time()
            except LabanError as error:
                if error.status not in PASSING or loop.time() - renewed_at > lease.duration_s:
                    logger.info("the lease of %s is lost: %s", lease.address, error)
                    return
