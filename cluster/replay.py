"""Who is asked for something while a workflow is brought to where it was: nobody."""

from __future__ import annotations

from collections.abc import Iterable

from laban.cluster.leases import Errand, Leases
from laban.cluster.slots import Order


class Nobody:
    """A dispatcher and a desk that take what they are given, and do nothing with it."""

    max_attempts = 0

    def __init__(self) -> None:
        self.leases = Leases()

    def submit(self, orders: Iterable[Order]) -> None: ...

    def abort(self, keys: Iterable[str]) -> None:
        for _ in keys:  # what makes them may have to be run through
            continue

    def offer(self, errand: Errand) -> None: ...

    def withdraw(self, workflow_id: str, address: str) -> None: ...

    def end_workflow(self, workflow_id: str) -> None: ...
