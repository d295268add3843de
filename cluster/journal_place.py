"""Where a journal is kept, as the configuration says."""

from __future__ import annotations

import os
import re
from pathlib import Path

from laban.cluster.journal_store import SqlStore, Sync

NONE = "none"


def default_url(port: int) -> str:
    """That of `laban serve` on a port: a file of this user's. A server on any free port is never found again, so it
    needs none."""
    if port == 0:
        return NONE
    folder = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return f"sqlite:///{Path(folder).absolute() / 'laban' / f'journal-{port}.db'}"


def checked_url(url: str | None) -> str | None:
    """The URL with its file's path made absolute; None for no journal. Raises InvalidInput, FailedPrecondition."""
    if url in (None, NONE):
        return None
    assert url is not None
    store = SqlStore(url)  # refuses what is none
    store.close()
    relative = re.fullmatch(r"sqlite(\+\w+)?:///(?!/)(.+)", url)
    return url if relative is None else f"sqlite:///{Path(relative.group(2)).absolute()}"


def open_store(url: str | None, sync: Sync = "full") -> SqlStore | None:
    """The journal's database, open; None for no journal. Blocks. Raises as `SqlStore.open` does."""
    if url is None:
        return None
    store = SqlStore(url, sync)
    store.open()
    return store
