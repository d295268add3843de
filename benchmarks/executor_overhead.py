"""What the control plane itself costs a step: the executor on steps that take no time, and the look-ahead.

    .venv/bin/python benchmarks/executor_overhead.py [--quick] [--json]      about 1 minute

The worker answers every call at once with one token; its own time is left out. A chain's steps come one after the
other; a fan-out's all at once, and one more step reads them all. `ahead` is what the same costs with foresight and
admission, as when serving, over what it costs without. The look-ahead is updated after every finished step.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import AsyncGenerator, Sequence
from statistics import median

from report import Clock, Row, add_arguments, finish, new_report

from laban.actors.calls import Advice, Call, CallEvent, CallFinished, CallStarted, WorkerInfo, WorkerReport
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor
from laban.cluster.lookout import Lookout
from laban.cluster.workflow.parse import parse_dict
from laban.cluster.workflow.run import Run
from laban.cluster.workflow.schema import Workflow
from laban.kvstore.encodings import make_spec

PER_STEP_MS = 2.0
LINEAR = 1.3
LOOKAHEAD_MS = 0.2
AHEAD = 1.05
WARM_UP_S = 0.5  # for loading what the look-ahead is compiled to
NUM_AGENTS = 10

INFO = WorkerInfo(
    worker_id="instant",
    epoch="1",
    namespace="instant",
    model_name="instant",
    max_context=1_000_000,
    num_pages=1_000_000,
    page_size=16,
    bytes_per_token=1,
    vocab_size=256,
    attention_backend="none",
    dtype="none",
    device="none",
)


class InstantWorker:
    """WorkerPort of which every call ends in the next report. `busy_s` is what it spent itself, by the clock."""

    info = INFO

    def __init__(self) -> None:
        self.busy_s = self.busy_cpu_s = 0.0
        self._events: list[CallEvent] = []
        self._sequence = 0
        self._wake = asyncio.Event()

    def submit(self, calls: Sequence[Call]) -> None:
        begin, begin_cpu = time.perf_counter(), time.thread_time()
        for call in calls:
            specs = {spec.encoding_id: spec for spec in call.specs}
            output = (1,) if call.sampling is not None else ()
            spec = make_spec(call.namespace, (*call.tokens, *output, *call.terminator), call.start, call.view, specs)
            self._events.append(CallStarted(call.call_id, 0, 0))
            self._events.append(CallFinished(call.call_id, "stop", spec, output, "x", 0, 0, len(call.tokens), 0.0, 0.0))
        self._wake.set()
        self.busy_s += time.perf_counter() - begin
        self.busy_cpu_s += time.thread_time() - begin_cpu

    def advise(self, advice: Advice) -> None:
        """It has no cache."""

    def abort(self, call_ids: Sequence[str]) -> None:
        """Too late: every call has ended."""

    async def reports(self) -> AsyncGenerator[WorkerReport, None]:
        while True:
            await self._wake.wait()
            self._wake.clear()
            events = tuple(self._events)
            self._events = []
            self._sequence += 1
            yield WorkerReport(INFO.worker_id, INFO.epoch, self._sequence, events)

    async def close(self) -> None:
        """Holds nothing."""


class Letters:
    """Framing and tokenizer: a byte is a token."""

    stop_token_ids = (0,)
    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def guarded(self, text: str) -> str:
        return text

    def root(self, first_role: str) -> tuple[int, ...]:
        return (2,)

    def message(self, role: str, text: str, name: str | None = None, *, first: bool = False) -> tuple[int, ...]:
        return (*self.header(role, name, first=first, prefill=text), 3)

    def header(self, role: str, name: str | None = None, *, first: bool = False, prefill: str = "") -> tuple[int, ...]:
        return tuple(f"{role}:{prefill}".encode())

    def terminator(self, role: str, *, after_stop_token: bool) -> tuple[int, ...]:
        return (3,)

    def starts_otherwise(self, role: str) -> bool:
        return False


def workflow(name: str, steps: list[dict[str, object]]) -> Workflow:
    agents = {f"a{n}": {} for n in range(NUM_AGENTS)}
    return parse_dict({"version": 1, "name": name, "messages": {"task": "Do it."}, "agents": agents, "steps": steps})


def chain(num_steps: int) -> Workflow:
    return workflow("chain", [{"step": "turn", "rounds": num_steps, "read": ["task", "turn[previous]"]}])


def fan_out(num_steps: int) -> Workflow:
    part = {"step": "part", "for_each": num_steps - 1, "read": ["task"]}
    return workflow("fan_out", [part, {"step": "join", "read": ["part[all]"]}])


def debate(num_steps: int) -> Workflow:
    reads = ["task", "speak[all, previous]"]
    return workflow(
        "debate", [{"step": "speak", "for_each": "agents", "rounds": num_steps // NUM_AGENTS, "read": reads}]
    )


async def executed_ms(made: Workflow, ahead: bool = False) -> tuple[float, float]:
    """From the submission to the last event, less what the worker took: by the clock, and of the process's CPU time."""
    worker, letters = InstantWorker(), Letters()
    dispatcher = Dispatcher([worker])
    executor = Executor(dispatcher, letters, letters, lookout=Lookout(dispatcher) if ahead else None)
    executor.start()
    if ahead:
        await asyncio.sleep(WARM_UP_S)
    gc.collect()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    record = await executor.intake.submit(made, {})
    async for _ in executor.watch(record.workflow_id):
        continue  # to the end
    wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
    state = executor.get(record.workflow_id).state
    assert state == "succeeded", state
    await executor.stop()
    return 1000 * (wall_s - worker.busy_s), 1000 * (cpu_s - worker.busy_cpu_s)


