"""The journal of a start that failed: its files, if this start made them and nothing was ever written."""

from __future__ import annotations

import fcntl
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from laban.cluster.journal_schema import MEMBERS, VERSION_TABLE

FILLED_BY_A_START = (VERSION_TABLE, MEMBERS.name)
WAIT_S = 2.0  # for the process that had it to be gone
LOOK_EVERY_S = 0.1


def file_to_make(url: str | None) -> Path | None:
    """The SQLite file that a start with this journal will make; None if it is there, or is none."""
    found = re.fullmatch(r"sqlite(\+\w+)?:///(.+)", url or "")
    path = None if found is None else Path(found[2])
    return None if path is None or path.exists() else path


def remove_unused(path: Path, wait_s: float = WAIT_S) -> bool:
    """Removes the journal `path` and what lies beside it, unless a Laban has it or anything was journaled. Returns
    whether it did. Only for a file that `file_to_make` named before the start. Raises nothing."""
    try:
        with open(f"{path}.lock", "r+") as lock:
            if not path.is_file() or not _locked(lock.fileno(), wait_s) or not _is_empty(path):
                return False
            for file in (*(Path(f"{path}{end}") for end in ("-wal", "-shm")), *path.parent.glob(f"{path.name}.*.lock")):
                file.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            Path(lock.name).unlink(missing_ok=True)
            return True
    except (OSError, sqlite3.Error):
        return False


def _locked(descriptor: int, wait_s: float) -> bool:
    """Whether nobody shares the journal any more, and nobody does until the descriptor is closed."""
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(LOOK_EVERY_S)
        else:
            return True


def _is_empty(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return not any(
            connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()
            for name in names
            if name not in FILLED_BY_A_START
        )
