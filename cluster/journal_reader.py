"""Reads from the journal what other processes wrote: where a workflow is, and pages of all that there are."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, and_, or_, select
from sqlalchemy.exc import SQLAlchemyError

from laban.actors.errors import Unavailable
from laban.cluster.journal_engine import Unfit, as_unfit, checked, engine_of, reason_of
from laban.cluster.journal_members import RUNNING
from laban.cluster.journal_records import Stored, archive_from_json
from laban.cluster.journal_schema import MEMBERS, WORKFLOWS
from laban.cluster.journal_store import stored
from laban.cluster.records import WorkflowRecord

logger = logging.getLogger(__name__)

T = TypeVar("T")

READ_S = 15.0  # for an answer


@dataclass(frozen=True, slots=True)
class Found:
    """A workflow, as the database has it. `owner` is "" where the member that had it is there no more, `address` where
    others reach it. `stored` is of one that has ended."""

    tenant: str
    namespace: str
    owner: str
    address: str
    stored: Stored | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a page. `record` is None for one that was known already."""

    place: int
    workflow_id: str
    record: WorkflowRecord | None


class JournalReader:
    """A connection of its own, so that nobody who asks waits behind what is written, and a thread: a database that does
    not answer keeps no thread from what else there is to do. Methods raise Unavailable."""

    def __init__(self, url: str) -> None:
        self._engine = engine_of(checked(url), "full")
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="laban-journal-reader")

    async def find(self, workflow_id: str) -> Found | None:
        try:
            return await self._do(lambda connection: _find(connection, workflow_id))
        except Unfit:  # what cannot be asked for could not be written either
            return None

    async def page(
        self,
        size: int,
        before: tuple[int, str] | None,
        states: Collection[str],
        tenant: str | None,
        known: Collection[str],
    ) -> list[Entry]:
        """The newest first, behind that place and id. Of those that run elsewhere no more is said than that."""
        return await self._do(lambda connection: _page(connection, size, before, states, tenant, known))

    async def close(self) -> None:
        """Does not wait for an answer that is due."""
        self._thread.submit(self._disconnect)
        self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[[Connection], T]) -> T:
        reading = asyncio.get_running_loop().run_in_executor(self._thread, partial(self._with, work))
        try:
            return await asyncio.wait_for(reading, READ_S)
        except TimeoutError:
            raise Unavailable(f"the journal's database has not answered within {READ_S:g} s") from None

    def _with(self, work: Callable[[Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            with self._connection.begin():
                return work(self._connection)
        except (SQLAlchemyError, UnicodeError, OverflowError) as error:
            self._disconnect()
            unfit = as_unfit(error)
            raise unfit or Unavailable(f"the journal's database cannot be read: {reason_of(error)}") from None

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError):  # it was broken anyway
                connection.invalidate()
                connection.close()


def _find(connection: Connection, workflow_id: str) -> Found | None:
    columns = (WORKFLOWS.c.tenant, WORKFLOWS.c.namespace, WORKFLOWS.c.state, MEMBERS.c.member_id, MEMBERS.c.address)
    chosen = select(*columns).outerjoin(MEMBERS, MEMBERS.c.member_id == WORKFLOWS.c.owner)
    this = WORKFLOWS.c.workflow_id == workflow_id
    row = connection.execute(chosen.where(this)).first()
    if row is None:
        return None
    whole = None
    if row.state != RUNNING:
        found = connection.execute(select(WORKFLOWS).where(this)).mappings().first()
        if found is None:
            return None
        whole = stored(connection, dict(found))
    return Found(row.tenant, row.namespace, row.member_id or "", row.address or "", whole)


def _page(
    connection: Connection,
    size: int,
    before: tuple[int, str] | None,
    states: Collection[str],
    tenant: str | None,
    known: Collection[str],
) -> list[Entry]:
    keys = select(WORKFLOWS.c.workflow_id, WORKFLOWS.c.rank)
    if before is not None:
        place, last = before
        same = and_(WORKFLOWS.c.rank == place, WORKFLOWS.c.workflow_id < last)
        keys = keys.where(or_(WORKFLOWS.c.rank < place, same))
    if states:
        keys = keys.where(WORKFLOWS.c.state.in_(list(states)))
    if tenant is not None:
        keys = keys.where(WORKFLOWS.c.tenant == tenant)
    keys = keys.order_by(WORKFLOWS.c.rank.desc(), WORKFLOWS.c.workflow_id.desc()).limit(size)
    entries = [Entry(row.rank, row.workflow_id, None) for row in connection.execute(keys)]
    asked = [each.workflow_id for each in entries if each.workflow_id not in known]
    columns = (
        WORKFLOWS.c.workflow_id, WORKFLOWS.c.state, WORKFLOWS.c.created_at, WORKFLOWS.c.document, WORKFLOWS.c.archive
    )  # fmt: skip
    rows = connection.execute(select(*columns).where(WORKFLOWS.c.workflow_id.in_(asked))) if asked else ()
    records = {row.workflow_id: _record(row) for row in rows}
    return [Entry(each.place, each.workflow_id, records.get(each.workflow_id)) for each in entries]


def _record(row: Any) -> WorkflowRecord:
    if row.archive:
        try:
            return archive_from_json(row.archive).record
        except ValueError as error:
            logger.error("workflow %s cannot be shown whole: %s", row.workflow_id, error)
    try:
        name = str(json.loads(row.document)["workflow"]["name"])
    except (ValueError, LookupError, TypeError):
        name = ""
    return WorkflowRecord(row.workflow_id, name, row.state, row.created_at)
