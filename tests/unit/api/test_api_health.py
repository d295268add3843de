"""What anybody may ask of the gateway: nobody who asks keeps others from anything."""

from __future__ import annotations

import asyncio
import struct
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from api_fakes import serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from laban.cluster.gateway import GatewayLimits
from laban.cluster.gateway_health import MAX_STREAMS

HEADERS = {
    ":method": "POST", ":scheme": "http", ":path": "/grpc.health.v1.Health/Watch", ":authority": "x", "te": "trailers",
    "content-type": "application/grpc",
}  # fmt: skip


def frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
    """Of HTTP/2 (RFC 9113, 4.1)."""
    return struct.pack("!I", len(data))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + data


async def watch_without_reading(port: int) -> asyncio.StreamWriter:
    """Watch the health as a client that lets nothing through: its window is of no bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    fields = [text.encode() for pair in HEADERS.items() for text in pair]
    block = b"".join(b"\0" * (place % 2 == 0) + bytes([len(text)]) + text for place, text in enumerate(fields))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack("!HI", 4, 0)))
    writer.write(frame(1, 4, 1, block) + frame(0, 1, 1, b"\0" * 5))
    await writer.drain()
    found = b""
    while b"application/grpc" not in found:  # the answer has begun
        found += await reader.read(1000)
    return writer


async def status_of(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        found: int = answer.status
        return found


def test_who_watches_and_does_not_read_holds_up_neither_others_nor_the_end() -> None:
    async def main() -> None:
        async with serving() as served:
            deaf = await watch_without_reading(served.port)
            async with grpc.aio.insecure_channel(served.address) as channel:
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                served.gateway.set_ready(True)
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
                assert await status_of(served.address) == health_pb2.HealthCheckResponse.SERVING
                await asyncio.wait_for(served.gateway.stop(0.1), 5)
            deaf.close()

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("service", ["health", "reflection"])
def test_streams_that_need_no_token_leave_the_others_their_places(service: str) -> None:
    async def main() -> None:
        limits = GatewayLimits(max_concurrent_calls=MAX_STREAMS + 8)
        async with serving(limits=limits) as served, grpc.aio.insecure_channel(served.address) as channel:

            def begin() -> Any:
                if service == "health":
                    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                return reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()

            async def is_let_in(call: Any) -> bool:
                try:
                    if service == "reflection":
                        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
                    return await call.read() is not grpc.aio.EOF
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return False

            streams = [begin() for _ in range(MAX_STREAMS)]
            for call in streams:
                assert await is_let_in(call)
            one_more = begin()
            assert not await is_let_in(one_more)
            assert await one_more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            async with aclosing(served.client.watch("wf-1")) as items:
                assert await anext(items) is not None
            assert await status_of(served.address) == health_pb2.HealthCheckResponse.NOT_SERVING
            for call in streams:
                call.cancel()
            while not await is_let_in(again := begin()):  # until their places are free again
                await asyncio.sleep(0.01)
            again.cancel()

    asyncio.run(asyncio.wait_for(main(), 30))
