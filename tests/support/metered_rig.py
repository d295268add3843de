"""A control plane over scripted workers with all its meters: gateway, metrics and health on ports of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from executor_rig import FAST
from prometheus_client.parser import text_string_to_metric_families
from scripted_engine import CharFraming, CharTokenizer, LoopSupervisor, LoopWorker, ScriptedEngine

from laban.cluster.client_async import AsyncClient
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor
from laban.cluster.gateway import Gateway
from laban.cluster.instruments import Instruments
from laban.cluster.lookout import Lookout
from laban.cluster.metrics_server import MetricsServer
from laban.cluster.records import JOURNAL_AVAILABLE
from laban.cluster.run_log import RunLog
from laban.cluster.sessions import Sessions
from laban.cluster.survey import Survey
from laban.cluster.traces import NO_TRACES, Traces

Samples = dict[str, list[tuple[dict[str, str], float]]]
"""By the name of the series: labels and value."""


@dataclass
class MeteredRig:
    workers: list[LoopWorker]
    client: AsyncClient
    instruments: Instruments
    port: int  # of metrics and health
    client_address: str
    not_ready: str = ""

    def samples(self) -> Samples:
        """Of everything that is exported now."""
        self.instruments.look()
        body, _ = self.instruments.render("text/plain")
        found: Samples = {}
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    def value(self, name: str, **labels: str) -> float:
        """The sum over the series that have these labels."""
        found = self.samples().get(name, [])
        return sum(value for each, value in found if labels.items() <= each.items())

    async def ask(self, head: str) -> tuple[int, str]:
        """Status and body of an HTTP request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{head}\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        top, _, body = answer.partition("\r\n\r\n")
        return int(top.split()[1]), body


@asynccontextmanager
async def metered_rig(num_workers: int = 1, traces: Traces = NO_TRACES) -> AsyncIterator[MeteredRig]:
    workers = [LoopWorker(ScriptedEngine(worker_id=f"w{n}")) for n in range(num_workers)]

    def survey() -> Survey:
        status = replace(executor.status(sessions_open=sessions.num_open), journal=JOURNAL_AVAILABLE)
        return Survey(status, dispatcher.survey(), lookout.count_steps(), {("scripted", "rules"): 1})

    meter = Instruments("scripted", survey)
    dispatcher = Dispatcher(workers, supervisor=LoopSupervisor(), limits=FAST, meter=meter, traces=traces)
    lookout = Lookout(dispatcher, meter=RunLog(meter))
    executor = Executor(dispatcher, CharFraming(), CharTokenizer(), lookout=lookout, traces=traces)
    sessions = Sessions(dispatcher, executor.languages.of, meter=meter)
    gateway = Gateway(executor, sessions, lambda: executor.status(), fleet=dispatcher.fleet, meter=meter, traces=traces)
    server = MetricsServer(lambda: made.not_ready)
    executor.start()
    address = f"127.0.0.1:{await gateway.start()}"
    client = AsyncClient(address, timeout_s=20)
    made = MeteredRig(workers, client, meter, await server.start("127.0.0.1", 0), address)
    server.show(meter)
    try:
        yield made
    finally:
        await client.close()
        await gateway.stop(0)
        await executor.stop()
        await server.stop()
