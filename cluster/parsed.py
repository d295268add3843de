"""Workflows that were read before: a document that comes again, with other inputs mostly, is not read again.

Reading one takes 0.2 to 3 ms of the process that everybody's tokens go through, and depends on the document alone. A
`Workflow` never changes, so all who submit it may share it. Tenants share nothing: how long a submit takes would
tell one what another has submitted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from laban.cluster.workflow.schema import Workflow

MAX_KEPT = 128
MAX_BYTES = 65_536  # of a request whose document is kept


class ParsedWorkflows:
    """The last ones, by tenant and document. Methods may be called from any thread."""

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._max_kept = max_kept
        self._kept: OrderedDict[Hashable, Workflow] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, size: int, parse: Callable[[], Workflow]) -> Workflow:
        """What `parse` gives for this key, which has all that it depends on; `size` is the request's, in bytes.
        Raises what `parse` raises, each time."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        made = parse()
        if size <= MAX_BYTES:
            with self._lock:
                self._kept[key] = made
                self._kept.move_to_end(key)
                while len(self._kept) > self._max_kept:
                    self._kept.popitem(last=False)
        return made
