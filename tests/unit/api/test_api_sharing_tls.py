"""Several gateways over one journal that serve TLS: each asks the others with its certificates, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from executor_rig import until
from executor_workflows import CHAIN, asynchronous, tool_step
from members_rig import LEASE_S, Book, Cell, Cells, cells

from laban.actors.errors import Conflict, FailedPrecondition, InvalidInput, NotFound, Unauthenticated, Unavailable
from laban.cluster.client import AsyncClient
from laban.cluster.client_credentials import Credentials
from laban.cluster.config import LabanConfig
from laban.cluster.door import Door
from laban.cluster.gateway import Gateway
from laban.cluster.gateway_sharing import Sharing
from laban.cluster.records import Event
from laban.cluster.sessions import Sessions
from laban.cluster.start_checks import checked
from laban.cluster.tls import PeerTls, check_peer_tls

CHAIN_OF = CHAIN.replace("question: {type: string}", "question: {default: why}")
NAME = "laban.internal"
Settings = Callable[[int], Mapping[str, str]]
"""Of `server`, for each of several."""


class Papers:
    """Certificates in a folder: servers', of one authority; those they show each other and clients show, of another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authorities = {kind: trustme.CA() for kind in ("servers", "clients", "strangers")}
        for kind, authority in self.authorities.items():
            authority.cert_pem.write_to_path(folder / f"{kind}.pem")

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def issue(self, kind: str, name: str, *hosts: str) -> tuple[str, str]:
        """Certificate and key, in one step each, as who renews them does it."""
        issued = self.authorities[kind].issue_cert(*hosts)
        issued.private_key_pem.write_to_path(f"{self.path(name)}.key.new")
        issued.cert_chain_pems[0].write_to_path(f"{self.path(name)}.pem.new")
        for suffix in ("key", "pem"):
            os.replace(f"{self.path(name)}.{suffix}.new", f"{self.path(name)}.{suffix}")
        return self.path(f"{name}.pem"), self.path(f"{name}.key")

    def server(self, number: int, kind: str = "servers", *hosts: str) -> dict[str, str]:
        cert, key = self.issue(kind, f"server-{number}", *(hosts or ("127.0.0.1",)))
        return {"tls_cert": cert, "tls_key": key, "peer_ca": self.path("servers.pem")}

    def mutual(self, number: int, kind: str = "clients") -> dict[str, str]:
        """Clients need a certificate, and so do the others: no server's own one is of that authority."""
        cert, key = self.issue(kind, f"peer-{number}", f"laban-{number}.example.org")
        return self.server(number) | {"tls_client_ca": self.path("clients.pem"), "peer_cert": cert, "peer_key": key}


class Served:
    def __init__(self, cell: Cell, url: str, papers: Papers, settings: Mapping[str, str]) -> None:
        config = checked(LabanConfig.model_validate({"journal": {"url": url}, "server": settings}))
        self.cell, self.papers = cell, papers
        self.asks = config.server.tls_client_ca is not None
        self.gateway = Gateway(
            cell.executor,
            Sessions(cell.dispatcher, cell.executor.languages.of),
            cell.executor.status,
            door=Door(Book()),
            tls=config.server.tls,
            sharing=Sharing(config, cell.executor, cell.membership),
        )

    async def start(self) -> None:
        self.address = f"127.0.0.1:{await self.gateway.start()}"
        self.cell.membership.show(address=self.address)

    def client(self, token: str = "acme", ca: str = "servers.pem", **options: str) -> AsyncClient:
        if self.asks and not options:
            cert, key = self.papers.issue("clients", "client", "client@example.org")
            options = {"cert": cert, "key": key}
        credentials = Credentials(token, ca=self.papers.path(ca), **options)
        return AsyncClient(self.address, timeout_s=20, credentials=credentials)


@asynccontextmanager
async def served(folder: Path, papers: Papers, settings: Settings) -> AsyncIterator[tuple[Cells, Served, Served]]:
    async with cells(folder) as made:
        both = [Served(cell, made.url, papers, settings(number)) for number, cell in enumerate(made.all)]
        for each in both:
            await each.start()
        addresses = {each.address for each in both}
        await until(lambda: all({each.address for each in cell.membership.members} == addresses for cell in made.all))
        try:
            yield made, both[0], both[1]
        finally:
            for each in both:
                await each.gateway.stop(0)


@pytest.mark.parametrize("kind", ["server", "mutual", "one authority"])
def test_any_gateway_answers_as_the_owner_does(tmp_path: Path, kind: str) -> None:
    """Answers, streams, who calls, and errors with their status, field and details."""
    papers = Papers(tmp_path)

    def settings(number: int) -> Mapping[str, str]:
        if kind == "one authority":  # what they serve with is what they show each other
            papers.authorities["clients"] = papers.authorities["servers"]
            return papers.server(number) | {"tls_client_ca": papers.path("servers.pem")}
        return papers.server(number) if kind == "server" else papers.mutual(number)

    async def main() -> None:
        async with served(tmp_path, papers, settings) as (_, first, second), contextlib.AsyncExitStack() as stack:
            here, there = [await stack.enter_async_context(each.client()) for each in (first, second)]
            first.cell.worker.paused = True
            runs = (await here.submit(CHAIN_OF)).workflow_id
            assert await there.get(runs) == await here.get(runs)
            watching = asyncio.create_task(there.wait(runs))
            first.cell.worker.resume()
            assert (await watching).state == "succeeded"
            tests = (await here.submit(tool_step())).workflow_id
            lease = await there.lease_step(["run_tests"], workflow_id=tests)
            assert lease is not None
            for client in (here, there):
                with pytest.raises(NotFound) as unknown:
                    await client.complete_step(tests, "nothing", "fine")
                assert unknown.value.field == "address"
                with pytest.raises(FailedPrecondition) as refused:
                    await client.complete_step(tests, "tests", "x", lease_id="gone")
                assert refused.value.field == "lease_id"
            await there.complete_step(tests, "tests", "fine", lease_id=lease.lease_id)
            with pytest.raises(Conflict):
                await there.complete_step(tests, "tests", "not")
            first.cell.worker.paused = True
            again = (await here.submit(CHAIN_OF)).workflow_id
            async with second.client("rival") as rival, second.client("stranger") as stranger:
                with pytest.raises(NotFound):
                    await rival.get(again)
                with pytest.raises(Unauthenticated):
                    await stranger.get(again)

    asyncio.run(main())


