"""The gateway: the public gRPC API on one port, with health checks and reflection."""

from __future__ import annotations

import errno
import logging
import socket
from dataclasses import dataclass

from grpc import aio

from laban.actors.errors import FailedPrecondition, InvalidInput, LabanError
from laban.cluster.door import Door
from laban.cluster.gateway_cluster import ClusterService
from laban.cluster.gateway_health import Health, add_open_services
from laban.cluster.gateway_meter import MeteredRequests
from laban.cluster.gateway_ports import AuditsPort, ExecutorPort, FleetPort, SessionsPort, StatusPort
from laban.cluster.gateway_service import Gate
from laban.cluster.gateway_sessions import SessionService
from laban.cluster.gateway_sharing import Sharing
from laban.cluster.gateway_workflows import WorkflowService
from laban.cluster.meter import NO_METER, Meter
from laban.cluster.tls import ServerTls, server_credentials
from laban.cluster.traces import NO_TRACES, Traces
from laban.proto import laban_pb2 as pb

logger = logging.getLogger(__name__)

SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    max_message_bytes: int = 16 * 1024 * 1024  # of one request; larger ones are refused unread
    max_concurrent_calls: int = 1024  # streams included; more are refused
    max_connection_age_s: float | None = None  # then clients are asked to connect anew; streams may go on as long again
    keepalive_s: float = 30.0  # how often a silent client is asked whether it is still there
    grace_s: float = 5.0  # how long calls may go on once the gateway stops


class Gateway:
    """Serves the API over an executor and sessions, in the event loop that `start` is awaited in.

    Health is NOT_SERVING until `set_ready(True)`, and again from `stop` on; calls are answered all the while,
    so that a status can be asked for.
    """

    def __init__(
        self,
        executor: ExecutorPort,
        sessions: SessionsPort,
        status: StatusPort,
        limits: GatewayLimits | None = None,
        *,
        fleet: FleetPort | None = None,
        audits: AuditsPort | None = None,
        meter: Meter = NO_METER,
        traces: Traces = NO_TRACES,
        door: Door | None = None,
        tls: ServerTls | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        """Without a fleet no worker can be added or drained, without a door everybody may come in. `sharing` is for a
        journal that others may share."""
        self._limits = limits or GatewayLimits()
        self._servicers = {
            "Workflows": WorkflowService(executor, audits, None if sharing is None else sharing.page),
            "Choreography": SessionService(
                sessions, lambda text, model: executor.languages.of("", model).encode(text, "sampling.forced_text")
            ),
            "Cluster": ClusterService(status, fleet),
        }
        self._sharing = sharing
        self._gate = Gate(door or Door(), None if sharing is None else sharing.relay)
        self._tls = tls
        self._meter, self._traces = meter, traces
        self._health = Health(SERVICES)
        self._server: aio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Begin to serve; port 0 takes a free one. Returns the port.

        Raises InvalidInput for a port out of range or a host that is none, FailedPrecondition for a port in use,
        NotFound or InvalidInput for certificates.
        """
        if self._server is not None:
            raise FailedPrecondition("the gateway has been started before")
        check_address(host, port)
        credentials = None if self._tls is None else server_credentials(self._tls)
        limits = self._limits
        age = None if limits.max_connection_age_s is None else int(limits.max_connection_age_s * 1000)
        aging = ("grpc.max_connection_age_ms", "grpc.max_connection_age_grace_ms")
        server = aio.server(
            interceptors=[MeteredRequests(self._meter, self._traces)],
            maximum_concurrent_rpcs=limits.max_concurrent_calls,
            options=[
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Otherwise a second server could take the same port, and half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                *((name, age) for name in aging if age is not None),
            ],
        )
        for name, servicer in self._servicers.items():
            server.add_generic_rpc_handlers([self._gate.handler(pb.DESCRIPTOR.services_by_name[name], servicer)])
        add_open_services(server, self._health, SERVICES)
        try:
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            if credentials is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise FailedPrecondition(f"cannot listen on {host}:{port} ({error})", field="port", value=port) from error
        if bound == 0:
            raise FailedPrecondition(f"cannot listen on {host}:{port}", field="port", value=port)
        await server.start()
        self._server = server
        logger.info("serving laban.v1 on %s:%d", host, bound)
        return int(bound)

    def set_ready(self, ready: bool) -> None:
        """What health checks say, of the whole server and of each service."""
        self._health.set(ready)

    async def stop(self, grace_s: float | None = None) -> None:
        """Refuse health, let calls end for `grace_s`, then end them with UNAVAILABLE. A second stop does nothing."""
        server, self._server = self._server, None
        if server is None:
            return
        self._health.end()
        await self._gate.close(self._limits.grace_s if grace_s is None else grace_s)
        await server.stop(1.0)
        if self._sharing is not None:
            await self._sharing.close()


def check_address(host: str, port: int) -> None:
    """Say why an address cannot be had, which gRPC does not."""
    if not 0 <= port <= 65_535:
        raise InvalidInput("expected 0 (any) to 65535", field="port", value=port)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"not an address of this machine ({error})", field="host", value=host) from None
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As gRPC does: a port whose last connections linger in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise _listen_error(host, port, error) from None


def _listen_error(host: str, port: int, error: OSError) -> LabanError:
    if error.errno == errno.EADDRINUSE:
        return FailedPrecondition("the port is in use: stop what uses it, or choose another", field="port", value=port)
    if error.errno == errno.EACCES:
        return FailedPrecondition("not allowed to listen on this port, expected 1024 or more", field="port", value=port)
    return InvalidInput(f"cannot listen here ({error.strerror})", field="host", value=host)
