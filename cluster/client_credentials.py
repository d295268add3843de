"""Who a client is, and how it knows the server: a token, and TLS."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from grpc import aio

from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.client_trace import MAY_TRACE, trace_metadata

Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """`tls` alone trusts the system's authorities; `ca`, a PEM file, trusts those in it. `cert` and `key`, PEM files,
    are for a server that asks its clients for a certificate. Any of these means TLS. A token without TLS is sent as it
    is: for one machine, or a mesh that encrypts."""

    token: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidInput("one of the two is missing, expected both or neither", field="cert and key")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise InvalidInput("expected printable ASCII", field="token")  # never quoted

    @property
    def metadata(self) -> Metadata:
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def of_channel(self) -> grpc.ChannelCredentials | None:
        """None for a connection without TLS. Raises NotFound for a file that is not there."""
        if not (self.tls or self.ca or self.cert):
            return None
        ca, key, cert = (self._read(name) for name in ("ca", "key", "cert"))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def _read(self, name: str) -> bytes | None:
        path = getattr(self, name)
        if path is None:
            return None
        try:
            return Path(path).expanduser().read_bytes()
        except OSError as error:
            raise NotFound(f"cannot be read ({error.strerror})", field=name, value=str(path)) from None


def credentials_from(environment: Mapping[str, str] | None = None) -> Credentials:
    """From LABAN_TOKEN, LABAN_TLS=1, LABAN_TLS_CA, LABAN_TLS_CERT and LABAN_TLS_KEY. Raises InvalidInput."""
    found = os.environ if environment is None else environment
    tls = found.get("LABAN_TLS", "")
    if tls not in ("", "0", "1"):
        raise InvalidInput("expected 0 or 1", field="LABAN_TLS", value=tls)
    ca, cert, key = (found.get(f"LABAN_TLS_{name}") or None for name in ("CA", "CERT", "KEY"))
    return Credentials(found.get("LABAN_TOKEN") or None, tls == "1", ca, cert, key)


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _AioDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None


class SyncIdentity(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """Says with every call who calls, and in which span."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = tuple(metadata)

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._named(details), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._named(details), request)

    def _named(self, details: Any) -> _Details:
        metadata = (*(details.metadata or ()), *self._metadata, *trace_metadata())
        return _Details(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready, details.compression
        )


class _AioUnary(aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, metadata: Metadata) -> None:
        self._metadata = tuple(metadata)

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_aio_named(details, self._metadata), request)


class _AioStream(aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    def __init__(self, metadata: Metadata) -> None:
        self._metadata = tuple(metadata)

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_aio_named(details, self._metadata), request)


def aio_identity(metadata: Metadata) -> list[aio.ClientInterceptor]:
    """gRPC takes one interceptor for one kind of call."""
    return [_AioUnary(metadata), _AioStream(metadata)] if metadata or MAY_TRACE else []


def _aio_named(details: Any, metadata: Metadata) -> _AioDetails:
    joined = aio.Metadata(*(details.metadata or ()), *metadata, *trace_metadata())
    return _AioDetails(details.method, details.timeout, joined, details.credentials, details.wait_for_ready)
