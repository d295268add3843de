"""TLS towards clients and other gateways: certificates from files, read again when they change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from laban.actors.errors import InvalidInput, LabanError, NotFound

if TYPE_CHECKING:
    import grpc

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Paths of PEM files. With `client_ca` only clients with a certificate of it get through."""

    cert: str
    key: str
    client_ca: str | None = None


@dataclass(frozen=True, slots=True)
class PeerTls:
    """Towards other gateways. Paths of PEM files: authorities of their certificates, None being the system's, and the
    certificate shown to them with its key. `name` is what theirs are for, if not the host that each is reached at."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    name: str | None = None


class _Renewed(Generic[T]):
    """What is made of files, and made again when they change; of half a renewal again and again, until it is whole."""

    def __init__(self, what: str, paths: Sequence[str | None], make: Callable[[], T]) -> None:
        """Raises what `make` raises."""
        self._what, self._paths, self._make = what, paths, make
        self._taken = _stamps(paths)
        self._refused: object = None  # the files that were found wanting last, so that it is logged once
        self.made = make()

    def refresh(self) -> bool:
        """Whether it has been made again. Raises nothing."""
        now = _stamps(self._paths)
        if now == self._taken:
            return False
        try:
            self.made = self._make()
        except (LabanError, OSError) as error:
            if now != self._refused:
                self._refused = now
                logger.error("%s is kept as it was: %s", self._what, error)
            return False
        self._taken, self._refused = now, None
        return True


class PeerCredentials:
    """For channels to other gateways, of certificates that may be renewed."""

    def __init__(self, tls: PeerTls) -> None:
        """Raises NotFound or InvalidInput, naming the setting."""
        self._files = _Renewed(
            "the certificate towards other gateways", (tls.cert, tls.key, tls.ca), lambda: _peer_credentials(tls)
        )

    @property
    def of_channel(self) -> grpc.ChannelCredentials:
        return self._files.made

    def refresh(self) -> bool:
        """Whether they have changed, for channels from now on."""
        return self._files.refresh()


def _peer_credentials(tls: PeerTls) -> grpc.ChannelCredentials:
    import grpc

    check_peer_tls(tls)
    ca, key, cert = (None if path is None else Path(path).read_bytes() for path in (tls.ca, tls.key, tls.cert))
    return grpc.ssl_channel_credentials(ca, key, cert)


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Raises NotFound or InvalidInput, naming the setting."""
    import grpc  # the configuration names ServerTls, and needs none of it

    files = _Renewed("the certificate", (tls.cert, tls.key, tls.client_ca), lambda: _configuration(tls))

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC at every handshake. None: as before."""
        return files.made if files.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        files.made, changed, require_client_authentication=tls.client_ca is not None
    )


class ServerContext(ssl.SSLContext):
    """For HTTP, of certificates that may be renewed: each connection is another's, which was made of them last."""

    _files: _Renewed[ssl.SSLContext]

    def __new__(cls, tls: ServerTls) -> Self:
        """Raises NotFound or InvalidInput, naming the setting."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made._files = _Renewed("the certificate", (tls.cert, tls.key, tls.client_ca), lambda: _context(tls))
        return made

    def refresh(self) -> None:
        """Take what has changed, for connections from now on."""
        self._files.refresh()

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Asked by the event loop for every connection. To go on with a session of a context before, past what is
        trusted now, is not possible: only that one could."""
        return self._files.made.wrap_bio(*args, **options)


def _context(tls: ServerTls) -> ssl.SSLContext:
    check_server_tls(tls)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert, tls.key)
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    return context


def check_server_tls(tls: ServerTls) -> None:
    """Say what gRPC would not: which file is missing or is not what it should be, and whether key and certificate
    belong together. Raises NotFound or InvalidInput."""
    _check({"tls_cert": tls.cert, "tls_key": tls.key, "tls_client_ca": tls.client_ca})


def check_peer_tls(tls: PeerTls) -> None:
    """As `check_server_tls`."""
    _check({"peer_cert": tls.cert, "peer_key": tls.key, "peer_ca": tls.ca})


def _check(files: Mapping[str, str | None]) -> None:
    """Of settings' names and paths: a certificate, its key, and authorities."""
    for setting, path in files.items():
        if path is not None and not Path(path).is_file():
            raise NotFound("there is no such file", field=f"server.{setting}", value=path)
    (cert_name, cert), (key_name, key), (ca_name, ca) = files.items()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if cert is not None:
        try:
            context.load_cert_chain(cert, key)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise InvalidInput(
                f"not a PEM certificate with its key ({reason}), expected those of server.{cert_name} and"
                f" server.{key_name}",
                field=f"server.{cert_name}",
                value=cert,
            ) from None
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (ssl.SSLError, OSError):
            raise InvalidInput(
                "expected PEM certificates of authorities", field=f"server.{ca_name}", value=ca
            ) from None


def _configuration(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    import grpc

    check_server_tls(tls)
    authorities = None if tls.client_ca is None else Path(tls.client_ca).read_bytes()
    pair = (Path(tls.key).read_bytes(), Path(tls.cert).read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=authorities)


def _stamps(paths: Sequence[str | None]) -> tuple[object, ...]:
    def stamp(path: str | None) -> object:
        try:
            found = None if path is None else Path(path).stat()
        except OSError:
            return None
        return found and (found.st_ino, found.st_mtime_ns, found.st_size)

    return tuple(map(stamp, paths))
