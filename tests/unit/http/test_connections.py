"""Connections that bring no request, or not all of one, are closed; those that wait between requests are kept."""

from __future__ import annotations

import asyncio

import pytest
from chat_rig import chat_rig

from laban.cluster.http import connections

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return head.split(b"\r\n")[0] + await reader.readexactly(length)


@pytest.mark.parametrize("sent", [b"", b"GET /hea", HEALTH + HEALTH[:-2]])
def test_a_head_that_does_not_come_closes_the_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)

    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(sent)
            if sent.startswith(HEALTH):
                assert b"200" in await answer(reader)

            async def drip() -> None:
                while sent:
                    await asyncio.sleep(0.02)
                    writer.write(b"x")

            dripping = asyncio.ensure_future(drip())
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await asyncio.wait_for(reader.readexactly(1), 5.0)
            dripping.cancel()
            writer.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_connection_is_kept_between_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.1)

    async def main() -> None:
        async with chat_rig(scripted=True) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            for _ in range(2):
                writer.write(HEALTH)
                assert b"200" in await answer(reader)
                await asyncio.sleep(0.3)
            for part in (HEALTH[:9], HEALTH[9:]):
                writer.write(part)
                await asyncio.sleep(0.02)
            assert b"200" in await answer(reader)
            writer.close()

    asyncio.run(asyncio.wait_for(main(), 30))
