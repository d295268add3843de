"""The handler loops, over the real gateway and executor with a scripted engine: sync and async, and when things die."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from api_fakes import error_of, eventually
from executor_rig import rig, until
from executor_workflows import tool_step

from laban.actors.errors import FailedPrecondition, InvalidInput, NotFound
from laban.cluster.client import AsyncClient, Client, ToolError
from laban.cluster.executor import Executor
from laban.cluster.gateway import Gateway
from laban.cluster.records import Lease, StepResult, WorkflowRecord
from laban.cluster.sessions import Sessions

pytestmark = pytest.mark.slow

RETRIED = "retries: {max: 2}"
SCHEMA = ", output_schema: {type: object, required: [n]}"


class Served:
    def __init__(self, executor: Executor, client: AsyncClient, address: str) -> None:
        self.executor, self.client, self.address = executor, client, address

    async def start(self, **options: Any) -> str:
        return (await self.client.submit(tool_step(**options))).workflow_id

    async def end(self, workflow_id: str) -> tuple[WorkflowRecord, StepResult]:
        async with asyncio.timeout(20):
            record = await self.client.wait(workflow_id)
        return record, next(step for step in record.steps if step.address == "tests")


@asynccontextmanager
async def serving(port: int = 0) -> AsyncIterator[Served]:
    async with rig() as made:
        executor, sessions = made.executor, Sessions(made.dispatcher, made.executor.languages.of)
        gateway = Gateway(executor, sessions, executor.status)
        port = await gateway.start(port=port)
        client = AsyncClient(f"127.0.0.1:{port}", timeout_s=20)
        try:
            yield Served(executor, client, f"127.0.0.1:{port}")
        finally:
            await client.close()
            await gateway.stop(0)


class Loop:
    """A synchronous handler loop in a thread."""

    def __init__(self, address: str, tools: dict[str, Any], **options: Any) -> None:
        self.stop = threading.Event()
        self.client = Client(address, timeout_s=20)
        self.error: BaseException | None = None

        def serve() -> None:
            try:
                self.client.serve_tools(tools, handler="sync", stop=self.stop, **options)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    async def end(self) -> None:
        self.stop.set()
        await asyncio.to_thread(self.thread.join, 20)
        assert not self.thread.is_alive()
        self.client.close()


def test_a_lease_by_hand() -> None:
    async def main() -> None:
        async with serving() as served:
            client, workflow_id = served.client, await served.start(external=SCHEMA)
            lease = await client.lease_step(["other", "run_tests"], handler="me", wait_s=5)
            assert lease is not None
            assert (lease.args, lease.messages[0].text) == ({"n": 3}, "What?")
            assert 29 < lease.expires_at - time.time() <= 30
            renewed = await client.renew_lease(lease.lease_id)
            assert (renewed.lease_id, renewed.messages) == (lease.lease_id, ())
            error = await error_of(client.complete_step(workflow_id, "tests", output=[], lease_id=lease.lease_id))
            assert (type(error), error.field) == (InvalidInput, "output")
            await client.complete_step(workflow_id, "tests", output={"n": None}, lease_id=lease.lease_id)
            record, step = await served.end(workflow_id)
            assert (record.state, step.text, step.worker) == ("succeeded", '{"n":null}', "me")
            assert (step.tool, step.args) == ("run_tests", {"n": 3})
            assert await client.lease_step(["run_tests"], wait_s=0) is None
            error = await error_of(client.lease_step(["run_tests"], workflow_id=workflow_id))
            assert type(error) is FailedPrecondition
            assert type(await error_of(client.lease_step(["run_tests"], workflow_id="wf-0"))) is NotFound

    asyncio.run(main())


def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with serving() as served:
            waiting = asyncio.create_task(served.client.lease_step(["run_tests"]))
            desk = served.executor._desk("")
            await eventually(lambda: desk.num_waiters == 1, "it waits")
            waiting.cancel()
            await eventually(lambda: desk.num_waiters == 0, "nobody waits")
            workflow_id = await served.start()
            lease = await served.client.lease_step(["run_tests"])
            assert lease is not None
            await served.client.cancel(workflow_id)

    asyncio.run(main())


def test_tools_of_every_kind_in_threads() -> None:
    seen: list[Lease] = []

    def with_lease(n: int, lease: Lease) -> dict[str, object]:
        seen.append(lease)
        return {"n": n, "attempt": lease.attempt}

    async def main() -> None:
        async with serving() as served:
            for tool, text in (
                (lambda n: f"n is {n}", "n is 3"),
                (with_lease, '{"n":3,"attempt":1}'),
                (lambda **args: None, "null"),
                (lambda n: [n, 0.5], "[3,0.5]"),
            ):
                loop = Loop(served.address, {"run_tests": tool})
                record, step = await served.end(await served.start())
                assert (record.state, step.text, step.worker) == ("succeeded", text, "sync")
                await loop.end()
                assert loop.error is None
            assert seen[0].messages[0].text == "What?"

    asyncio.run(main())


def raise_value(n: int) -> str:
    raise ValueError("bad n")


def raise_final(n: int) -> str:
    raise ToolError("never again", final=True)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("tool", "message", "attempts"),
    [
        (raise_value, "ValueError: bad n", 3),
        (raise_final, "never again", 1),
        (lambda: "", "TypeError", 3),
        (lambda n: object(), "output: expected text, a number", 3),
        (lambda n: {"m": 1}, "'n' is a required property", 3),
    ],
)
def test_what_goes_wrong_fails_the_step(kind: str, tool: Any, message: str, attempts: int) -> None:
    async def main() -> None:
        async with serving() as served:
            workflow_id = await served.start(more=RETRIED, external=SCHEMA)
            if kind == "sync":
                loop = Loop(served.address, {"run_tests": tool})
                record, step = await served.end(workflow_id)
                await loop.end()
            else:
                serve = asyncio.create_task(served.client.serve_tools({"run_tests": tool}, workflow_id=workflow_id))
                record, step = await served.end(workflow_id)
                await serve
            assert (record.state, step.state, step.attempt) == ("failed", "failed", attempts)
            assert message in record.error.message

    asyncio.run(main())


def test_a_long_tool_keeps_its_lease() -> None:
    def slow(n: int) -> str:
        time.sleep(1.2)
        return "slow"

    async def slow_too(n: int) -> str:
        await asyncio.sleep(1.2)
        return "slow"

    async def main() -> None:
        async with serving() as served:
            loop = Loop(served.address, {"run_tests": slow})
            _, step = await served.end(await served.start(lease_s=0.6))
            assert (step.text, step.attempt) == ("slow", 1)
            await loop.end()
            serve = asyncio.create_task(served.client.serve_tools({"run_tests": slow_too}))
            _, step = await served.end(await served.start(lease_s=0.6))
            assert (step.text, step.attempt) == ("slow", 1)
            serve.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serve

    asyncio.run(main())


def test_a_handler_that_dies_is_followed_by_another() -> None:
    async def main() -> None:
        async with serving() as served:
            workflow_id = await served.start(lease_s=0.5)
            began = asyncio.Event()
            cancelled = asyncio.Event()

            async def endless(n: int) -> str:
                began.set()
                try:
                    return await asyncio.sleep(60, "never")
                except asyncio.CancelledError:
                    cancelled.set()
                    raise

            dying = asyncio.create_task(served.client.serve_tools({"run_tests": endless}, grace_s=0))
            await began.wait()
            dying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dying
            await cancelled.wait()
            loop = Loop(served.address, {"run_tests": lambda n: "done"})
            record, step = await served.end(workflow_id)
            assert (record.state, step.text, step.attempt) == ("succeeded", "done", 2)
            await loop.end()

    asyncio.run(main())


KILLED = """
import sys, time
from laban.cluster.client import Client

