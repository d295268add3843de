"""What the journal adds to a step, and how long a restart takes.

    .venv/bin/python benchmarks/journal.py [--quick] [--json]      about 2 minutes

Workflows of steps that take no time run on the executor, without a journal and with one in a SQLite file, by turns;
each step makes a message of so many tokens. `added` is the difference of the medians over all steps: a chain's steps
come one after the other, so it is what a workflow waits for. `beside` has many chains write at once, together in one
transaction. `write` is a transaction of one step's result alone. `restore` starts again with so many workflows in the
journal. `sqlite` has every transaction on the disk before it goes on, `sqlite_normal` with the system (`journal.sync`).
With `--postgres URL` the same on PostgreSQL.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

from executor_overhead import InstantWorker, Letters
from report import Clock, Row, add_arguments, finish, new_report

from laban.actors.calls import Call, CallFinished, CallStarted
from laban.cluster.dispatch import Dispatcher
from laban.cluster.executor import Executor, ExecutorLimits
from laban.cluster.journal import Journal
from laban.cluster.journal_records import Deletion, Line
from laban.cluster.journal_store import SqlStore, Sync
from laban.cluster.moves import CallEnded, move_to_json
from laban.cluster.workflow.parse import parse_dict
from laban.cluster.workflow.schema import Workflow
from laban.kvstore.encodings import EMPTY_VIEW, make_spec

ADDED_MS = 1.0  # on SQLite
NUM_TOKENS = 200  # of a step's message


class TalkativeWorker(InstantWorker):
    """Every call makes a message of `NUM_TOKENS` tokens, at once. Says when each call came, and when it had ended."""

    def __init__(self) -> None:
        super().__init__()
        self.came_s: list[float] = []

    def submit(self, calls: Sequence[Call]) -> None:
        output = tuple(range(65, 65 + NUM_TOKENS))
        for call in calls:
            self.came_s.append(time.perf_counter())
            specs = {spec.encoding_id: spec for spec in call.specs}
            tokens = (*call.tokens, *output, *call.terminator)
            spec = make_spec(call.namespace, tokens, call.start, call.view, specs)
            self._events.append(CallStarted(call.call_id, 0, 0))
            self._events.append(
                CallFinished(call.call_id, "stop", spec, output, "x" * NUM_TOKENS, 0, 0, len(call.tokens), 0.0, 0.0)
            )
        self._wake.set()


def rounds(num_steps: int) -> Workflow:
    """A chain in which each step reads only the one before it: what it costs does not grow."""
    step = {"step": "turn", "rounds": num_steps, "read": ["task", "turn[previous]"]}
    return parse_dict({"version": 1, "name": "rounds", "messages": {"task": "Do it."}, "steps": [step]})


@contextmanager
def database(url: str | None) -> Iterator[str]:
    """An empty one: a file of its own, or PostgreSQL's at `url`."""
    if url is None:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'journal.db'}"
    else:
        store = SqlStore(url)
        store.open()
        store.write([Deletion(each.submission.workflow_id) for each in store.load()])
        store.close()
        yield url


class Served:
    """An executor over instant steps, with a journal if there is a URL."""

    def __init__(self, url: str | None, sync: Sync = "full") -> None:
        self.worker = TalkativeWorker()
        self.store = None if url is None else SqlStore(url, sync)
        letters = Letters()
        journal = None
        if self.store is not None:
            self.store.open()
            journal = Journal(self.store)
        self.executor = Executor(
            Dispatcher([self.worker]), letters, letters, journal=journal, limits=ExecutorLimits(max_active=10_000)
        )

    async def start(self) -> float:
        """Returns the seconds that restoring took."""
        self.executor.start()
        begin = time.perf_counter()
        if self.store is not None:
            await self.executor.intake.restore(self.store.load())
        return time.perf_counter() - begin

    async def run(self, made: Workflow) -> None:
        record = await self.executor.intake.submit(made, {})
        async for _ in self.executor.watch(record.workflow_id):
            continue  # to the end
        assert self.executor.get(record.workflow_id).state == "succeeded"


async def step_times_ms(url: str | None, sync: Sync, num_steps: int, num_workflows: int) -> list[float]:
    """Of a chain, from call to call; of several side by side, the time over the number of steps of each."""
    served = Served(url, sync)
    await served.start()
    gc.collect()
    begin = time.perf_counter()
    await asyncio.gather(*(served.run(rounds(num_steps)) for _ in range(num_workflows)))
    spent_ms = 1000 * (time.perf_counter() - begin)
    await served.executor.stop()
    if num_workflows > 1:
        return [spent_ms / num_steps / num_workflows]
    came = served.worker.came_s
    return [1000 * (later - earlier) for earlier, later in pairwise(came)]


