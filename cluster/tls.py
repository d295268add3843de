"""TLS towards clients and other gateways: certificates from files, read again when they change."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laban.actors.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    import grpc

logger = logging.getLogger(__name__)


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


class PeerCredentials:
    """For channels to other gateways, of certificates that may be renewed."""

    def __init__(self, tls: PeerTls) -> None:
        """Raises NotFound or InvalidInput, naming the setting."""
        check_peer_tls(tls)
        self._tls, self._seen = tls, _stamps_of(tls.cert, tls.key, tls.ca)
        self.of_channel = self._made()

    def refresh(self) -> bool:
        """Whether they have changed, for channels from now on."""
        now = _stamps_of(self._tls.cert, self._tls.key, self._tls.ca)
        if now == self._seen:
            return False
        self._seen = now
        try:
            check_peer_tls(self._tls)
            self.of_channel = self._made()
        except (NotFound, InvalidInput, OSError) as error:  # half a renewal: the next change is looked at again
            logger.error("the certificate towards other gateways is kept as it was: %s", error)
            return False
        return True

    def _made(self) -> grpc.ChannelCredentials:
        import grpc

        tls = self._tls
        ca, key, cert = (None if path is None else Path(path).read_bytes() for path in (tls.ca, tls.key, tls.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Raises NotFound or InvalidInput, naming the setting."""
    import grpc  # the configuration names ServerTls, and needs none of it

    check_server_tls(tls)
    seen = _stamps(tls)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC at every handshake. None: as before."""
        nonlocal seen
        now = _stamps(tls)
        if now == seen:
            return None
        seen = now
        try:
            check_server_tls(tls)
            return _configuration(tls)
        except (NotFound, InvalidInput) as error:  # half a renewal: the next handshake looks again
            logger.error("the certificate is kept as it was: %s", error)
            return None

    return grpc.dynamic_ssl_server_credentials(
        _configuration(tls), changed, require_client_authentication=tls.client_ca is not None
    )


class ServerContext:
    """For HTTP, of certificates that may be renewed."""

    def __init__(self, tls: ServerTls) -> None:
        """Raises NotFound or InvalidInput, naming the setting."""
        check_server_tls(tls)
        self._tls, self._seen = tls, _stamps(tls)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.load_cert_chain(tls.cert, tls.key)
        if tls.client_ca is not None:
            self.context.load_verify_locations(tls.client_ca)
            self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.set_alpn_protocols(["http/1.1"])

    def refresh(self) -> None:
        """Take what has changed, for connections from now on."""
        now = _stamps(self._tls)
        if now == self._seen:
            return
        self._seen = now
        try:
            check_server_tls(self._tls)
            self.context.load_cert_chain(self._tls.cert, self._tls.key)
        except (NotFound, InvalidInput) as error:  # half a renewal: the next time looks again
            logger.error("the certificate is kept as it was: %s", error)


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

    authorities = None if tls.client_ca is None else Path(tls.client_ca).read_bytes()
    pair = (Path(tls.key).read_bytes(), Path(tls.cert).read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=authorities)


def _stamps(tls: ServerTls) -> tuple[object, ...]:
    return _stamps_of(tls.cert, tls.key, tls.client_ca)


def _stamps_of(*paths: str | None) -> tuple[object, ...]:
    def stamp(path: str | None) -> object:
        try:
            found = None if path is None else Path(path).stat()
        except OSError:
            return None
        return found and (found.st_ino, found.st_mtime_ns, found.st_size)

    return tuple(map(stamp, paths))
