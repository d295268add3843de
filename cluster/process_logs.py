"""The logs of a cluster's processes, wherever they run, shown by the one that started it.

The control plane, the workers and the directory are Ray's actors: their stderr goes to files of Ray's, on the machine
of each. Ray follows these and sends the lines to whoever started the cluster, who prints them as they are: each is a
line of ours already (laban.actors.logs). What Ray itself says, such as that a machine had no memory left, becomes one.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

MAX_HELD = 1000  # lines
OF_RAYS_CORE = re.compile(r"\[[-\d]+ [\d:,.]+ [A-Z] \d+ \d+\]|\*\*\* SIGTERM")
"""How lines begin that Ray's C++ writes into its workers' stderr."""
COLOUR = re.compile(r"\x1b\[[\d;]*m")


class ProcessLogs:
    """Lines on their way to the terminal. Before `show` they are held back: whoever waits sees how far the start is."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        """`write` takes a line; by default it goes to stderr."""
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._held: deque[str] | None = deque(maxlen=MAX_HELD)
        self._lock = threading.Lock()

    def show(self) -> None:
        """From now on, what was held back first. Idempotent."""
        with self._lock:
            held, self._held = self._held, None
            for line in held or ():
                self._write(line)

    def take(self, data: Mapping[str, Any], *_: object, **__: object) -> None:
        """What Ray has to print: `lines` of a process, or of Ray itself. In threads of Ray's."""
        if data.get("pid") == "raylet":
            text = COLOUR.sub("", "\n".join(map(str, data.get("lines", ())))).strip()
            if text:
                logger.warning("Ray: %s", " ".join(text.split()))
            return
        if not data.get("is_err") or data.get("pid") in ("autoscaler", "gcs_server"):
            return
        with self._lock:
            for line in data.get("lines", ()):
                if OF_RAYS_CORE.match(line):
                    continue
                if self._held is not None:
                    self._held.append(line)
                else:
                    self._write(line)


def take_over_rays_output(logs: ProcessLogs | None) -> bool:
    """Have Ray hand over what it would print, before it is started; None: it prints nothing. Whether that is possible:
    Ray has no public way to it."""
    from ray._private import worker

    if not hasattr(worker, "print_to_stdstream"):
        return False
    worker.print_to_stdstream = (lambda *_, **__: None) if logs is None else logs.take
    return True


def logs_folder() -> str:
    """Of Ray's processes on this machine, once Ray is started; "" if it does not say."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    return "" if node is None else str(node.get_logs_dir_path())
