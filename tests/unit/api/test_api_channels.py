"""Channels to other gateways: one for each that is there, and none that stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import trustme
from api_fakes import serving
from executor_rig import until
from executor_workflows import asynchronous
from grpc_health.v1 import health_pb2, health_pb2_grpc

from laban.cluster.gateway_channels import PeerChannels
from laban.cluster.tls import PeerTls

ASKED = health_pb2.HealthCheckRequest()


async def check(channel: grpc.aio.Channel) -> None:
    await health_pb2_grpc.HealthStub(channel).Check(ASKED, timeout=5)


@asynchronous
async def test_a_gateway_that_is_gone_leaves_no_channel_and_a_stream_goes_on_to_its_end() -> None:
    async with serving() as first, serving() as second:
        there = {first.address, second.address}
        channels = PeerChannels(None, lambda: there)
        for _ in range(3):
            with channels.through(first.address) as channel:
                await check(channel)
        assert len(channels) == 1
        with channels.through(first.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(ASKED)
            await watch.read()
            there = {second.address}
            with channels.through(second.address) as other:
                await check(other)
            assert len(channels) == 2
            first.gateway.set_ready(True)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
        await until(lambda: len(channels) == 1 and not channels._closing)
        with channels.through(second.address) as again:
            assert again is other
        await channels.close()


@asynchronous
async def test_certificates_that_are_renewed_leave_no_channel_of_the_old_ones(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    channels = None
    async with serving() as first:
        for _ in range(3):
            trustme.CA().cert_pem.write_to_path(str(tmp_path / "new.pem"))
            os.replace(tmp_path / "new.pem", file)
            channels = channels or PeerChannels(PeerTls(str(file)), lambda: {first.address})
            with channels.through(first.address):
                assert len(channels) == 1
        await until(lambda: not channels._closing)
        await channels.close()