def advanced_ms(made: Workflow) -> tuple[float, float, list[float]]:
    """Without an executor: the state machine's time, the look-ahead's to begin, and to be updated each time."""
    begin = time.perf_counter()
    run = Run(made, {})
    machine_s = time.perf_counter() - begin
    begin = time.perf_counter()
    run.look_ahead()
    began_s = time.perf_counter() - begin
    updates = []
    queue: list[str] = []
    while run.state == "running":
        begin = time.perf_counter()
        queue += (step.address for step in run.ready())
        run.finish(queue.pop(0), "x")
        middle = time.perf_counter()
        run.look_ahead()
        updates.append(1000 * (time.perf_counter() - middle))
        machine_s += middle - begin
    return 1000 * machine_s, 1000 * began_s, updates


def executor_rows(num_steps: int, repetitions: int) -> list[Row]:
    few = num_steps // 4
    sizes = {"chain": (chain, num_steps), "fanout": (fan_out, num_steps), "fanout_quarter": (fan_out, few)}
    times: dict[str, list[float]] = {name: [] for name in sizes}
    ratios: dict[str, list[float]] = {name: [] for name in sizes}
    for repetition in range(repetitions + 1):
        for name, (make, size) in sizes.items():
            wall_ms, cpu_ms = asyncio.run(executed_ms(make(size)))
            _, ahead_ms = asyncio.run(executed_ms(make(size), ahead=True))
            if repetition:  # the first warms up
                times[name].append(wall_ms / size)
                ratios[name].append(ahead_ms / cpu_ms)
    ratio = median(many / few for many, few in zip(times["fanout"], times["fanout_quarter"], strict=True))
    return [
        Row(f"executor.chain.{num_steps}", median(times["chain"]), "ms/step", PER_STEP_MS, "lower"),
        Row(f"executor.fanout.{num_steps}", median(times["fanout"]), "ms/step", PER_STEP_MS, "lower"),
        Row(f"executor.fanout.{few}", median(times["fanout_quarter"]), "ms/step", better="lower"),
        Row(f"executor.fanout.{num_steps}_to_{few}", ratio, "x", LINEAR, "lower"),
        Row(f"executor.chain.{num_steps}.ahead", median(ratios["chain"]), "x", AHEAD, "lower"),
        Row(f"executor.fanout.{num_steps}.ahead", median(ratios["fanout"]), "x", AHEAD, "lower"),
    ]


def lookahead_rows(num_steps: int, repetitions: int) -> list[Row]:
    rows = []
    for name, make in {"chain": chain, "debate": debate, "fanout": fan_out}.items():
        made = make(num_steps)
        advanced_ms(make(2 * NUM_AGENTS))  # compiles
        runs = [advanced_ms(made) for _ in range(repetitions)]
        steps = len(runs[0][2])
        rows += [
            Row(f"machine.{name}.{steps}", median(run[0] for run in runs) / steps, "ms/step", better="lower"),
            Row(f"lookahead.{name}.{steps}.begin", median(run[1] for run in runs), "ms", better="lower"),
            Row(
                f"lookahead.{name}.{steps}.update",
                median(sum(run[2]) / steps for run in runs),
                "ms/step",
                LOOKAHEAD_MS,
                "lower",
            ),
        ]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the executor and the look-ahead cost a step.")
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=1000, help="of each workflow")
    parser.add_argument("--repetitions", type=int, default=9)
    args = parser.parse_args(arguments)
    if args.quick:
        args.steps, args.repetitions = 40, 1
    clock = Clock()
    report = new_report("executor-overhead", args)
    clock.say(f"running chains and fan-outs of {args.steps} instant steps")
    report.rows += executor_rows(args.steps, args.repetitions)
    clock.say("looking ahead after every step")
    report.rows += lookahead_rows(args.steps, args.repetitions)
    finish(report, args, clock)


if __name__ == "__main__":
    main()
