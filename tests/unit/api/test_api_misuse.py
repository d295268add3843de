"""Clients that do what no client should: the server refuses them, stays bounded, and serves the others."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from executor_rig import Rig, rig, until
from executor_workflows import EXTERNAL
from grpc import aio

from laban.actors.errors import Exhausted, LabanError
from laban.cluster.client import AsyncClient, Client
from laban.cluster.gateway import Gateway, GatewayLimits
from laban.cluster.sessions import Sessions
from laban.cluster.tls import ServerTls
from laban.proto import laban_pb2 as pb

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # and empty settings
NUM_IDLE = 1000
GET = "/laban.v1.Workflows/Get"
LONG = """
version: 1
name: long
messages: {q: "Well?"}
steps: [{step: answer, read: [q], sampling: {max_tokens: 1500, forced_text: "%s"}}]
""" % ("word " * 250)


@asynccontextmanager
async def gateway(**options: Any) -> AsyncIterator[tuple[Rig, str]]:
    async with rig() as made:
        sessions = Sessions(made.dispatcher, made.executor.languages.of)
        served = Gateway(made.executor, sessions, made.executor.status, **options)
        port = await served.start()
        try:
            yield made, f"127.0.0.1:{port}"
        finally:
            await served.stop(0)


async def is_well(address: str) -> None:
    """A well-behaved client is served."""
    async with AsyncClient(address, timeout_s=60) as client:
        assert (await client.status()).ready
        record = await client.wait((await client.submit(LONG)).workflow_id)
        assert record.state == "succeeded", record.error


def played(scene: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(120):
            await scene

    asyncio.run(within())


async def refusal(call: Any) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as found:
        await call
    return found.value.code()


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * NUM_IDLE + 200
    if before[1] != resource.RLIM_INFINITY and before[1] < wanted:
        pytest.skip(f"no more than {before[1]} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_metadata_bomb() -> None:
    async def scene() -> None:
        async with gateway() as (_, address):
            options = [("grpc.max_metadata_size", 1 << 26), ("grpc.absolute_max_metadata_size", 1 << 26)]
            async with aio.insecure_channel(address, options=options) as channel:
                bomb = [(f"x-{number}", "y" * 4096) for number in range(500)]
                call = channel.unary_unary(GET)(b"", metadata=bomb, timeout=60)
                assert await refusal(call) in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
            await is_well(address)

    played(scene())


def test_a_message_that_is_too_large() -> None:
    async def scene() -> None:
        async with gateway(limits=GatewayLimits(max_message_bytes=100_000)) as (_, address):
            async with aio.insecure_channel(address) as channel:
                call = channel.unary_unary(GET)(bytes(200_000), timeout=60)
                assert await refusal(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
            await is_well(address)

    played(scene())


def test_what_is_too_large_in_a_request_is_named() -> None:
    async def scene() -> None:
        async with gateway(limits=GatewayLimits(max_message_bytes=100_000)) as (_, address):
            async with AsyncClient(address) as client:
                text = "x" * 200_000
                workflow_id = (await client.submit(EXTERNAL)).workflow_id
                session = await client.open_session()
                for field, ask in {
                    "inputs.q": lambda: client.submit(LONG, {"n": 1, "q": text}),
                    "files.other.yaml": lambda: client.submit(LONG, files={"other.yaml": text.encode()}),
                    "text": lambda: client.complete_step(workflow_id, "human", text),
                    "prefill": lambda: session.generate(prefill=text),
                }.items():
                    with pytest.raises(
                        Exhausted, match=r"195.* KiB; .* takes 97.7 KiB.*server\.max_message_bytes"
                    ) as caught:
                        await ask()
                    assert caught.value.field == field
                with pytest.raises(Exhausted) as caught:
                    async for _ in client.run(LONG, {"q": text}):
                        pass
                assert caught.value.field == "inputs.q"
            with pytest.raises(Exhausted) as caught:
                await asyncio.to_thread(_run, address, text)
            assert caught.value.field == "inputs.q"
            await is_well(address)

    played(scene())


def _run(address: str, text: str) -> None:
    with Client(address) as client:
        list(client.run(LONG, {"q": text}))


def test_streams_that_are_left_half_open_or_end_without_a_request() -> None:
    async def scene() -> None:
        async with gateway() as (_, address):
            async with aio.insecure_channel(address) as channel:
                left_open = [channel.stream_unary(GET)() for _ in range(50)]
                empty = channel.stream_unary(GET)(timeout=60)
                await empty.done_writing()
                assert await refusal(empty) is not grpc.StatusCode.OK
                twice = channel.stream_unary(GET)(timeout=60)
                with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
                    await twice.write(pb.GetRequest(workflow_id="wf").SerializeToString())
                    await twice.write(b"more")
                    await twice.done_writing()
                assert await refusal(twice) is not grpc.StatusCode.OK
                await is_well(address)
                for call in left_open:
                    call.cancel()
            await is_well(address)

    played(scene())


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
def test_a_thousand_idle_connections() -> None:
    async def scene() -> None:
        async with gateway() as (_, address):
            host, port = address.split(":")
            writers = []
            for number in range(NUM_IDLE):
                _, writer = await asyncio.open_connection(host, int(port))
                if number % 2:  # the others do not even say hello
                    writer.write(PREFACE)
                writers.append(writer)
            await is_well(address)
            for writer in writers:
                writer.close()
            await is_well(address)

    played(scene())


def test_garbage_on_the_port() -> None:
    async def scene() -> None:
        async with gateway() as (_, address):
            host, port = address.split(":")
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 400, PREFACE + b"\xff" * 100_000, b"\x00"):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(garbage)
                if len(garbage) > 1:
                    with contextlib.suppress(ConnectionError):
                        await reader.read()  # to the end: the server hangs up
                writer.close()
            await is_well(address)

    played(scene())


def test_a_client_that_never_reads_its_watch() -> None:
    async def scene() -> None:
        async with gateway() as (made, address):
            async with AsyncClient(address) as client:
                ids = [(await client.submit(LONG)).workflow_id for _ in range(4)]
            async with aio.insecure_channel(address, options=[("grpc.http2.lookahead_bytes", 1)]) as channel:
                watch = channel.unary_stream("/laban.v1.Workflows/Watch")
                unread = [watch(pb.WatchRequest(workflow_id=each).SerializeToString()) for each in ids * 20]
                await until(lambda: all(made.executor.get(each).state == "succeeded" for each in ids))
                await is_well(address)
                for call in unread:
                    call.cancel()

    played(scene())


def test_plain_text_where_tls_is_spoken(tmp_path: Path) -> None:
    async def scene() -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        async with gateway(tls=ServerTls(str(cert), str(key), None)) as (_, address):
            async with AsyncClient(address, timeout_s=5) as client:
                with pytest.raises(LabanError) as found:
                    await client.status()
                assert found.value.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
            async with aio.secure_channel(address, trusted) as channel:
                assert await channel.unary_unary("/laban.v1.Cluster/GetStatus")(b"", timeout=60)

    played(scene())
