"""Over the wire: whose token it is decides what a client sees, and TLS who gets that far."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
import yaml
from api_fakes import error_of
from executor_rig import rig

from laban.actors.errors import Exhausted, FailedPrecondition, Forbidden, InvalidInput, NotFound, Unauthenticated
from laban.actors.errors import Unavailable as Unreachable
from laban.cluster.client import AsyncClient, Client
from laban.cluster.client_async_session import AsyncSession
from laban.cluster.client_credentials import Credentials, credentials_from
from laban.cluster.door import Door
from laban.cluster.gateway import Gateway
from laban.cluster.sessions import Sessions
from laban.cluster.tls import ServerTls, check_server_tls
from laban.cluster.tokens import TokenBook, hash_token

FLOW = """
version: 1
name: ask
messages: {q: "Well?"}
steps:
  - {step: human, external: {tool: ask}}
  - {step: answer, read: [q, human], sampling: {max_tokens: 8}}
"""
TOKENS = {"ann": ("acme", ["submit"]), "al": ("acme", ["read"]), "bob": ("banks", ["submit"]), "op": ("ops", ["admin"])}


@asynccontextmanager
async def serving(tmp_path: Path, tls: ServerTls | None = None, **quotas: Mapping[str, object]) -> AsyncIterator[str]:
    path = tmp_path / "tokens.yaml"
    entries = [
        {"name": name, "sha256": hash_token(name), "tenant": tenant, "roles": roles}
        for name, (tenant, roles) in TOKENS.items()
    ]
    path.write_text(yaml.safe_dump({"tokens": entries, "tenants": quotas}))
    async with rig() as made:
        sessions = Sessions(made.dispatcher, made.executor.languages.of)
        gateway = Gateway(made.executor, sessions, made.executor.status, door=Door(TokenBook(path)), tls=tls)
        port = await gateway.start()
        try:
            yield f"localhost:{port}"
        finally:
            await gateway.stop(0)


def client(address: str, name: str, **options: str) -> AsyncClient:
    return AsyncClient(address, timeout_s=20, credentials=Credentials(name, **options))


def test_another_tenants_workflows_are_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            serving(tmp_path) as address,
            client(address, "ann") as ann,
            client(address, "al") as al,
            client(address, "bob") as bob,
        ):
            workflow_id = (await ann.submit(FLOW, idempotency_key="k")).workflow_id
            assert (await al.get(workflow_id)).state == "running"
            assert [each.workflow_id for each in (await al.list())[0]] == [workflow_id]
            assert type(await error_of(al.cancel(workflow_id))) is Forbidden
            assert (await bob.list())[0] == []
            stranger = await error_of(bob.get("wf-0"))
            for asked in (
                bob.get(workflow_id),
                bob.cancel(workflow_id),
                bob.wait(workflow_id),
                bob.explain(workflow_id, "answer"),
                bob.complete_step(workflow_id, "human", "x"),
                bob.fail_step(workflow_id, "human", "x"),
                bob.lease_step(["ask"], workflow_id=workflow_id, wait_s=0),
            ):
                error = await error_of(asked)
                assert (type(error), error.message) == (NotFound, stranger.message)
            # The same key is another's there, and a step of the same tool is not handed over.
            theirs = (await bob.submit(FLOW, idempotency_key="k")).workflow_id
            assert theirs != workflow_id
            lease = await bob.lease_step(["ask"], wait_s=0)
            assert lease is not None
            assert lease.workflow_id == theirs
            assert await bob.lease_step(["ask"], wait_s=0) is None
            assert type(await error_of(ann.renew_lease(lease.lease_id))) is FailedPrecondition
            assert (await ann.lease_step(["ask"], wait_s=0)).workflow_id == workflow_id
            await ann.complete_step(workflow_id, "human", "Hm.")
            assert (await ann.wait(workflow_id)).state == "succeeded"

    asyncio.run(main())


def test_another_tenants_sessions_are_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            serving(tmp_path) as address,
            client(address, "ann") as ann,
            client(address, "bob") as bob,
            await ann.open_session() as mine,
            await bob.open_session() as theirs,
        ):
            first = await mine.prefill("A secret of ours.")
            assert (await mine.generate(view=[first.message_id], max_tokens=1)).tokens_reused > 0
            stolen = AsyncSession(bob._channel, await mine.get())
            assert type(await error_of(stolen.get())) is NotFound
            assert type(await error_of(stolen.prefill("x"))) is NotFound
            assert type(await error_of(stolen.generate(view=[first.message_id], max_tokens=1))) is NotFound
            assert type(await error_of(stolen.release_hints())) is NotFound
            assert type(await error_of(stolen.close())) is NotFound
            assert len((await mine.get()).messages) == 2
            assert (await theirs.get()).messages == ()

    asyncio.run(main())


def test_a_tenant_has_so_many_workflows_and_calls(tmp_path: Path) -> None:
    async def main() -> None:
        quotas = {"acme": {"max_workflows": 2}, "banks": {"requests_per_s": 1}}
        async with (
            serving(tmp_path, **quotas) as address,
            client(address, "ann") as ann,
            client(address, "bob") as bob,
        ):
            answers = await asyncio.gather(*(ann.submit(FLOW) for _ in range(8)), return_exceptions=True)
            first, *others = [each for each in answers if not isinstance(each, Exhausted)]
            assert len(others) == 1
            refused = await error_of(ann.submit(FLOW))
            assert type(refused) is Exhausted
            assert "of this tenant" in refused.message
            await bob.submit(FLOW)
            await ann.cancel(first.workflow_id)
            await ann.submit(FLOW)
            await bob.list()
            assert type(await error_of(bob.list())) is Exhausted

    asyncio.run(main())


def test_a_tenant_leaves_others_the_sessions_and_calls_that_all_share(tmp_path: Path) -> None:
    async def main() -> None:
        quotas = {"acme": {"max_calls": 3, "max_sessions": 2}}
        async with (
            serving(tmp_path, **quotas) as address,
            client(address, "ann") as ann,
            client(address, "bob") as bob,
        ):
            sessions = [await ann.open_session() for _ in range(2)]
            refused = await error_of(ann.open_session())
            assert (type(refused), "sessions of this tenant" in refused.message) == (Exhausted, True)
            await bob.open_session()
            await sessions[0].close()
            await ann.open_session()

            async def is_refused() -> bool:
                try:
                    await ann.list()
                except Exhausted:
                    return True
                return False

            waits = [asyncio.ensure_future(ann.lease_step(["tool"], wait_s=20)) for _ in range(3)]
            while not await is_refused():
                await asyncio.sleep(0.01)
            refused = await error_of(ann.list())
            assert refused.field == "tenants.acme.max_calls"
            await bob.list()
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
            while await is_refused():
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_roles_and_strangers(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as address:
            async with client(address, "al") as al, client(address, "op") as op, client(address, "eve") as eve:
                assert type(await error_of(al.submit(FLOW))) is Forbidden
                assert type(await error_of(al.add_worker())) is Forbidden
                assert type(await error_of(op.add_worker())) is FailedPrecondition  # let in, but there is no fleet
                assert type(await error_of(eve.status())) is Unauthenticated
                stream = [item async for item in _all(eve.watch("wf-1"))]
                assert stream == [Unauthenticated]
            async with AsyncClient(address, credentials=Credentials()) as nobody:
                assert type(await error_of(nobody.list())) is Unauthenticated

    asyncio.run(main())


async def _all(stream):
    try:
        async for item in stream:
            yield item
    except Unauthenticated:
        yield Unauthenticated


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    return made


def server_tls(authority: trustme.CA, folder: Path, client_ca: str | None = None, name: str = "server") -> ServerTls:
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(folder / f"{name}.key.new")
    issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem.new")
    for suffix in ("key", "pem"):
        os.replace(folder / f"{name}.{suffix}.new", folder / f"{name}.{suffix}")
    return ServerTls(str(folder / f"{name}.pem"), str(folder / f"{name}.key"), client_ca)


def test_tls_and_a_certificate_that_is_renewed(tmp_path: Path, authority: trustme.CA) -> None:
    async def main() -> None:
        tls = server_tls(authority, tmp_path)
        async with serving(tmp_path, tls) as address:
            trusted = str(tmp_path / "ca.pem")
            async with client(address, "ann", ca=trusted) as ann:
                assert (await ann.submit(FLOW)).state == "running"
            before = await asyncio.to_thread(_certificate, address, trusted)
            server_tls(authority, tmp_path)
            after = await asyncio.to_thread(_certificate, address, trusted)
            assert before != after
            async with client(address, "ann", ca=trusted) as ann:
                assert len((await ann.list())[0]) == 1
            async with client(address, "ann") as plain:
                assert type(await error_of(plain.list())) is Unreachable
            trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
            async with client(address, "ann", ca=str(tmp_path / "other.pem")) as stranger:
                assert type(await error_of(stranger.list())) is Unreachable

    asyncio.run(main())


def _certificate(address: str, ca: str) -> str:
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), ca_certs=ca)


def test_mutual_tls(tmp_path: Path, authority: trustme.CA) -> None:
    async def main() -> None:
        clients = trustme.CA()
        clients.cert_pem.write_to_path(tmp_path / "clients.pem")
        issued = clients.issue_cert("ann@example.org")
        issued.private_key_pem.write_to_path(tmp_path / "ann.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "ann.pem")
        tls = server_tls(authority, tmp_path, str(tmp_path / "clients.pem"))
        async with serving(tmp_path, tls) as address:
            ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "ann.pem", "ann.key"))
            async with client(address, "ann", ca=ca, cert=cert, key=key) as ann:
                assert (await ann.list())[0] == []
            async with client(address, "ann", ca=ca) as without:
                assert type(await error_of(without.list())) is Unreachable
            # The blocking client as well, its credentials from the environment.
            found = {"LABAN_TOKEN": "ann", "LABAN_TLS_CA": ca, "LABAN_TLS_CERT": cert, "LABAN_TLS_KEY": key}

            def blocking() -> list[object]:
                with Client(address, timeout_s=20, credentials=credentials_from(found)) as blocked:
                    return list(blocked.list()[0])

            assert await asyncio.to_thread(blocking) == []

    asyncio.run(main())


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path, authority: trustme.CA) -> None:
    tls, other = server_tls(authority, tmp_path), server_tls(authority, tmp_path, name="other")
    with pytest.raises(InvalidInput, match=r"server\.tls_cert"):
        check_server_tls(ServerTls(tls.cert, other.key))
    with pytest.raises(NotFound, match=r"server\.tls_key"):
        check_server_tls(ServerTls(tls.cert, str(tmp_path / "nothing")))
    with pytest.raises(InvalidInput, match=r"server\.tls_client_ca"):
        check_server_tls(ServerTls(tls.cert, tls.key, tls.key))


@pytest.mark.parametrize(
    ("found", "field"),
    [
        ({"LABAN_TLS": "yes"}, "LABAN_TLS"),
        ({"LABAN_TLS_CERT": "x"}, "cert and key"),
        ({"LABAN_TOKEN": "two\nlines"}, "token"),
    ],
)
def test_credentials_that_make_no_sense(found: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        credentials_from(found)
    assert raised.value.field == field
    assert "lines" not in str(raised.value)
    assert "secret" not in repr(Credentials("secret"))
