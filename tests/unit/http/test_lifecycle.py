"""Who may ask, how much, over what, and what happens when the server ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import trustme
import yaml
from api_fakes import eventually
from chat_rig import ChatRig, chat_rig

from laban.actors.errors import FailedPrecondition
from laban.cluster.chats import ChatBegun
from laban.cluster.door import Door
from laban.cluster.gateway import GatewayLimits
from laban.cluster.http.server import _listen
from laban.cluster.meter import Meter
from laban.cluster.records import TokenChunk
from laban.cluster.tls import ServerTls
from laban.cluster.tokens import TokenBook, hash_token

HI = [{"role": "user", "content": "hi"}]
PATH = "POST /v1/chat/completions HTTP/1.1"


def book(folder: Path) -> TokenBook:
    def token(name: str, tenant: str, *roles: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "sha256": hash_token(name), "tenant": tenant, "roles": list(roles or ["submit"]), **more}

    tokens = [token("ann", "acme"), token("eve", "other"), token("max", "acme", fidelity="direct")]
    tokens += [token("looker", "acme", "read"), token("busy", "quick"), token("spent", "poor")]
    tenants = {"quick": {"requests_per_s": 0.01}, "poor": {"tokens_per_minute": 1}}
    (folder / "tokens.yaml").write_text(yaml.safe_dump({"tokens": tokens, "tenants": tenants}))
    return TokenBook(folder / "tokens.yaml")


def test_tokens_roles_tenants_and_quotas(tmp_path: Path) -> None:
    async def main() -> None:
        async with chat_rig(door=Door(book(tmp_path))) as rig:
            rig.dispatcher._tenants = rig.server._exchanges._door
            client = rig.openai()  # slow to make

            async def ask(key: str) -> Any:
                return await client.with_options(api_key=key).chat.completions.create(
                    model=rig.model, messages=HI, max_tokens=3, temperature=0
                )

            with pytest.raises(openai.AuthenticationError) as unknown:
                await ask("nobody")
            assert unknown.value.code == "invalid_api_key"
            with pytest.raises(openai.PermissionDeniedError):
                await ask("looker")
            assert [model.id async for model in client.with_options(api_key="looker").models.list()] == [rig.model]
            first, again, other = await ask("ann"), await ask("ann"), await ask("eve")
            cached = [made.usage.prompt_tokens_details.cached_tokens for made in (first, again, other)]
            assert cached == [0, first.laban["tokens_read"], 0]  # nobody finds another tenant's
            assert [made.laban["fidelity"] for made in (first, await ask("max"))] == ["exact", "direct"]
            await ask("busy")
            await ask("spent")
            for key in ("busy", "spent"):
                with pytest.raises(openai.RateLimitError) as often:
                    await ask(key)
                assert float(often.value.response.headers["retry-after"]) >= 1
                assert often.value.code == "rate_limit_exceeded"
            assert (await rig.ask("GET /health HTTP/1.1"))[0] == 200

    asyncio.run(main())


def test_requests_are_counted_and_limited() -> None:
    class Noted(Meter):
        def __init__(self) -> None:
            self.ended: list[tuple[str, str]] = []

        def request_ended(self, method: str, code: str, seconds: float | None) -> None:
            self.ended.append((method, code))

    meter = Noted()

    async def main() -> None:
        async with chat_rig(limits=GatewayLimits(max_message_bytes=2000, max_concurrent_calls=1), meter=meter) as rig:
            client = rig.openai()
            with pytest.raises(openai.APIStatusError) as large:
                await client.chat.completions.create(model=rig.model, messages=HI, user="x" * 3000)
            assert large.value.status_code == 413
            status, _ = await rig.ask(f"{PATH}\r\nTransfer-Encoding: chunked\r\nContent-Length-Not: 1", b"zz\r\n")
            assert status == 400
            stream = await client.chat.completions.create(model=rig.model, messages=HI, max_tokens=400, stream=True)
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(model=rig.model, messages=HI)
            await stream.close()
            await eventually(lambda: not rig.server._exchanges._tasks, "it is over")
            assert meter.ended[-1] == ("OpenAI/Chat", "CANCELLED")
            await client.chat.completions.create(model=rig.model, messages=HI, max_tokens=2)
            assert meter.ended[-1] == ("OpenAI/Chat", "OK")
            assert ("OpenAI/Chat", "RESOURCE_EXHAUSTED") in meter.ended

    asyncio.run(main())


def test_streams_end_before_the_server_does() -> None:
    async def main() -> None:
        async with chat_rig() as rig:
            client = rig.openai()
            stream = await client.chat.completions.create(model=rig.model, messages=HI, max_tokens=40, stream=True)
            chunks = aiter(stream)
            await anext(chunks)
            stopping = asyncio.create_task(rig.server.stop(60))
            await eventually(lambda: rig.server._exchanges.closing, "it ends")
            status, body = await rig.ask(PATH, b"{}")
            assert (status, json.loads(body)["error"]["type"]) == (503, "server_error")
            left = [chunk async for chunk in chunks]
            assert left[-1].choices[0].finish_reason == "length"
            await stopping
            with pytest.raises(openai.APIConnectionError):
                await client.models.list()

    asyncio.run(main())


def hanging(rig: ChatRig, *, after: int, error: Exception | None = None) -> None:
    async def reply(ask: Any, *, tenant: str = "") -> Any:
        yield ChatBegun(7)
        for index in range(after):
            yield TokenChunk("", "reply", 1, index, (index,), "x")
        if error is not None:
            raise error
        await asyncio.Event().wait()

    rig.chats.reply = reply  # type: ignore[method-assign]


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_what_does_not_end_in_time_is_told_so(after: int, streaming: bool) -> None:
    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            hanging(rig, after=after)

            async def read() -> None:
                made = await rig.openai().chat.completions.create(model=rig.model, messages=HI, stream=streaming)
                async for _ in made:
                    continue

            reading = asyncio.create_task(read())
            await eventually(lambda: bool(rig.server._exchanges._tasks), "it is asked")
            await asyncio.sleep(0)
            await rig.server.stop(0.2)
            with pytest.raises(openai.APIError) as raised:
                await reading
            if isinstance(raised.value, openai.APIStatusError):
                assert raised.value.status_code == 503
            assert "stopping" in str(raised.value)

    asyncio.run(main())


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("error", [FailedPrecondition("not now"), ZeroDivisionError("a bug")])
def test_errors_before_and_within_a_stream(after: int, error: Exception) -> None:
    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            hanging(rig, after=after, error=error)

            async def read() -> None:
                async for _ in await rig.openai().chat.completions.create(model=rig.model, messages=HI, stream=True):
                    continue

            with pytest.raises(openai.APIError) as raised:
                await read()
            assert isinstance(raised.value, openai.APIStatusError) == (after == 0)
            assert ("incident" in str(raised.value)) == isinstance(error, ZeroDivisionError)
            assert "a bug" not in str(raised.value)

    asyncio.run(main())


def test_over_tls_with_certificates_that_are_renewed(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    paths = ServerTls(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))

    def issue(authority: trustme.CA) -> None:
        issued = authority.issue_cert("127.0.0.1")
        (tmp_path / "key.pem").write_bytes(issued.private_key_pem.bytes())
        (tmp_path / "cert.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))

    async def main() -> None:
        issue(old)
        async with chat_rig(scripted=True, tls=paths) as rig:

            async def models(authority: trustme.CA) -> int:
                context = ssl.create_default_context()
                authority.configure_trust(context)
                async with httpx.AsyncClient(verify=context) as client:
                    return (await client.get(f"https://127.0.0.1:{rig.port}/v1/models")).status_code

            assert await models(old) == 200
            with pytest.raises(httpx.ConnectError):
                await models(new)
            issue(new)
            rig.server.refresh()
            assert await models(new) == 200
            (tmp_path / "cert.pem").write_text("half of it")
            rig.server.refresh()
            assert await models(new) == 200

    asyncio.run(main())


def test_a_port_that_is_taken_is_named() -> None:
    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            with pytest.raises(FailedPrecondition, match="started before"):
                await rig.server.start()
            other = type(rig.server)(rig.chats)
            with pytest.raises(FailedPrecondition, match="in use"):
                await other.start("127.0.0.1", rig.port)
            with contextlib.suppress(FailedPrecondition):
                await other.stop()

    asyncio.run(main())


def test_no_event_waits_for_the_one_before_it_to_be_acknowledged() -> None:
    with _listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        taken, _ = listening.accept()
        with taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
