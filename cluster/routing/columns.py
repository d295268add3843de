"""What the ledger keeps of its workers, as arrays by their numbers: for whoever compares all of them at once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from laban.cluster.routing.accounts import Account
from laban.cluster.routing.comparison_pass import (
    FREE_PAGES,
    IS_OPEN,
    LINK_NS,
    NUM_CALLS,
    NUM_COLUMNS,
    NUM_SENDING,
    PACE,
    QUEUE_MS,
    TURN,
)
from laban.cluster.routing.rates import Pace

Numbers = npt.NDArray[np.int64]

STEP = 64
"""Room is made for so many workers at once."""


class Columns:
    """`values` has a row for each thing kept, a column for each worker. A number that means no worker is not open."""

    def __init__(self) -> None:
        self.width = 0
        self.values: Numbers = np.zeros((NUM_COLUMNS, 0), np.int64)
        self.paces: Numbers = np.zeros((0, len(Pace._fields)), np.int64)  # each that some worker has, once
        self.token_ms = 0.0  # of whoever encodes or fetches one the fastest
        self._is_current = False

    def put(self, account: Account) -> None:
        """What the account says now of its calls."""
        values, number = self.values, account.number
        values[QUEUE_MS, number] = account.queue_ms
        values[NUM_CALLS, number] = account.num_calls
        values[LINK_NS, number] = account.link_ns

    def put_pages(self, account: Account) -> None:
        self.values[FREE_PAGES, account.number] = account.load.num_free_pages

    def put_sending(self, account: Account) -> None:
        self.values[NUM_SENDING, account.number] = account.num_fetching

    def put_open(self, account: Account, is_open: bool) -> None:
        self.values[IS_OPEN, account.number] = is_open

    def put_turn(self, account: Account) -> None:
        self.values[TURN, account.number] = account.turn

    def add(self, account: Account) -> None:
        """All that the account says, but for its turn."""
        if account.number >= self.width:
            self._widen(account.number + 1)
        self.put(account)
        self.put_pages(account)
        self.put_sending(account)
        self.put_open(account, True)
        self.repaced()

    def remove(self, account: Account) -> None:
        self.values[:, account.number] = 0
        self.repaced()

    def repaced(self) -> None:
        """Some worker's pace is another than before, or a worker came or left."""
        self._is_current = False

    def see_paces(self, accounts: Collection[Account]) -> None:
        """Bring the paces up to date. All accounts, and most often nothing to do."""
        if self._is_current:
            return
        self._is_current = True
        places: dict[Pace, int] = {}
        for account in accounts:
            self.values[PACE, account.number] = places.setdefault(account.pace, len(places))
        self.paces = np.array(list(places), np.int64).reshape(-1, len(Pace._fields))
        self.token_ms = min([min(pace.encode_ns, pace.peer_ns) for pace in places], default=0) / 1e6

    def _widen(self, width: int) -> None:
        more = -(-width // STEP) * STEP - self.width
        self.width += more
        self.values = np.concatenate((self.values, np.zeros((NUM_COLUMNS, more), np.int64)), axis=1)