def endless(n):
    print("began", flush=True)
    time.sleep(600)

Client(sys.argv[1]).serve_tools({"run_tests": endless})
"""


def test_a_handlers_process_is_killed_in_the_middle_and_the_step_ends_once() -> None:
    done: list[int] = []

    async def main() -> None:
        async with serving() as served:
            workflow_id = await served.start(lease_s=0.6)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", KILLED, served.address, stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            assert await process.stdout.readline() == b"began\n"
            process.kill()
            await process.wait()
            loop = Loop(served.address, {"run_tests": lambda n: done.append(n) or "done"})
            record, step = await served.end(workflow_id)
            assert (record.state, step.text, step.attempt) == ("succeeded", "done", 2)
            await loop.end()
            assert done == [3]

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_who_loses_the_lease_hears_of_it(kind: str) -> None:
    """Somebody answers by hand while the tool is at it: its work is thrown away."""
    heard = threading.Event()

    def working(n: int, lost: threading.Event) -> str:
        if lost.wait(10):
            heard.set()
        return "too late"

    async def main() -> None:
        async with serving() as served:
            workflow_id = await served.start(lease_s=0.6)
            if kind == "sync":
                loop = Loop(served.address, {"run_tests": working})
            else:
                serve = asyncio.create_task(served.client.serve_tools({"run_tests": working}, workflow_id=workflow_id))
            await until(lambda: served.executor.get(workflow_id).steps[0].state == "running")
            await served.client.complete_step(workflow_id, "tests", "by hand")
            _, step = await served.end(workflow_id)
            assert step.text == "by hand"
            await eventually(heard.is_set, "the tool heard of it")
            await (loop.end() if kind == "sync" else serve)

    asyncio.run(main())


def test_the_loop_survives_a_server_that_is_away() -> None:
    async def main() -> None:
        async with serving() as served:
            port = int(served.address.rpartition(":")[2])
            loop = Loop(served.address, {"run_tests": lambda n: "done"})
            client = AsyncClient(served.address)
            serve = asyncio.create_task(client.serve_tools({"other": lambda: "x"}))
            await eventually(lambda: served.executor._desk("").num_waiters == 2, "both wait")
        await asyncio.sleep(0.3)
        async with serving(port) as served:
            await eventually(lambda: served.executor._desk("").num_waiters == 2, "both wait again")
            _, step = await served.end(await served.start())
            assert step.text == "done"
            assert not serve.done()
            serve.cancel()
            await loop.end()
            assert loop.error is None
            await client.close()

    asyncio.run(main())


def test_leaving_lets_work_end_in_time() -> None:
    began = threading.Event()

    def slow(n: int) -> str:
        began.set()
        time.sleep(0.3)
        return "in time"

    async def main() -> None:
        async with serving() as served:
            workflow_id = await served.start()
            loop = Loop(served.address, {"run_tests": slow})
            await eventually(began.is_set, "it began")
            await loop.end()
            _, step = await served.end(workflow_id)
            assert step.text == "in time"
            began.clear()
            workflow_id = await served.start()
            serve = asyncio.create_task(served.client.serve_tools({"run_tests": slow}))
            await eventually(began.is_set, "it began")
            serve.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serve
            assert (await served.end(workflow_id))[1].text == "in time"

    asyncio.run(main())


def test_no_more_than_so_many_at_a_time() -> None:
    yaml = tool_step().replace("step: tests\n", "step: tests\n    for_each: 12\n").replace("tests]", "'tests[all]']")
    running, most = 0, 0
    lock = threading.Lock()

    def counted(n: int) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return "x"

    async def main() -> None:
        async with serving() as served:
            for _ in range(2):
                workflow_id = (await served.client.submit(yaml)).workflow_id
                await served.client.serve_tools({"run_tests": counted}, workflow_id=workflow_id, concurrency=3)
                record = await served.client.wait(workflow_id)
                assert record.state == "succeeded"
            loop = Loop(served.address, {"run_tests": counted}, concurrency=3)
            record = await served.client.wait((await served.client.submit(yaml)).workflow_id)
            assert record.state == "succeeded"
            await loop.end()
        assert most == 3

    asyncio.run(main())


def test_what_cannot_be_served() -> None:
    for tools, concurrency, field in (({}, 1, "tools"), ({"a": 3}, 1, "tools['a']"), ({"a": print}, 0, "concurrency")):
        with Client("127.0.0.1:1") as client, pytest.raises(InvalidInput) as caught:
            client.serve_tools(tools, concurrency=concurrency)
        assert caught.value.field == field
