"""Hints of clients that orchestrate their agents themselves: a real gRPC server on a loopback port over fakes."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from api_fakes import MESSAGE, FakeSessions, error_of, serving
from google.protobuf.duration_pb2 import Duration

from laban.actors.errors import InvalidInput, NotFound
from laban.cluster.client import Client
from laban.cluster.client_hint_requests import hint_request, hints_request
from laban.cluster.records import Hint, HintOutcome, SessionPlacement
from laban.proto import laban_pb2 as pb

CLIPPED = HintOutcome("ann", "clipped", "pins last 60 s at most", 3, 40, 60.0, 30.5)


def test_a_hint_says_what_an_agent_will_read_and_hears_what_became_of_it() -> None:
    async def main() -> None:
        async with serving() as served, await served.client.open_session() as session:
            reads = ["m1", MESSAGE, SessionPlacement("m2", 0, 1, 4)]
            said = await session.hint(
                "ann", reads=reads, steps=2, in_s=1.5, pin_s=90, likelihood=0.25, layout="as_encoded",
                fidelity="direct", ttl_s=30.5,
            )  # fmt: skip
            assert said == CLIPPED
            placed = (SessionPlacement("m1"), SessionPlacement("m1"), SessionPlacement("m2", 0, 1, 4))
            asked = Hint("ann", placed, "as_encoded", "direct", 2, 1.5, 0.25, 90.0)
            assert served.sessions.calls[-1] == ("hint", (asked,), 30.5)
            assert (await session.hint("bob")).status == "ignored"
            assert served.sessions.calls[-1] == ("hint", (Hint("bob", ()),), None)
            assert await session.release_hints("ann", "bob") == 2
            assert await session.release_hints() == 99
            assert served.sessions.calls[-2:] == [
                ("release_hints", ("ann", "bob"), False), ("release_hints", (), True)
            ]  # fmt: skip

    asyncio.run(main())


def test_hints_for_several_agents_go_together() -> None:
    hints = (Hint("ann", (SessionPlacement("m1"),), steps=0), Hint("bob", (), in_s=0.0, pin_s=0.0))

    async def main() -> None:
        async with serving() as served, await served.client.open_session() as session:
            outcomes = await session.hint_all(hints, ttl_s=5)
            assert [(item.agent, item.status) for item in outcomes] == [("ann", "clipped"), ("bob", "ignored")]
            assert served.sessions.calls[-1] == ("hint", hints, 5.0)

            def synchronous() -> None:
                with Client(served.address, timeout_s=20) as client, client.open_session() as same:
                    assert same.hint_all(hints) == outcomes
                    assert same.hint("ann", ["m1", "m2", "m3"], steps=1) == CLIPPED
                    assert same.release_hints("ann") == 1

            await asyncio.to_thread(synchronous)

    asyncio.run(main())


def request(hint: dict[str, Any], **fields: Any) -> pb.HintRequest:
    made = pb.HintRequest(session_id="s-1", **fields)
    made.hints.add(agent="zoe")
    made.hints.append(pb.Hint(**{"agent": "ann", **hint}))
    return made


AFTER = Duration(seconds=-1)
BAD = [
    (pb.HintRequest(session_id="s-1"), "hints"),
    (pb.HintRequest(session_id="s-1", hints=[pb.Hint(agent=str(number)) for number in range(1025)]), "hints"),
    (request({"agent": ""}), "hints[1].agent"),
    (request({"agent": "a" * 129}), "hints[1].agent"),
    (request({"agent": "zoe"}), "hints[1].agent"),
    (request({"steps": -1}), "hints[1].steps"),
    (request({"steps": 2_000_000}), "hints[1].steps"),
    (request({"likelihood": 0.0}), "hints[1].likelihood"),
    (request({"likelihood": 1.5}), "hints[1].likelihood"),
    (request({"likelihood": math.nan}), "hints[1].likelihood"),
    (request({"starts_in": AFTER}), "hints[1].starts_in"),
    (request({"pin": AFTER}), "hints[1].pin"),
    (request({}, ttl=Duration()), "ttl"),
    (request({}, ttl=AFTER), "ttl"),
    (request({"view": pb.View(layout=7)}), "hints[1].view.layout"),
    (request({"view": pb.View(placements=[pb.Placement()])}), "hints[1].view.placements[0].message_id"),
    (pb.HintRequest(hints=[pb.Hint(agent="ann")]), "session_id"),
]


def test_hints_that_make_no_sense_name_the_field() -> None:
    async def main() -> None:
        async with serving() as served, await served.client.open_session():
            channel = served.client._channel
            asked = len(served.sessions.calls)
            for bad, path in BAD:
                error = await error_of(channel.call(channel.choreography.Hint, bad))
                assert (type(error), error.field) == (InvalidInput, path), bad
            chosen = request({"fidelity": pb.FIDELITY_AUTO})  # nothing is known of what a session's calls do
            error = await error_of(channel.call(channel.choreography.Hint, chosen))
            assert (error.status, error.field) == ("INVALID_ARGUMENT", "hints[1].fidelity")
            foreign = pb.HintRequest(session_id="gone", hints=[pb.Hint(agent="a")])
            error = await error_of(channel.call(channel.choreography.Hint, foreign))
            assert (type(error), error.field) == (NotFound, "session_id")
            for bad_release, path in (
                (pb.ReleaseHintsRequest(session_id="s-1"), "agents"),
                (pb.ReleaseHintsRequest(session_id="s-1", agents=["a"], all=True), "agents"),
                (pb.ReleaseHintsRequest(session_id="s-1", agents=["a", ""]), "agents[1]"),
                (pb.ReleaseHintsRequest(all=True), "session_id"),
            ):
                error = await error_of(channel.call(channel.choreography.ReleaseHints, bad_release))
                assert (type(error), error.field) == (InvalidInput, path), bad_release
            assert len(served.sessions.calls) == asked  # the sessions heard of none of them

    asyncio.run(main())


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: hint_request("s", "\ud800", [], {}), "hints[0].agent"),
        (lambda: hint_request("s", "a", [5], {}), "hints[0].view.placements[0]"),  # type: ignore[list-item]
        (lambda: hint_request("s", "a", [], {"steps": 2**40}), "hints[0].steps"),
        (lambda: hint_request("s", "a", [], {"in_s": -1.0}), "hints[0].starts_in"),
        (lambda: hint_request("s", "a", [], {"pin_s": math.inf}), "hints[0].pin"),
        (lambda: hint_request("s", "a", [], {"ttl_s": math.nan}), "ttl"),
        (lambda: hint_request("s", "a", [], {"likelihood": "often"}), "hints[0].likelihood"),  # type: ignore[typeddict-item]
        (lambda: hint_request("s", "a", [], {"fidelity": "perfect"}), "hints[0].fidelity"),
        (lambda: hints_request("s", [Hint("a", ()), Hint("b", (), layout="spiral")], None), "hints[1].view.layout"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_sent(make: Any, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()
    assert caught.value.field == path


def test_hints_of_a_session_that_has_ended() -> None:
    async def main() -> None:
        sessions = FakeSessions()
        async with serving(sessions=sessions) as served:
            session = await served.client.open_session()
            await session.close()
            assert type(await error_of(session.hint("ann", ["m1"]))) is NotFound
            assert type(await error_of(session.release_hints())) is NotFound

    asyncio.run(main())
