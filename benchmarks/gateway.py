"""What the gateway and the executor add to a call's first token, and how many open streams they carry.

    .venv/bin/python benchmarks/gateway.py [--quick] [--json]      about 3 minutes

The engine takes no time. The same call is put, by turns, to an engine in this process (`engine`), to a worker's process
as the control plane does it (`worker`), and to a served Laban: in a workflow of one step (`workflow`) and in a session
(`session`), each from before the request until its first token is here. `added` is the difference of medians from the
engine's, so the way to the worker is in it. There is no journal: benchmarks/journal.py measures that.

`streams` are clients that each run a workflow and read its tokens as they come, on one connection for fifty of them.
All of the workflows' calls get a token at the same moment, twice a second; `delay` is from then until a client has it,
so the last of many is told after all others, by processes that share these cores with the clients.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from gateway_engine import PACE_S, InstantEngine
from report import Clock, Report, Row, add_arguments, finish, new_report

from laban.actors.calls import Call, CallTokens, Sampling
from laban.actors.engine.config import EngineConfig
from laban.actors.models import prepare_default_model
from laban.actors.remote import RemoteHost, RemoteWorker, WorkerPlan, spawn_directory, spawn_worker
from laban.cluster.client_async import AsyncClient
from laban.cluster.config import LabanConfig
from laban.cluster.host import FACTORY, HostPlan, ModelPlace
from laban.cluster.launch import _end_ray, _start_ray
from laban.cluster.records import Event, TokenChunk
from laban.kvstore.encodings import EMPTY_VIEW

ADDED_MS = 6.0
NUM_STREAMS = 500
STREAMS_EACH = 50  # on one connection
NUM_TOKENS = 20  # of each stream
PROMPT = "Name a colour, and say in one sentence what you like about it. " * 10
WORKER_ENV = {"PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
_numbers = count()


def flow(max_tokens: int) -> dict[str, Any]:
    step = {"step": "answer", "read": ["task"], "sampling": {"max_tokens": max_tokens}}
    return {"version": 1, "name": "one", "messages": {"task": PROMPT}, "steps": [step]}


def new_call() -> Call:
    return Call(f"c{next(_numbers)}", "instant", EMPTY_VIEW, 0, tuple(range(300)), (), Sampling(4))


@dataclass
class Served:
    client: AsyncClient
    address: str
    direct: RemoteWorker


@asynccontextmanager
async def serving(config: LabanConfig) -> AsyncIterator[Served]:
    """A Laban over a worker whose engine takes no time, and another such worker beside it."""
    folder = str(prepare_default_model())
    directory = spawn_directory(1)
    plans = [
        WorkerPlan(
            name,
            folder,
            EngineConfig(),
            engine_factory="gateway_engine:InstantEngine",
            num_cpus=0.5,
            env=WORKER_ENV,
            directory=directory,
        )
        for name in ("worker-0", "direct")
    ]
    handles = {plan.worker_id: spawn_worker(plan) for plan in plans}
    places = (ModelPlace("instant", folder),)
    host = RemoteHost(FACTORY, HostPlan(config, places, plans[:1], {"worker-0": handles["worker-0"]}, directory))
    try:
        while (address := await asyncio.to_thread(host.wait, 0.5)) is None:
            continue
        direct = await RemoteWorker.attach(handles["direct"], "direct")
        async with AsyncClient(address, timeout_s=60) as client:
            yield Served(client, address, direct)
        await direct.close()
    finally:
        await asyncio.to_thread(host.stop)


# Times to the first token, in milliseconds


def of_engine(engine: InstantEngine) -> float:
    began_s = time.perf_counter()
    call = new_call()
    engine.submit(call)
    while not any(isinstance(event, CallTokens) for event in engine.step().events):
        continue
    spent_s = time.perf_counter() - began_s
    while engine.has_work():
        engine.step()
    return 1000 * spent_s


class DirectWorker:
    """Calls put to a worker's process, one after the other."""

    def __init__(self, port: RemoteWorker) -> None:
        self._port = port
        self._reports = port.reports()

    async def first_token(self) -> float:
        began_s, first_s = time.perf_counter(), 0.0
        call = new_call()
        self._port.submit([call])
        async for report in self._reports:
            for event in report.events:
                if isinstance(event, CallTokens) and event.call_id == call.call_id:
                    first_s = first_s or time.perf_counter()
                elif event.call_id == call.call_id and first_s:
                    return 1000 * (first_s - began_s)
        raise RuntimeError("the worker is gone")

    async def close(self) -> None:
        await self._reports.aclose()


async def of_workflow(client: AsyncClient) -> float:
    began_s, first_s = time.perf_counter(), 0.0
    async with aclosing(client.run(flow(4))) as items:
        async for item in items:
            if isinstance(item, TokenChunk) and not first_s:
                first_s = time.perf_counter()
    return 1000 * (first_s - began_s)