@asynchronous
async def test_a_watch_goes_on_where_the_workflow_went(tmp_path: Path) -> None:
    papers = Papers(tmp_path)
    async with (
        served(tmp_path, papers, papers.mutual) as (made, first, second),
        first.client() as here,
        second.client() as there,
    ):
        first.cell.worker.paused = True
        workflow_id = (await here.submit(CHAIN_OF)).workflow_id
        seen: dict[AsyncClient, list[Event]] = {here: [], there: []}

        async def watch(client: AsyncClient) -> None:
            async for item in client.watch(workflow_id):
                if isinstance(item, Event):
                    seen[client].append(item)

        watches = [asyncio.create_task(watch(client)) for client in seen]
        await until(lambda: all(seen.values()))
        first.cell.store.pause()
        await made.pass_time(LEASE_S + 3)
        first.cell.store.wake()
        await asyncio.gather(*watches)
        assert seen[here] == seen[there]
        assert [event.number for event in seen[here]] == list(range(1, 1 + len(seen[here])))
        assert made.with_it(workflow_id) == [second.cell]


@pytest.mark.parametrize("wrong", ["the owner's", "the asker's", "none"])
def test_who_has_a_certificate_of_another_authority_is_refused(
    tmp_path: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever side is the stranger: the owner, whose certificate is not trusted, or the asker."""
    papers = Papers(tmp_path)

    def settings(number: int) -> Mapping[str, str]:
        if wrong == "the owner's" and number == 0:
            return papers.mutual(number) | papers.server(number, "strangers")
        if wrong == "the asker's" and number == 1:
            return papers.mutual(number, "strangers")
        given = papers.mutual(number)
        if wrong == "none" and number == 1:  # that of its own server, which is no client's
            del given["peer_cert"], given["peer_key"]
        return given

    async def main() -> None:
        async with served(tmp_path, papers, settings) as (_, first, second):
            ca = "strangers.pem" if wrong == "the owner's" else "servers.pem"
            cert, key = papers.issue("clients", "client", "client@example.org")
            async with first.client(ca=ca, cert=cert, key=key) as here, second.client() as there:
                first.cell.worker.paused = True
                workflow_id = (await here.submit(CHAIN_OF)).workflow_id
                with pytest.raises(Unavailable) as refused:
                    await there.get(workflow_id)
                assert "127.0.0.1" not in refused.value.message  # where it is the log says
                if wrong == "the owner's":
                    assert "do not trust each other's certificates" in refused.value.message

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert any("does not answer" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("named", [True, False])
def test_the_name_that_certificates_are_for(tmp_path: Path, named: bool) -> None:
    papers = Papers(tmp_path)

    def settings(number: int) -> Mapping[str, str]:
        if number == 0:
            return papers.server(number, "servers", NAME)  # not the host that others reach it at
        return papers.server(number) | ({"peer_name": NAME} if named else {})

    async def main() -> None:
        async with served(tmp_path, papers, settings) as (_, first, second), second.client() as there:
            first.cell.worker.paused = True
            workflow_id = (await first.cell.submit(CHAIN_OF, tenant="acme")).workflow_id
            if named:
                assert (await there.get(workflow_id)).state == "running"
            else:
                with pytest.raises(Unavailable, match="do not trust each other's certificates"):
                    await there.get(workflow_id)

    asyncio.run(main())


@asynchronous
async def test_certificates_that_are_renewed_by_another_authority(tmp_path: Path) -> None:
    papers = Papers(tmp_path)
    async with served(tmp_path, papers, papers.mutual) as (_, first, second):
        async with first.client() as here, second.client() as there:
            first.cell.worker.paused = True
            runs = (await here.submit(CHAIN_OF)).workflow_id
            assert (await there.get(runs)).state == "running"
        for kind in ("servers", "clients"):
            papers.authorities[kind] = trustme.CA()
            papers.authorities[kind].cert_pem.write_to_path(papers.path(f"{kind}.new"))
            os.replace(papers.path(f"{kind}.new"), papers.path(f"{kind}.pem"))
        for number in (0, 1):
            papers.mutual(number)
        async with second.client() as there:
            assert (await there.get(runs)).state == "running"


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    papers = Papers(tmp_path)
    cert, key = papers.issue("clients", "a", "a")
    _, other = papers.issue("clients", "b", "b")
    with pytest.raises(InvalidInput, match=r"server\.peer_cert"):
        check_peer_tls(PeerTls(None, cert, other))
    with pytest.raises(InvalidInput, match=r"server\.peer_ca"):
        check_peer_tls(PeerTls(key))
    with pytest.raises(NotFound, match=r"server\.peer_ca"):
        checked(LabanConfig.model_validate({"server": papers.server(0) | {"peer_ca": str(tmp_path / "no.pem")}}))
    for given, why in (({"peer_cert": cert}, "peer_key is missing"), ({"peer_ca": cert}, "without tls_cert")):
        with pytest.raises(ValueError, match=why):
            LabanConfig.model_validate({"server": given})
