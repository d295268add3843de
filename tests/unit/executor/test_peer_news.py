"""Workers hear at once that another one is lost, so that they ask it for nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from laban.actors.line import LineFailure
from laban.actors.ports import WorkerLost
from laban.actors.processes import WorkerPlan
from laban.actors.reach import Reach
from laban.actors.remote import RemoteSupervisor, RemoteWorker, WorkerHandle
from laban.actors.transfers import PeerNews


class FailingLine:
    """Of a worker whose engine fails."""

    is_open = True

    async def reports(self) -> AsyncGenerator[LineFailure, None]:
        yield LineFailure("CUDA error")


def test_the_others_hear_that_a_worker_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, list[PeerNews]] = {"a": [], "b": [], "c": []}
    monkeypatch.setattr("laban.actors.remote.kill_actor", lambda process: None)

    def handle_of(worker_id: str) -> WorkerHandle:
        async def meet(news: PeerNews) -> None:
            heard[worker_id].append(news)

        return WorkerHandle(SimpleNamespace(meet=SimpleNamespace(remote=meet)))

    async def attach(handle: WorkerHandle, worker_id: str) -> RemoteWorker:
        info: Any = SimpleNamespace(worker_id=worker_id, epoch="1", reach=Reach("here", ()))
        line: Any = FailingLine()
        return RemoteWorker(handle, info, (), line)

    async def run() -> None:
        monkeypatch.setattr(RemoteWorker, "attach", attach)
        handles = {each: handle_of(each) for each in heard}
        supervisor = RemoteSupervisor([WorkerPlan(each, "model", None) for each in heard], handles)
        workers = {each: await supervisor.start(each) for each in heard}
        for news in heard.values():
            news.clear()
        with pytest.raises(WorkerLost, match="CUDA error"):
            async for _ in workers["b"].reports():
                pass
        await asyncio.sleep(0.01)
        assert heard == {"a": [PeerNews(left=("b",))], "b": [], "c": [PeerNews(left=("b",))]}

    asyncio.run(run())
