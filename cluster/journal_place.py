"""Where a journal is kept, as the configuration says."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from laban.cluster.config_sections import EVERYWHERE
from laban.cluster.journal_engine import Sync
from laban.cluster.journal_members import Presence
from laban.cluster.journal_store import LEASE_S, SqlStore

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


def peer_address(given: str | None, host: str, port: int) -> str:
    """Where others reach a Laban that listens on `host` and `port`; "" while its port is not known.

    >>> peer_address(None, "127.0.0.1", 8470), peer_address("10.0.0.7", "0.0.0.0", 8470), peer_address("me:1", "", 8470)
    ('127.0.0.1:8470', '10.0.0.7:8470', 'me:1')
    """
    if not port:
        return ""
    name = given or (socket.gethostname() if host in EVERYWHERE else host)
    if re.search(r"[^:]:\d+$|\]:\d+$", name):
        return name
    return f"[{name}]:{port}" if ":" in name and not name.startswith("[") else f"{name}:{port}"


def open_store(
    url: str | None, sync: Sync = "full", presence: Presence | None = None, lease_s: float = LEASE_S
) -> SqlStore | None:
    """The journal's database, open; None for no journal. Blocks. Raises as `SqlStore.open` does."""
    if url is None:
        return None
    store = SqlStore(url, sync, presence or Presence(), lease_s)
    store.open()
    return store