def added_rows(
    name: str, url: str | None, sync: Sync, num_steps: int, num_workflows: int, repetitions: int
) -> list[Row]:
    without: list[float] = []
    journaled: list[float] = []
    for repetition in range(repetitions + 1):
        plain = asyncio.run(step_times_ms(None, sync, num_steps, num_workflows))
        with database(url) as made:
            written = asyncio.run(step_times_ms(made, sync, num_steps, num_workflows))
        if repetition:  # the first warms up
            without += plain
            journaled += written
    kind = "chain" if num_workflows == 1 else f"beside.{num_workflows}"
    added = median(journaled) - median(without)
    return [
        Row(f"{name}.{kind}.without", median(without), "ms/step", better="lower"),
        Row(f"{name}.{kind}.with", median(journaled), "ms/step", better="lower"),
        Row(f"{name}.{kind}.added", added, "ms/step", ADDED_MS if url is None else None, "lower"),
    ]


def write_rows(name: str, url: str | None, sync: Sync, repetitions: int) -> list[Row]:
    """One transaction of one step's result."""
    spec = make_spec("n", tuple(range(NUM_TOKENS + 8)), 0, EMPTY_VIEW, {})
    ended = CallFinished("c", "stop", spec, tuple(range(NUM_TOKENS)), "x" * NUM_TOKENS, 0, 0, 8, 0.0, 0.0)
    move = CallEnded("turn[1]", 1, "w", ended, 0.0)
    worded, written = [], []
    with database(url) as made:
        store = SqlStore(made, sync)
        store.open()
        for number in range(1, repetitions + 1):
            begin = time.perf_counter()
            line = Line("wf", number, 0.0, 0, 0, move_to_json(move))
            middle = time.perf_counter()
            store.write([line])
            worded.append(1000 * (middle - begin))
            written.append(1000 * (time.perf_counter() - middle))
        store.close()
    return [
        Row(f"{name}.encode", median(worded), "ms", better="lower"),
        Row(f"{name}.write", median(written), "ms", better="lower"),
    ]


def disk_rows(repetitions: int) -> list[Row]:
    """What a page takes to reach this disk, whoever writes it: the floor of `full`."""
    times = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(repetitions):
            file.write(bytes(4096))
            file.flush()
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(1000 * (time.perf_counter() - begin))
    return [Row("disk.fdatasync", median(times), "ms", better="lower")]


async def restore_s(url: str, num_unfinished: int, num_finished: int, num_steps: int) -> float:
    first = Served(url)
    await first.start()
    await asyncio.gather(*(first.run(rounds(num_steps)) for _ in range(num_finished)))
    waits = parse_dict(
        {
            "version": 1,
            "name": "waits",
            "messages": {"task": "Do it."},
            "steps": [
                {"step": "turn", "rounds": num_steps, "read": ["task", "turn[previous]"]},
                {"step": "human", "external": {}, "read": [f"turn[{num_steps}]"]},
            ],
        }
    )
    records = [await first.executor.intake.submit(waits, {}) for _ in range(num_unfinished)]
    for record in records:
        while first.executor.get(record.workflow_id).steps[-1].state != "ready":
            await asyncio.sleep(0.01)
    await first.executor.stop()
    again = Served(url)
    took_s = await again.start()
    assert len(again.executor.list(page_size=1000)[0]) == num_unfinished + num_finished
    await again.executor.stop()
    return took_s


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What the journal costs.")
    add_arguments(parser)
    parser.add_argument("--postgres", help="URL of a database that may be emptied")
    parser.add_argument("--steps", type=int, default=300, help="of each chain")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args(arguments)
    if args.quick:
        args.steps, args.repetitions = 20, 1
    clock = Clock()
    report = new_report("journal", args)
    databases: dict[str, tuple[str | None, Sync]] = {"sqlite": (None, "full"), "sqlite_normal": (None, "normal")}
    if args.postgres:
        databases["postgres"] = (args.postgres, "full")
    report.rows += disk_rows(20 if args.quick else 500)
    for name, (url, sync) in databases.items():
        clock.say(f"{name}: transactions of one step")
        report.rows += write_rows(name, url, sync, 20 if args.quick else 500)
        clock.say(f"{name}: chains of {args.steps} steps, with and without a journal")
        report.rows += added_rows(name, url, sync, args.steps, 1, args.repetitions)
        clock.say(f"{name}: 50 chains side by side")
        report.rows += added_rows(name, url, sync, max(4, args.steps // 15), 50, args.repetitions)
        going, over = (2, 2) if args.quick else (100, 100)
        clock.say(f"{name}: starting again with {going} workflows that go on and {over} that have ended")
        with database(url) as made:
            took_s = asyncio.run(restore_s(made, going, over, 20))
        report.rows.append(Row(f"{name}.restore.{going}_{over}", took_s, "s", better="lower"))
    finish(report, args, clock)


if __name__ == "__main__":
    main()
