"""Mixed workflows on the real model while processes are killed and the database goes away.

    make chaos [ARGS="--kills 200 --seed 1 --minutes 60 --journal postgres --json"]

A `laban serve` with two workers and two directory shards runs workflows of seven kinds, greedy and `exact`, some with
a step that a handler answers. SIGKILL goes to random processes of it, Ray's and the server itself among them; what ends
is started again, by itself or by the loop that keeps the server, as a supervisor of services would. In between the
database is locked (SQLite) or stopped (a PostgreSQL of the program's own) for some seconds. Three of
four kills do not wait until the one before is overcome. Each workflow has an idempotency key and is watched to its end.

Checked: none is lost or there twice; every durable event comes once, in order, and again when watched again; each step
has one result; texts, token ids and outputs are those of a run that nobody disturbed (flows with two tokens nearer to
each other than sums may differ are not used). Measured: the time from a kill to the next event, and until all is up.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

from followed_load import Load, everything, undisturbed
from kept_server import KeptServer, cancelled
from postgres import Postgres
from report import Clock, Row, add_arguments, finish, new_report

from laban.cluster.client_async import AsyncClient
from laban.cluster.records import Event

KILLS = {"worker": 20, "directory": 10, "database": 4, "host": 2, "driver": 1, "raylet": 1, "gcs": 1, "all": 1}
"""What is killed, and how often: shares. `all` is as if the machine lost its power; the database is only away."""
STARTS_AGAIN = {"host", "driver", "raylet", "gcs", "all"}
"""Without these it cannot go on for long: the server ends, by itself if need be, and is started again."""
IMPATIENT = 0.75  # the share of kills that do not wait until the one before is overcome
SETTLING_S = 1.0  # until a loss has been noticed
PAUSE_S = 3.0  # at most, before each kill
AWAY_S = 8.0  # at most, of a database
RECOVERING_S = 600.0  # at most: a machine may have other things to do
NUM_WORKERS = 2
CONFIG = """
workers: {num_workers}
engine: {{pool_tokens: 4096, num_threads: 1}}
routing: {{directory_shards: 2}}
metrics: {{port: null}}
journal: {{url: '{url}'}}
limits: {{max_attempts: 20, max_finished_workflows: 100000}}
"""


@dataclass
class Kill:
    what: str
    num_starts: int  # of the server, before
    at: float = field(default_factory=time.time)
    progress_s: float | None = None  # until the next event
    whole_s: float | None = None  # until all was up

    def is_past(self, num_starts: int) -> bool:
        """Whether what runs now is not what was hit."""
        return self.what not in STARTS_AGAIN or num_starts > self.num_starts


class Chaos:
    def __init__(
        self, server: KeptServer, client: AsyncClient, load: Load, journal: Path | Postgres, seed: int
    ) -> None:
        self._server, self._client, self._load, self._journal = server, client, load, journal
        self._random = random.Random(seed)
        self.kills: list[Kill] = []
        load.on_event = self._progressed

    async def play(self, order: Sequence[str], until_s: float, clock: Clock) -> None:
        """Kill, in this order, as long as there is time. Raises TimeoutError for what is not overcome."""
        await self._recover()
        for number, what in enumerate(order, 1):
            if time.monotonic() > until_s:
                break
            await asyncio.sleep(self._random.uniform(0, PAUSE_S))
            clock.say(f"kill {number} of {len(order)}: {what}; {len(self._load.followed)} workflows")
            await self._kill(what)
            if self._random.random() >= IMPATIENT or number == len(order):
                await self._recover()

    async def _kill(self, what: str) -> None:
        kill = Kill(what, self._server.num_starts)
        if what == "database":
            await self._lose_database()
            kill.at = time.time()  # until then it could not go on
        else:
            while not self._server.kill(what, self._one if what != "all" else list):
                await asyncio.sleep(0.1)
            kill.at = time.time()
        self.kills.append(kill)

    def _one(self, found: list[int]) -> list[int]:
        return self._random.sample(found, min(1, len(found)))

    async def _lose_database(self) -> None:
        away_s = self._random.uniform(1, AWAY_S)
        if isinstance(self._journal, Postgres):
            await asyncio.to_thread(self._journal.stop)
            await asyncio.sleep(away_s)
            await asyncio.to_thread(self._journal.start)
            return
        with closing(sqlite3.connect(self._journal, isolation_level=None, timeout=30)) as other:
            other.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(away_s)
            other.execute("ROLLBACK")

    async def _recover(self) -> None:
        await asyncio.sleep(SETTLING_S)
        async with asyncio.timeout(RECOVERING_S):
            while not all(kill.is_past(self._server.num_starts) for kill in self.kills):
                await asyncio.sleep(0.05)
        whole = await self._server.until_whole(self._client, RECOVERING_S)
        for kill in self.kills:
            if kill.whole_s is None:
                kill.whole_s = max(0.0, whole - kill.at)
        async with asyncio.timeout(RECOVERING_S):
            while any(kill.progress_s is None for kill in self.kills):
                await asyncio.sleep(0.05)

    def _progressed(self, event: Event) -> None:
        for kill in self.kills:
            if kill.progress_s is None and event.at > kill.at and kill.is_past(self._server.num_starts):
                kill.progress_s = event.at - kill.at


def order_of(num_kills: int, seed: int) -> list[str]:
    """What is killed: each kind at least once where there is room, then by their shares."""
    draw = random.Random(seed)
    rest = draw.choices([*KILLS], [*KILLS.values()], k=max(0, num_kills - len(KILLS)))
    return draw.sample([*KILLS, *rest], num_kills)


@dataclass
class Findings:
    kills: list[Kill]
    wrong: dict[str, list[str]]
    num_workflows: int
    num_events: int
    num_again: int  # steps that ran more than once
    num_starts: int

    def rows(self) -> list[Row]:
        rows = [
            Row("kills", len(self.kills), "kills"),
            *(Row(f"kills.{what}", n, "kills") for what, n in sorted(Counter(k.what for k in self.kills).items())),
            Row("server_starts", self.num_starts, "starts", better="lower"),
            Row("workflows", self.num_workflows, "workflows"),
            Row("events", self.num_events, "events"),
            Row("steps_run_again", self.num_again, "steps", better="lower"),
            *(Row(f"wrong.{kind}", len(found), "cases", 0, "lower") for kind, found in self.wrong.items()),
        ]
        for what in ["any", *sorted({kill.what for kill in self.kills})]:
            kills = [kill for kill in self.kills if what in ("any", kill.what)]
            for name in ("progress", "whole"):
                times = [time_s for kill in kills if (time_s := getattr(kill, f"{name}_s")) is not None]
                if times:
                    p95 = quantiles(times, n=20, method="inclusive")[-1] if len(times) > 1 else times[0]
                    rows.append(Row(f"recovery.{what}.{name}.median", median(times), "s", better="lower"))
                    rows.append(Row(f"recovery.{what}.{name}.p95", p95, "s", better="lower"))
        return rows


async def chaos(
    order: Sequence[str], *, folder: Path, journal: str, seed: int, minutes: float, num_active: int, num_topics: int
) -> Findings:
    """Play it in an empty folder. Raises TimeoutError for a cluster that does not recover."""
    clock = Clock()
    database: Path | Postgres = Postgres.make() if journal == "postgres" else folder / "journal.db"
    url = database.url if isinstance(database, Postgres) else f"sqlite:///{database}"
    (folder / "laban.yaml").write_text(CONFIG.format(num_workers=NUM_WORKERS, url=url))
    server = KeptServer(folder, NUM_WORKERS)
    keeping = asyncio.create_task(server.keep())
    try:
        async with AsyncClient(server.address) as client:
            await server.until_whole(client, RECOVERING_S)
            clock.say("undisturbed runs")
            expected = await undisturbed(client, num_topics)
            before = await everything(client)
            load = Load(client, expected, num_active, seed)
            load.start()
            playing = Chaos(server, client, load, database, seed)
            stuck = []
            try:
                await playing.play(order, time.monotonic() + 60 * minutes, clock)
            except TimeoutError as error:
                stuck.append(f"after {len(playing.kills)} kills: {error}")
            clock.say("waiting for what goes on")
            await load.finish(RECOVERING_S)
            clock.say(f"checking {len(load.followed)} workflows")
            wrong = {"stuck": stuck} | await load.audit(before)
            wrong["ending"] = await server.end()
        attempts = [event.result.attempt for each in load.followed for event in each.events if event.result is not None]
        return Findings(
            playing.kills,
            wrong,
            len(load.followed),
            sum(len(each.events) for each in load.followed),
            sum(attempt > 1 for attempt in attempts),
            server.num_starts,
        )
    finally:
        await cancelled(keeping)
        server.kill("all")
        if isinstance(database, Postgres):
            database.remove()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Workflows while processes are killed.")
    add_arguments(parser)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing more is killed")
    parser.add_argument("--journal", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--active", type=int, default=4, help="workflows at once")
    parser.add_argument("--topics", type=int, default=3, help="of each kind of workflow")
    args = parser.parse_args(arguments)
    if args.quick:
        args.kills, args.topics = 8, 1
    report = new_report("chaos" if args.journal == "sqlite" else "chaos-postgres", args)
    with tempfile.TemporaryDirectory(prefix="laban-chaos-") as folder:
        found = asyncio.run(
            chaos(
                order_of(args.kills, args.seed),
                folder=Path(folder),
                journal=args.journal,
                seed=args.seed,
                minutes=args.minutes,
                num_active=args.active,
                num_topics=args.topics,
            )
        )
    report.rows += found.rows()
    finish(report, args, Clock())
    for kind, problems in found.wrong.items():
        for problem in problems[:20]:
            print(f"{kind}: {problem}", file=sys.stderr)
    return int(any(found.wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
