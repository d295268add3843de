"""What runs in the background outlives its own mistakes, and says that it made them."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from executor_rig import until

from laban.actors.lasting import going_on, lasting
from laban.cluster import host


def test_what_fails_is_logged_with_its_traceback_and_what_is_behind_it_goes_on(caplog):
    with going_on("counting"):
        raise ValueError("none are there")
    assert [record.message for record in caplog.records] == ["counting failed"]
    assert "ValueError: none are there" in caplog.text


def test_to_cancel_is_no_mistake(caplog):
    with pytest.raises(asyncio.CancelledError), going_on("waiting"):
        raise asyncio.CancelledError
    assert not caplog.records


def test_a_loop_is_begun_again_until_it_ends_by_itself(caplog):
    rounds: list[int] = []

    async def work() -> None:
        rounds.append(len(rounds))
        if len(rounds) < 4:
            raise RuntimeError(f"round {len(rounds)}")

    asyncio.run(lasting("a round", work, pause_s=0.001))
    assert rounds == [0, 1, 2, 3]
    assert [record.message for record in caplog.records] == ["a round failed"] * 3


def test_a_loop_is_cancelled_in_its_pause_and_in_its_work():
    async def scenario() -> None:
        for work in (asyncio.Event().wait, lambda: 1 / 0):
            task = asyncio.create_task(lasting("a round", work, pause_s=60.0))
            await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scenario())


def test_every_chore_of_the_control_plane_is_done_whichever_of_them_fail(monkeypatch, caplog):
    """Expiry, grants, health and certificates: each fails once, all of them together at last, and all go on."""
    monkeypatch.setattr(host, "READY_EVERY_S", 0.001)
    names = ("sessions", "workflows", "grants", "ready", "certificates", "lag")
    done = dict.fromkeys(names, 0)
    failing: set[str] = set()

    def chore(name: str):
        def do(*_: object) -> None:
            if name in failing:
                raise RuntimeError(f"{name} is broken")
            done[name] += 1

        return do

    gateway = SimpleNamespace(set_ready=chore("ready"))
    executor = SimpleNamespace(sweep=chore("workflows"), status=lambda: SimpleNamespace(ready=True))
    sessions, keeper = SimpleNamespace(sweep=chore("sessions")), SimpleNamespace(tick=chore("grants"))
    meter = SimpleNamespace(loop_lagged=chore("lag"))

    async def scenario() -> None:
        plane = host.ControlPlane(None)
        plane._http = SimpleNamespace(refresh=chore("certificates"))
        plane._look_after("ticking", lambda: plane._tick(gateway, executor, sessions, keeper, meter))
        for broken in (*({name} for name in names[:-1]), set(names[:-1])):
            failing.update(broken)
            before = dict(done)
            others = [name for name in names if name not in broken]
            await until(lambda before=before, others=others: all(done[each] > before[each] for each in others))
            failing.clear()
        before = dict(done)
        await until(lambda: all(done[each] > before[each] for each in names))
        (task,) = plane._tasks
        task.cancel()

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    for name in names[:-1]:
        assert f"RuntimeError: {name} is broken" in caplog.text
