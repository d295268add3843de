"""Choreography over scripted sessions: a real gRPC server on a loopback port."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from api_fakes import MESSAGE, FakeSessions, error_of, eventually, serving
from google.protobuf.duration_pb2 import Duration

from laban.actors.calls import Sampling
from laban.actors.errors import InvalidInput, NotFound, OutOfRange
from laban.cluster.records import SessionPlacement, TokenChunk
from laban.proto import laban_pb2 as pb

CHUNKS = [TokenChunk("", "m1", 1, 0, (4,), "te"), TokenChunk("", "m1", 1, 1, (5,), "xt")]


def test_a_session_from_open_to_close() -> None:
    async def main() -> None:
        async with serving() as served:
            async with await served.client.open_session(1.5) as session:
                assert served.sessions.calls[-1] == ("open", 1.5)
                assert (session.session_id, session.ttl_s) == ("s-1", 1.5)
                record = await session.prefill(
                    "text",
                    role="system",
                    name="ann",
                    view=["m1", MESSAGE, SessionPlacement("m2", 0, 1, 4)],
                    layout="as_encoded",
                    position=40,
                    fidelity="blended",
                    recompute_share=0.25,
                )
                assert record == MESSAGE
                assert served.sessions.calls[-1] == (
                    "prefill",
                    "system",
                    {
                        "text": "text",
                        "token_ids": None,
                        "name": "ann",
                        "view": [SessionPlacement("m1"), SessionPlacement("m1"), SessionPlacement("m2", 0, 1, 4)],
                        "layout": "as_encoded",
                        "position": 40,
                        "fidelity": "blended",
                        "recompute_share": 0.25,
                    },
                )
                await session.prefill(token_ids=[3, 1])
                _, role, asked = served.sessions.calls[-1]
                assert (role, asked["token_ids"], asked["text"]) == ("user", [3, 1], None)
                assert (asked["layout"], asked["fidelity"], asked["position"]) == ("packed", "exact", None)
                assert (await session.get()).messages == (MESSAGE,)
                assert await session.release("m1", MESSAGE) == 2
                assert await session.release() == 99
                assert served.sessions.calls[-2:] == [("release", ("m1", "m1"), False), ("release", (), True)]
            assert served.sessions.open_sessions == set()
            error = await error_of(session.get())
            assert type(error) is NotFound
            assert error.field == "session_id"

    asyncio.run(main())


def test_decode_streams_chunks_and_then_the_message() -> None:
    async def main() -> None:
        async with serving() as served:
            session = await served.client.open_session()
            assert served.sessions.calls[-1] == ("open", None)
            items = [
                item
                async for item in session.decode(
                    view=["m1"], prefill="So", max_tokens=9, temperature=0.5, top_p=0.9, top_k=4, seed=3,
                    stop=["END", "\n"], forced_text="ab", logprobs=2,
                )
            ]  # fmt: skip
            assert items == [*CHUNKS, MESSAGE]
            asked = served.sessions.calls[-1][1]
            forced = (ord("a"), ord("b"))
            assert asked["sampling"] == Sampling(9, 0.5, 0.9, 4, 3, ("END", "\n"), (), forced, 2)
            assert (asked["role"], asked["prefill"]) == ("assistant", "So")
            assert await session.generate() == MESSAGE
            assert served.sessions.calls[-1][1]["sampling"] == Sampling(256)
            assert served.sessions.aborted == 0

    asyncio.run(main())


def test_a_client_that_leaves_aborts_its_decode() -> None:
    async def main() -> None:
        async with serving(sessions=FakeSessions(hang=True)) as served:
            session = await served.client.open_session()
            stream = session.decode()
            assert await anext(stream) == CHUNKS[0]
            await stream.aclose()
            await eventually(lambda: served.sessions.aborted == 1, "the decode is aborted")
            error = await error_of(session.decode(timeout_s=0.3))
            assert error.status == "DEADLINE_EXCEEDED"
            await eventually(lambda: served.sessions.aborted == 2, "the decode is aborted")

    asyncio.run(main())


def test_paths_of_the_sessions_become_those_of_the_request() -> None:
    async def main() -> None:
        async with serving() as served:
            session = await served.client.open_session()
            error = await error_of(session.prefill("x", view=["m1", SessionPlacement("m1", 5000)]))
            assert type(error) is OutOfRange
            assert (error.field, error.value) == ("view.placements[1].position", 5000)

    asyncio.run(main())


def placed(**fields: Any) -> pb.View:
    return pb.View(placements=[pb.Placement(message_id="m1"), pb.Placement(message_id="m1", **fields)])


BAD = [
    ("GetSession", pb.GetSessionRequest(), "session_id", ""),
    ("GetSession", pb.GetSessionRequest(session_id="foreign"), "session_id", "NOT_FOUND"),
    ("Prefill", pb.PrefillRequest(session_id="s-1", role="user"), "content", ""),
    ("Prefill", pb.PrefillRequest(session_id="s-1", text="x"), "role", ""),
    ("Prefill", pb.PrefillRequest(session_id="s-1", text="x", role="robot"), "role", ""),
    ("Prefill", pb.PrefillRequest(text="x", role="user"), "session_id", ""),
    ("Prefill", pb.PrefillRequest(session_id="s-1", text="x", role="user", position=-1), "position", "OUT_OF_RANGE"),
    ("Prefill", pb.PrefillRequest(session_id="s-1", text="x", role="user", fidelity=5), "fidelity", "INVALID_ARGUMENT"),
    (
        "Prefill",
        pb.PrefillRequest(session_id="s-1", text="x", role="user", view=placed(position=-7)),
        "view.placements[1].position",
        "OUT_OF_RANGE",
    ),
    ("Decode", pb.DecodeRequest(session_id="s-1", view=pb.View(layout=9)), "view.layout", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", view=pb.View(placements=[{}])), "view.placements[0].message_id", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", role="robot"), "role", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", name="a\nb"), "name", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", name="n" * 257), "name", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", prefill="p" * 4_000_001), "prefill", ""),
    (
        "Decode",
        pb.DecodeRequest(session_id="s-1", sampling={"forced_text": "f" * 4_000_001}),
        "sampling.forced_text",
        "",
    ),
    ("Prefill", pb.PrefillRequest(session_id="s-1", role="user", text="t" * 4_000_001), "text", ""),
    ("OpenSession", pb.OpenSessionRequest(ttl=Duration(seconds=1, nanos=-5)), "ttl", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", fidelity=6), "fidelity", "INVALID_ARGUMENT"),
    ("Decode", pb.DecodeRequest(session_id="s-1", tools=[pb.Tool(name="t")]), "tools", "UNIMPLEMENTED"),
    ("Decode", pb.DecodeRequest(session_id="s-1", response_schema={}), "response_schema", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", response_schema={"json": '{"not": {}}'}), "response_schema", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", response_schema={"json": '{"type": 3}'}), "response_schema", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", choices=["a", "b", "a"]), "choices[2]", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", choices=["a"], response_schema={"json": "{}"}), "choices", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", sampling={"max_tokens": -4}), "sampling.max_tokens", ""),
    ("Decode", pb.DecodeRequest(session_id="s-1", sampling={"top_p": float("nan")}), "sampling.top_p", ""),
    ("Release", pb.ReleaseRequest(session_id="s-1", message_ids=["m1"], all=True), "message_ids", ""),
    ("CloseSession", pb.CloseSessionRequest(), "session_id", ""),
]


def test_bad_requests_name_the_field() -> None:
    async def main() -> None:
        async with serving() as served:
            await served.client.open_session()
            channel = served.client._channel
            for method, request, path, status in BAD:
                call = getattr(channel.choreography, method)
                error = await error_of(
                    channel.items(call(request)) if method == "Decode" else channel.call(call, request)
                )
                assert (error.field, error.status) == (path, status or "INVALID_ARGUMENT"), request

    asyncio.run(main())


def test_a_ttl_is_handed_over_as_it_is() -> None:
    async def main() -> None:
        async with serving() as served:
            call = served.client._channel.choreography.OpenSession
            for ttl, seconds in ((Duration(seconds=-3), -3.0), (Duration(), 0.0), (Duration(nanos=500_000_000), 0.5)):
                await call(pb.OpenSessionRequest(ttl=ttl))
                assert served.sessions.calls[-1] == ("open", seconds)
            for bad in (0, -1.0, float("nan"), float("inf")):
                with pytest.raises(InvalidInput):
                    await served.client.open_session(bad)

    asyncio.run(main())
