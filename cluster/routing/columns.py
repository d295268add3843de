"""What the ledger keeps of its workers, as arrays by their numbers: for whoever compares all of them at once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from laban.cluster.routing.accounts import Account
from laban.cluster.routing.rates import Pace

Numbers = npt.NDArray[np.int64]

STEP = 64
"""Columns are added by so many: sets of workers then are whole bytes."""


class Columns:
    """Columns of numbers that mean no worker hold anything; the ledger's set of open workers says which count."""

    def __init__(self) -> None:
        self.width = 0
        self.queue_ms: Numbers = np.zeros(0, np.int64)
        self.num_calls: Numbers = np.zeros(0, np.int64)
        self.link_ns: Numbers = np.zeros(0, np.int64)
        self.paces: tuple[Pace, ...] = ()
        self.pace_at: Numbers = np.zeros(0, np.int64)  # the place of each worker's pace among these
        self.flat_at: Numbers = np.zeros(0, np.int64)  # the same in a flat array of as many rows as there are paces
        self._is_current = False

    def put(self, account: Account) -> None:
        """What the account says now, but for its pace."""
        number = account.number
        if number >= self.width:
            self._widen(number + 1)
        self.queue_ms[number], self.num_calls[number] = account.place[0], account.place[1]
        self.link_ns[number] = account.link_ns

    def repaced(self) -> None:
        """Some worker's pace is another than before, or a worker came or left."""
        self._is_current = False

    def see_paces(self, accounts: Collection[Account]) -> None:
        """Bring `paces` and `pace_at` up to date. All accounts, and most often nothing to do."""
        if self._is_current:
            return
        self._is_current = True
        # A new tuple: who remembers something by paces can tell by its identity that they are others now.
        self.paces = tuple(dict.fromkeys(account.pace for account in accounts))
        places = {pace: at for at, pace in enumerate(self.paces)}
        self.pace_at[:] = 0
        for account in accounts:
            self.pace_at[account.number] = places[account.pace]
        self.flat_at = self.pace_at * self.width + np.arange(self.width)

    def _widen(self, width: int) -> None:
        more = -(-width // STEP) * STEP - self.width
        self.width += more
        for name in ("queue_ms", "num_calls", "link_ns", "pace_at"):
            setattr(self, name, np.concatenate((getattr(self, name), np.zeros(more, np.int64))))
