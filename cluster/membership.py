"""This process among those who share the journal: renews its lease, takes over what others leave, and lets all go once
others took it for dead."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from laban.actors.errors import Unavailable
from laban.cluster.executor import Executor
from laban.cluster.journal import LOST, Journal
from laban.cluster.journal_engine import Fenced, JournalAway
from laban.cluster.journal_members import Member, MemberState
from laban.cluster.journal_store import SqlStore
from laban.cluster.records import MemberStatus

logger = logging.getLogger(__name__)

ROUNDS_A_LEASE = 5  # some may fail


class Membership:
    """Lives in the executor's event loop. `run` is its task."""

    def __init__(self, store: SqlStore, journal: Journal, executor: Executor, *, max_finished: int) -> None:
        """`store` is the journal's, open; `max_finished` bounds the workflows that are kept after their end, of all."""
        self._store = store
        self._journal = journal
        self._executor = executor
        self._max_finished = max_finished
        self._wanted = asyncio.Event()
        self._presence = store.presence
        self.members: Sequence[Member] = ()
        journal.on_lost = self._lost

    @property
    def member_id(self) -> str:
        return self._journal.member_id

    @property
    def status(self) -> tuple[MemberStatus, ...]:
        """As of the last round."""
        return tuple(
            MemberStatus(each.member_id, each.address, each.state, each.workflows, each.member_id == self.member_id)
            for each in self.members
        )

    async def start(self, address: str, model: str) -> None:
        """Take over what nobody has, once before `run`. `address` is "" while it is not known. Raises Unavailable."""
        self.show(address=address, model=model)
        self._store.presence = self._presence
        await self._executor.intake.restore(await self._journal.do(self._store.load))

    def show(self, *, address: str | None = None, model: str | None = None, state: MemberState | None = None) -> None:
        """How others see this one, from the next round on."""
        before = self._presence
        self._presence = replace(
            before,
            address=before.address if address is None else address,
            model=before.model if model is None else model,
            state=state or before.state,
        )
        self._wanted.set()

    async def run(self) -> None:
        """Rounds, until cancelled."""
        while True:
            await self.round()
            try:
                await asyncio.wait_for(self._wanted.wait(), self._store.lease_s / ROUNDS_A_LEASE)
            except TimeoutError:
                continue

    async def round(self) -> None:
        """Nothing happens while the database is away."""
        self._wanted.clear()
        executor, life = self._executor, self._executor.intake.life
        attend = partial(
            self._store.attend, self._presence, self._max_finished, executor.forgets_before, tuple(executor.shelf.ended)
        )
        try:
            found = await self._journal.do(attend)
        except JournalAway:
            return
        except Fenced:
            await self._rejoin()
            return
        if life != executor.intake.life:  # what was taken over then is others' by now
            return
        self.members = found.members
        executor.forget(found.gone)
        if found.taken:
            logger.info("%d workflows are taken over", len(found.taken))
            await executor.intake.restore(found.taken)

    async def _rejoin(self) -> None:
        try:
            await self._journal.do(self._store.rejoin)
        except JournalAway:
            return
        self._journal.live_again()
        self._wanted.set()

    def _lost(self) -> None:
        self._executor.let_go(Unavailable(LOST))
        self._wanted.set()
