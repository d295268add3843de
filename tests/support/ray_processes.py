"""The processes that Ray started for this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def processes(*names: str) -> dict[int, str]:
    """Workers' processes of this test's own Ray: title by process id."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(folder.name)] = (folder / "cmdline").read_text().rstrip("\0")
            except OSError:  # it has ended since
                continue

    def ancestors(pid: int) -> Iterator[int]:
        while pid := parents.get(pid, 0):
            yield pid

    wanted = tuple(f"ray::{name}" for name in names or ("WorkerProcess", "ShardProcess"))
    return {pid: title for pid, title in titles.items() if title.startswith(wanted) and os.getpid() in ancestors(pid)}
