"""A `laban serve` that is started again whenever it ends, as a system's supervisor of services would."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from command_line import ENDING_S, Cli
from postgres import free_port

from laban.actors.errors import LabanError
from laban.cluster.client_async import AsyncClient
from laban.cluster.records import JOURNAL_AVAILABLE

AGAIN_S = 1.0  # before it is started again
LOOK_S = 0.2
VICTIMS = {
    "worker": "ray::WorkerProcess",
    "directory": "ray::DirectoryProcess",
    "host": "ray::HostProcess",
    "raylet": "raylet/raylet",
    "gcs": "gcs/gcs_server",
    "driver": "laban.cluster.cli serve",
}
"""What processes of a cluster do, and a part of their command lines."""


class KeptServer:
    """Serves on one port over `folder`, whose laban.yaml says the rest. `keep` runs as long as it is to be there."""

    def __init__(self, folder: Path, num_workers: int) -> None:
        self.folder, self.num_workers = folder, num_workers
        self.port = free_port()
        self.cli = Cli(folder)
        self.num_starts = 0
        self._process: subprocess.Popen[str] | None = None
        self._ending = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it said on stderr, in all of its lives."""
        return (self.folder / "serve.log").read_text()

    async def keep(self) -> None:
        while not self._ending:
            with (self.folder / "serve.log").open("a") as log:
                self._process = self.cli.start("serve", "--port", str(self.port), output=log)
            self.num_starts += 1
            while self._process.poll() is None:
                await asyncio.sleep(LOOK_S)
            await asyncio.sleep(AGAIN_S)

    async def end(self) -> list[str]:
        """Stop it as an operator would. Returns what went wrong with that."""
        self._ending = True
        process, problems = self._process, list[str]()
        assert process is not None
        process.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.to_thread(process.wait, ENDING_S)
            problems += [f"it ended with {code}"] if code else []
        except subprocess.TimeoutExpired:
            problems.append("it did not end")
        left = await asyncio.to_thread(self.cli.leftovers)
        self.kill("all")
        return problems + [f"it left behind: {line}" for line in left]

    def victims(self, kind: str) -> list[int]:
        """Ids of processes of this kind; "all": of every process."""
        part = VICTIMS.get(kind, "")
        return [number for number, line in self.cli.running().items() if part in line]

    def kill(self, kind: str, pick: Callable[[list[int]], list[int]] = lambda found: found) -> int:
        """SIGKILL to those that `pick` takes. Returns how many it was sent to."""
        chosen = pick(self.victims(kind))
        for number in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return len(chosen)

    async def until_whole(self, client: AsyncClient, within_s: float) -> float:
        """Wait until it serves with all its workers and its journal. Returns the time of day.

        Raises TimeoutError, with what it said last.
        """
        until_s = time.monotonic() + within_s
        found: object = "nothing"
        while time.monotonic() < until_s:
            try:
                found = status = await client.status()
                num_up = sum(worker.alive for worker in status.workers)
                if num_up == self.num_workers and status.ready and status.journal == JOURNAL_AVAILABLE:
                    return time.time()
            except LabanError as error:
                found = error
            await asyncio.sleep(LOOK_S)
        raise TimeoutError(f"not whole after {within_s:g} s: {found}\n{self.log[-3000:]}")


async def cancelled(task: asyncio.Future[object]) -> None:
    """End a task and wait until it has ended."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
