"""Certificates and authorities that are renewed while they are served: half of it is never taken, all of it is."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import trustme

from laban.cluster import tls
from laban.cluster.tls import PeerCredentials, PeerTls, ServerContext, ServerTls, server_credentials

Refresh = Callable[[], bool]
"""Whether something new was taken."""


class Papers:
    """Files of a server, and the authority of its clients."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.tls = ServerTls(*(str(folder / name) for name in ("cert.pem", "key.pem", "clients.pem")))
        self.issue()

    def issue(self) -> trustme.CA:
        """Anew; the clients' authority, which is another than before."""
        clients, issued = trustme.CA(), self.authority.issue_cert("127.0.0.1")
        _put(self.tls.key, issued.private_key_pem.bytes())
        _put(self.tls.cert, issued.cert_chain_pems[0].bytes())
        _put(self.tls.client_ca, clients.cert_pem.bytes())
        return clients


def _put(path: str, content: bytes) -> None:
    Path(f"{path}.new").write_bytes(content)
    os.replace(f"{path}.new", path)


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path)


@pytest.fixture(params=["HTTP", "gRPC", "peers"])
def refresh(request: pytest.FixtureRequest, papers: Papers, monkeypatch: pytest.MonkeyPatch) -> Refresh:
    if request.param == "peers":
        return PeerCredentials(PeerTls(papers.tls.client_ca, papers.tls.cert, papers.tls.key)).refresh
    if request.param == "gRPC":
        asked: list[Callable[[], object]] = []
        monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", lambda first, changed, **_: asked.append(changed))
        server_credentials(papers.tls)
        return lambda: asked[0]() is not None
    context = ServerContext(papers.tls)

    def taken() -> bool:
        before = context._files.made
        context.refresh()
        return context._files.made is not before

    return taken


def test_a_renewal_is_taken_once(refresh: Refresh, papers: Papers) -> None:
    assert not refresh()
    papers.issue()
    assert refresh()
    assert not refresh()


def test_what_cannot_be_read_for_a_while_is_taken_once_it_can_though_no_file_has_changed_since(
    refresh: Refresh, papers: Papers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    papers.issue()
    with monkeypatch.context() as patched:

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        patched.setattr(ssl.SSLContext, "load_cert_chain", full)
        for _ in range(3):
            assert not refresh()
        assert caplog.text.count("is kept as it was") == 1, "not at every handshake"
    assert refresh()


def test_a_renewal_that_comes_between_the_check_and_the_reading_ends_nothing(
    refresh: Refresh, papers: Papers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is gone then, and is there again a little later."""
    papers.issue()
    content = Path(papers.tls.cert).read_bytes()
    with monkeypatch.context() as patched:

        def unlinking(check: Callable[[object], None]) -> Callable[[object], None]:
            def then(given: object) -> None:
                check(given)
                Path(papers.tls.cert).unlink(missing_ok=True)

            return then

        for name in ("check_server_tls", "check_peer_tls"):
            patched.setattr(tls, name, unlinking(getattr(tls, name)))
        assert not refresh()
        assert not refresh()
    _put(papers.tls.cert, content)
    assert refresh()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_authority_that_is_taken_away_lets_nobody_in_any_more_over_http(
    papers: Papers, version: ssl.TLSVersion
) -> None:
    """Nor somebody who goes on with a session of before."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"in")
        await writer.drain()
        writer.close()

    async def main() -> None:
        old = papers.issue()
        context = ServerContext(papers.tls)
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        address = server.sockets[0].getsockname()

        def client(authority: trustme.CA) -> ssl.SSLContext:
            made = ssl.create_default_context()
            made.maximum_version = version
            papers.authority.configure_trust(made)
            authority.issue_cert("client.example.org").configure_cert(made)
            return made

        def enter(made: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
            """The session to go on with; raises OSError for who is not let in."""
            with (
                socket.create_connection(address, timeout=10) as plain,
                made.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secured,
            ):
                if secured.recv(2) != b"in":
                    raise ConnectionResetError
                return secured.session

        before = client(old)
        session = await asyncio.to_thread(enter, before)
        assert await asyncio.to_thread(enter, before, session)
        new = papers.issue()
        context.refresh()
        for resumed in (session, None):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(enter, before, resumed)
        await asyncio.to_thread(enter, client(new))
        server.close()

    asyncio.run(main())
