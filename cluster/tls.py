"""TLS of the gateway: certificates from files, read again when they change, as those who renew them expect."""

from __future__ import annotations

import logging
import ssl
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
    for setting, path in (("tls_cert", tls.cert), ("tls_key", tls.key), ("tls_client_ca", tls.client_ca)):
        if path is not None and not Path(path).is_file():
            raise NotFound("there is no such file", field=f"server.{setting}", value=path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert, tls.key)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise InvalidInput(
            f"not a PEM certificate with its key ({reason}), expected those of server.tls_cert and server.tls_key",
            field="server.tls_cert",
            value=tls.cert,
        ) from None
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, OSError):
            raise InvalidInput(
                "expected PEM certificates of authorities", field="server.tls_client_ca", value=tls.client_ca
            ) from None


def _configuration(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    import grpc

    authorities = None if tls.client_ca is None else Path(tls.client_ca).read_bytes()
    pair = (Path(tls.key).read_bytes(), Path(tls.cert).read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=authorities)


def _stamps(tls: ServerTls) -> tuple[object, ...]:
    def stamp(path: str | None) -> object:
        try:
            found = None if path is None else Path(path).stat()
        except OSError:
            return None
        return found and (found.st_ino, found.st_mtime_ns, found.st_size)

    return tuple(map(stamp, (tls.cert, tls.key, tls.client_ca)))