async def of_session(client: AsyncClient) -> float:
    async with await client.open_session() as session:
        await session.prefill(PROMPT)
        began_s, first_s = time.perf_counter(), 0.0
        async for item in session.decode(max_tokens=4):
            if isinstance(item, TokenChunk) and not first_s:
                first_s = time.perf_counter()
    return 1000 * (first_s - began_s)


async def first_tokens(served: Served, repetitions: int) -> dict[str, list[float]]:
    engine, worker = InstantEngine(), DirectWorker(served.direct)
    times: dict[str, list[float]] = {"engine": [], "worker": [], "workflow": [], "session": []}
    for repetition in range(repetitions + 10):
        one = {
            "engine": of_engine(engine),
            "worker": await worker.first_token(),
            "workflow": await of_workflow(served.client),
            "session": await of_session(served.client),
        }
        for name, value in one.items():
            if repetition >= 10:  # those before warm up
                times[name].append(value)
    await worker.close()
    return times


def first_token_rows(times: dict[str, list[float]]) -> list[Row]:
    rows = []
    for name, values in times.items():
        rows.append(Row(f"ttft.{name}", median(values), "ms", better="lower"))
        rows.append(Row(f"ttft.{name}.p95", quantiles(values, n=20)[-1], "ms", better="lower"))
    base, worker = median(times["engine"]), median(times["worker"])
    for name in ("workflow", "session"):
        rows.append(Row(f"added.{name}.over_worker", median(times[name]) - worker, "ms", better="lower"))
        rows.append(Row(f"added.{name}", median(times[name]) - base, "ms", ADDED_MS, "lower"))
    return rows


# Streams


@dataclass
class Stream:
    text: str = ""
    state: str = ""
    delays_s: tuple[float, ...] = ()


async def read_stream(client: AsyncClient) -> Stream:
    found = Stream()
    async with aclosing(client.run(flow(NUM_TOKENS))) as items:
        async for item in items:
            if isinstance(item, TokenChunk):
                assert item.index == found.text.count(" "), "a token was lost, or came twice"
                found.text += item.text
                now_s = time.monotonic()
                found.delays_s += tuple(now_s - float(made_s) for made_s in item.text.split())
            elif isinstance(item, Event) and item.workflow_state is not None:
                found.state = item.workflow_state
    return found


async def stream_rows(address: str, num_streams: int) -> list[Row]:
    clients = [AsyncClient(address, timeout_s=60) for _ in range(-(-num_streams // STREAMS_EACH))]
    began_s = time.perf_counter()
    streams = await asyncio.gather(*(read_stream(clients[i // STREAMS_EACH]) for i in range(num_streams)))
    spent_s = time.perf_counter() - began_s
    for client in clients:
        await client.close()
    whole = sum(each.state == "succeeded" and each.text.count(" ") == NUM_TOKENS for each in streams)
    delays_ms = sorted(1000 * delay for each in streams for delay in each.delays_s)
    name = f"streams.{num_streams}"
    return [
        Row(f"{name}.complete", whole, "streams", num_streams),
        Row(f"{name}.delay", median(delays_ms), "ms", better="lower"),
        Row(f"{name}.delay.p99", delays_ms[int(0.99 * len(delays_ms))], "ms", better="lower"),
        Row(f"{name}.seconds", spent_s, "s", better="lower"),
        Row(f"{name}.seconds.least", PACE_S * NUM_TOKENS, "s", better="lower"),
    ]


async def measure(report: Report, args: argparse.Namespace, clock: Clock) -> None:
    settings = {
        "journal": {"url": None},
        "metrics": {"port": None},
        "server": {"port": 0},
        "limits": {"max_active_workflows": 1000},
    }
    config = LabanConfig.model_validate(settings)
    async with serving(config) as served:
        clock.say(f"{args.repetitions} calls each way, by turns")
        report.rows += first_token_rows(await first_tokens(served, args.repetitions))
        report.save_partial()
        for num_streams in args.streams:
            clock.say(f"{num_streams} streams")
            report.rows += await stream_rows(served.address, num_streams)
            report.save_partial()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the gateway and the executor cost.")
    add_arguments(parser)
    parser.add_argument("--repetitions", type=int, help="calls each way: 300, or 20 of a quick run")
    parser.add_argument("--streams", type=int, nargs="*", help=f"open at once: 50 and {NUM_STREAMS}, or 20")
    args = parser.parse_args(arguments)
    args.repetitions = args.repetitions or (20 if args.quick else 300)
    args.streams = args.streams or ([20] if args.quick else [50, NUM_STREAMS])
    clock = Clock()
    report = new_report("gateway", args)
    owns_ray = _start_ray(LabanConfig(), lambda doing, share: clock.say(doing))
    try:
        asyncio.run(measure(report, args, clock))
    finally:
        _end_ray(owns_ray)
    finish(report, args, clock)


if __name__ == "__main__":
    main()
