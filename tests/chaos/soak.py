"""An hour of mixed load, and what grows meanwhile.

    make soak [ARGS="--minutes 60 --json"]

Workflows of seven kinds, sessions, cancellations and deletions against a `laban serve` with two workers. Of each kind
of process: resident memory, open files, threads; of all: pages in use, encodings, sessions, open requests, and objects
in Ray's store. The first part of the time is to warm up, when caches fill; over the rest a straight line is fitted, and
its slope says the growth per hour. The server keeps 50 workflows that have ended, so that these do not count. A plot of
all samples lies beside the result.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from followed_load import AGAIN_S, AWAY, Load, undisturbed
from kept_server import VICTIMS, KeptServer, cancelled
from matplotlib import pyplot as plt
from postgres import free_port
from report import Clock, Report, Row, add_arguments, finish, new_report
from samples_of_processes import sample, slope

from laban.actors.errors import LabanError
from laban.cluster.client_async import AsyncClient

EVERY_S = 10.0
WARM_UP = 0.4  # of the time
STARTING_S = 300.0
NUM_WORKERS = 2
MOST_PER_HOUR = {"rss_mib": 64.0, "files": 12.0, "threads": 12.0, "ray_objects": 60.0, "sessions": 6.0}
"""What may grow, at most: more is a leak."""
CONFIG = """
workers: 2
engine: {{pool_tokens: 4096, num_threads: 1}}
cache: {{host_bytes: 64MiB}}
routing: {{directory_shards: 2}}
metrics: {{port: {port}}}
journal: {{url: 'sqlite:///{folder}/journal.db'}}
limits: {{max_finished_workflows: 50}}
"""


async def others(client: AsyncClient, load: Load) -> None:
    """Sessions, and workflows that are cancelled or deleted, beside the load."""
    number = 0
    while True:
        number += 1
        try:
            async with await client.open_session() as session:
                asked = await session.prefill(f"Question {number}: what is {number} and {number}?")
                await session.generate(view=[asked], max_tokens=6)
            flow = next(iter(load.expected))
            record = await client.submit(flow.text, {"topic": f"number {number}"})
            if number % 2:
                await client.cancel(record.workflow_id)
            else:
                await client.delete(record.workflow_id)
        except LabanError as error:
            if error.status not in AWAY:
                raise
        await asyncio.sleep(AGAIN_S)


async def soak(folder: Path, minutes: float, seed: int, clock: Clock) -> tuple[list[dict[str, float]], dict[str, int]]:
    """Samples, each with `at_s`; and what was done, and was wrong."""
    port = free_port()
    (folder / "laban.yaml").write_text(CONFIG.format(port=port, folder=folder))
    server = KeptServer(folder, NUM_WORKERS)
    keeping = asyncio.create_task(server.keep())
    samples: list[dict[str, float]] = []
    try:
        async with AsyncClient(server.address) as client:
            await server.until_whole(client, STARTING_S)
            expected = await undisturbed(client, 1)
            load = Load(client, expected, 2, seed)
            load.start()
            beside = asyncio.create_task(others(client, load))
            began_s = time.monotonic()
            while time.monotonic() - began_s < 60 * minutes and not beside.done():
                found = await asyncio.to_thread(sample, server, port)
                samples.append({"at_s": time.monotonic() - began_s, **found})
                if len(samples) % 6 == 0:
                    memory = sum(found.get(f"rss_mib.{kind}", 0.0) for kind in VICTIMS)
                    clock.say(f"{len(load.followed)} workflows, {memory:.0f} MiB, {found['pages']:.0f} pages in use")
                await asyncio.sleep(EVERY_S)
            await load.finish(STARTING_S)
            if beside.done():
                beside.result()
            await cancelled(beside)
            status = await client.status()
            ended = [each for each in load.followed if each.ended]
            wrong = [each for each in ended if each.events[-1].outputs != expected[each.flow].outputs]
            told = {
                "workflows": len(load.followed),
                "lost": len(load.followed) - len(ended),
                "different": len(wrong),
                "problems": sum(len(each.problems) for each in load.followed),
                "still_running": status.workflows_running,
                "server_starts_again": server.num_starts - 1,
                "ending": len(await server.end()),
            }
        return samples, told
    finally:
        await cancelled(keeping)
        server.kill("all")


def rows_of(samples: Sequence[Mapping[str, float]], told: Mapping[str, int]) -> list[Row]:
    warm = [each for each in samples if each["at_s"] >= WARM_UP * samples[-1]["at_s"]]
    rows = [Row("minutes", samples[-1]["at_s"] / 60, "min"), Row("samples", len(samples), "samples")]
    rows += [
        Row(name, value, "cases", None if name == "workflows" else 0, "higher" if name == "workflows" else "lower")
        for name, value in told.items()
    ]
    for name in sorted({name for each in samples for name in each} - {"at_s"}):
        points = [(each["at_s"], each[name]) for each in warm if name in each]
        times, values = [at for at, _ in points], [value for _, value in points]
        what = name.partition(".")[0]
        unit = "MiB" if what == "rss_mib" else what
        rows.append(Row(f"{name}.most", max(values, default=0.0), unit, better="lower"))
        rows.append(Row(f"{name}.growth", slope(times, values), f"{unit}/h", MOST_PER_HOUR.get(what), "lower"))
    return rows


def draw(samples: Sequence[Mapping[str, float]], report: Report, path: Path) -> None:
    """Memory, files, threads and the rest over time, a line for each kind of process."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 8, "svg.hashsalt": "laban", "svg.fonttype": "none"})
    groups = {"rss_mib": "memory, MiB", "files": "open files", "threads": "threads", "": "the rest"}
    names = sorted({name for each in samples for name in each} - {"at_s"})
    figure, axes = plt.subplots(len(groups), 1, figsize=(8, 9), sharex=True)
    for axis, (group, title) in zip(axes, groups.items(), strict=True):
        for name in names:
            if name.partition(".")[0] != group and (group or "." in name):
                continue
            points = [(each["at_s"] / 60, each[name]) for each in samples if name in each]
            axis.plot(*zip(*points, strict=True), label=name.removeprefix(f"{group}."), linewidth=1)
        axis.set_ylim(bottom=0)
        axis.set_title(title, loc="left", fontweight="bold", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=6, ncols=3, frameon=False)
    axes[-1].set_xlabel("minutes")
    figure.text(0.01, 0.003, f"{report.machine}; commit {report.commit}", fontsize=6, color="#777777")
    figure.tight_layout(rect=(0, 0.015, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Mixed load, and what grows.")
    add_arguments(parser)
    parser.add_argument("--minutes", type=float, default=60.0)
    args = parser.parse_args(arguments)
    if args.quick:
        args.minutes = 2.0
    report, clock = new_report("soak", args), Clock()
    with tempfile.TemporaryDirectory(prefix="laban-soak-") as folder:
        samples, told = asyncio.run(soak(Path(folder), args.minutes, args.seed, clock))
    report.rows += rows_of(samples, told)
    draw(samples, report, report.path.with_suffix(".svg"))
    finish(report, args, clock)
    return int(any(row.met is False for row in report.rows))


if __name__ == "__main__":
    sys.exit(main())
